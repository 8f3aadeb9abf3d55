"""Sensitivity and specificity of groups of test films: by resolution and by whatever is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from openmed.metrics.clustered import operating_shares
from openmed.metrics.score_intervals import Interval
from pipeline.evaluation.judgement import patient_numbers
from pipeline.promotion.gates.comparison import Comparison
from pipeline.promotion.gates.evidence import Evidence

if TYPE_CHECKING:
    import pandas as pd

_SIDES_PX = (0, 512, 1024, 2048, np.inf)
_RESOLUTIONS = ("below 512 px", "512 to 1023 px", "1024 to 2047 px", "2048 px and more")


@dataclass(frozen=True)
class Subgroup:
    """What a group of films shows.

    Attributes:
        group: What its films share, in words.
        films: How many films each share is of.
        shares: sensitivity and specificity, with intervals that know of patients.
        champion: The same of the champion; None where it was not compared.
    """

    group: str
    films: Mapping[str, int]
    shares: Mapping[str, Interval]
    champion: Mapping[str, Interval] | None = None


def subgroups(
    evidence: Evidence, champion: Comparison | None = None, confidence: float | None = None
) -> list[Subgroup]:
    """Returns every group of test films, or of those compared with a champion; none where nothing is known.

    The intervals have the confidence of the evaluation unless another is given.
    """
    if evidence.films is None:
        return []
    level = evidence.rules.confidence if confidence is None else confidence
    other = None if champion is None else champion.against
    films = evidence.test if other is None else other.films
    known = evidence.films.assign(id=evidence.films["sha256"].str[:16]).drop_duplicates("id")
    test = films.drop(columns="sha256", errors="ignore").reset_index(drop=True)
    # Copies of a film have its id with a number behind it.
    groups = test[["id"]].assign(id=test["id"].str[:16]).merge(_groups(known), on="id", how="left")
    has, patients = test["label"] == evidence.spec.positive_index, patient_numbers(test)
    flagged = test["score"] >= evidence.spec.operating_point
    theirs = None if other is None else test["score_other"] >= other.threshold
    described = []
    for column in groups.columns.drop("id"):
        title = column.removeprefix("group_").replace("age_band", "age")
        for value, rows in groups.groupby(column, observed=True).indices.items():
            own, of = has.iloc[rows], patients.iloc[rows]
            shares = operating_shares(own, flagged.iloc[rows], of, level)
            before = None if theirs is None else operating_shares(own, theirs.iloc[rows], of, level)
            counts = {"sensitivity": int(own.sum()), "specificity": int((~own).sum())}
            described.append(Subgroup(f"{title} {value}", counts, shares, before))
    return described


def _groups(known: "pd.DataFrame") -> "pd.DataFrame":
    """Names the group of each film, by resolution and whatever else is known of it."""
    import pandas as pd

    groups = {}
    if {"width", "height"} <= set(known.columns):
        side = known[["width", "height"]].min(axis=1)
        groups["group_resolution"] = pd.cut(side, _SIDES_PX, labels=_RESOLUTIONS, right=False)
    for name in ("sex", "age_band", "view", "source", "manufacturer"):
        if name in known:
            groups[f"group_{name}"] = known[name].replace("", np.nan)
    return pd.DataFrame({"id": known["id"], **groups})
