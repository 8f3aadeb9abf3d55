"""What a score is worth on films from elsewhere, and what else than the finding may explain it.

Sets from elsewhere are seldom like those at home: the sick were filmed lying (AP) and the healthy standing
(PA), one class is of other ages. So everything is measured by view and age band, and how well the score
tells the view itself is measured within one class, where the finding cannot be the reason.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from openmed.gates.agreement import agreement
from openmed.metrics.delong import delong_auc
from openmed.metrics.intervals import COMPARED, judged_intervals

ALL, UNKNOWN = "all", "unknown"


def describe_set(
    films: pd.DataFrame,
    class_names: tuple[str, ...],
    positive_index: int,
    threshold: float,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Any]:
    """Measures one external set at the frozen threshold; patients are resampled for kappa alone.

    Of films with the columns label (int, the position of a name), second_label (missing where there is none),
    patient, view and age_band (empty when unknown) and score (probability of the finding).

    Returns:
        films, patients; groups (see `by_group`); view_separation (see `view_separation`); second_label: None
        where there is none, else films, share and kappa of the agreement with the first label, and the groups
        by view of these films by each of the two labels, `first` and `second`.
    """
    settings = {"replicates": replicates, "confidence": confidence, "seed": seed}
    films = films.assign(has=(films["label"] == positive_index).astype(int))
    return {
        "films": len(films),
        "patients": int(films["patient"].nunique()),
        "groups": list(by_group(films, threshold, confidence)),
        "view_separation": list(view_separation(films, class_names, confidence)),
        "second_label": _second_label(films, positive_index, threshold, settings),
    }


def by_group(films: pd.DataFrame, threshold: float, confidence: float) -> Iterator[dict[str, Any]]:
    """Measures all films, and those of each view and age band.

    Of films with the columns has (0 or 1), score, patient, view and age_band, at the frozen threshold.

    Yields:
        view and age_band (`ALL` for any), films, positives, and auc, sensitivity and specificity, each with
        value, low and high, None where it cannot be computed.
    """
    for view, of_view in _parts(films, "view"):
        for band, part in _parts(of_view, "age_band"):
            intervals = judged_intervals(part["has"], part["score"], part["patient"], threshold, confidence)
            yield {
                "view": view,
                "age_band": band,
                "films": len(part),
                "positives": int(part["has"].sum()),
                **{name: intervals[name].to_json() for name in COMPARED},
            }


def view_separation(
    films: pd.DataFrame, class_names: tuple[str, ...], confidence: float
) -> Iterator[dict[str, Any]]:
    """Measures how well the score tells two views apart among films of one class.

    Of films with the columns label, score, patient and view; `class_names` are the names of the labels.

    Yields:
        class, views (two), films (of each), and auc: how often a film of the first view outscores one of the
        second. 0.5 says that the score knows nothing of the view.
    """
    known = films[films["view"] != ""]
    for label, name in enumerate(class_names):
        own = known[known["label"] == label]
        for first, second in combinations(sorted(own["view"].unique()), 2):
            pair = own[own["view"].isin([first, second])]
            is_first = (pair["view"] == first).astype(int)
            auc = delong_auc(is_first, pair["score"], pair["patient"], confidence)
            counts = [int(is_first.sum()), int((1 - is_first).sum())]
            yield {"class": name, "views": [first, second], "films": counts, "auc": auc.to_json()}


def _second_label(
    films: pd.DataFrame, positive_index: int, threshold: float, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    both = films[films["second_label"].notna()].assign(age_band="")
    if both.empty:
        return None
    second = both["second_label"].astype(np.int64)
    other = both.assign(has=(second == positive_index).astype(int))
    return {
        **agreement(both["label"], second, both["patient"], **settings).to_json(),
        "first": list(by_group(both, threshold, settings["confidence"])),
        "second": list(by_group(other, threshold, settings["confidence"])),
    }


def _parts(films: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """All films, then those of each value, unless all have the same."""
    values = films[column].replace("", UNKNOWN)
    yield ALL if values.nunique() > 1 else str(values.iloc[0]), films
    if values.nunique() > 1:
        for value in sorted(values.unique()):
            yield str(value), films[values == value]
