"""The page that a reviewer decides on: the verdict, and the films on which two models disagree."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import registry
from pipeline.gates import Comparison, Evidence, subgroups
from pipeline.registry.evidence import EXTERNAL_METRICS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from openmed.models.base import BaseModel

# With their heat maps, of each group: on the page, and in Airflow beside the question.
_SHOWN, _SHOWN_IN_AIRFLOW = 24, 3
# Three of them fit beside each other in Airflow.
_PICTURE_PX = 220


@dataclass(frozen=True)
class Case:
    """One film: its label, what each model says, and the film beside their heat maps."""

    id: str
    label: str
    score: float
    score_champion: float | None
    pictures: tuple[tuple[str, bytes], ...] = ()
    """Caption and JPEG; none of a film that is only listed."""

    @property
    def sentence(self) -> str:
        """What stands under the pictures."""
        champion = "" if self.score_champion is None else f" · champion {self.score_champion:.3f}"
        return f"{self.label} · this version {self.score:.3f}{champion} · film {self.id}"

    @property
    def images(self) -> list[tuple[str, str]]:
        """Caption and picture, as an address that holds it."""
        from pipeline.report.render import picture

        return [(caption, picture(image, "jpeg")) for caption, image in self.pictures]


@dataclass(frozen=True)
class Group:
    """Films on which two models disagree in the same way, or that one gets wrong in the same way."""

    title: str
    kind: str
    """miss, alarm or gain."""
    shown: list[Case]
    """What harms most, with pictures."""
    listed: list[Case]
    """The others."""

    @property
    def total(self) -> int:
        """How many films there are."""
        return len(self.shown) + len(self.listed)


@dataclass(frozen=True)
class Review:
    """What reviewers see."""

    page: str
    """One HTML page that needs nothing else."""
    groups: list[Group]
    maps_trusted: bool
    """Whether the heat maps of the version passed their checks."""

    @property
    def pictures(self) -> dict[tuple[str, str], bytes]:
        """Film id and caption -> JPEG, of the films that are shown in Airflow as well."""
        shown = [case for group in self.groups for case in group.shown[:_SHOWN_IN_AIRFLOW]]
        return {(case.id, caption): image for case in shown for caption, image in case.pictures}


def build_review(judged: dict[str, Any], evidence: Evidence, compared: Comparison, workspace: Path) -> Review:
    """Builds the page.

    Args:
        judged: What the gate says.
        evidence: On the version.
        compared: Its comparison with the champion.
        workspace: The workspace of its retraining, which holds the films.

    Raises:
        IntegrityError: A model or a film is not what was registered.
    """
    from openmed.files import read_json
    from pipeline.report.render import render
    from pipeline.report.site_pictures import site_pictures

    named = ("explain.json", EXTERNAL_METRICS)
    explained, external = (registry.find_artifact(evidence.version, name) for name in named)
    checks = read_json(explained) if explained else None
    films = compared.films if compared.films is not None else evidence.test
    groups = _groups(films, evidence, compared, Path(workspace))
    maps_trusted = bool(checks) and checks["faithfulness"][checks["primary_method"]]["trusted"]
    page = render(
        "review.html",
        judged=judged,
        groups=groups,
        subgroups=subgroups(evidence, compared),
        sites=evidence.metrics["sites"]["test"],
        site_pictures=site_pictures(_a_film_with_the_finding(evidence, Path(workspace))),
        elsewhere=read_json(external)["sets"] if external else {},
        threshold=evidence.spec.threshold,
        champion_threshold=compared.other_threshold,
        positive=evidence.spec.positive,
        maps_trusted=maps_trusted,
    )
    return Review(page, groups, maps_trusted)


def _a_film_with_the_finding(evidence: Evidence, workspace: Path) -> "np.ndarray":
    """The first test film that has it, uint8 (S, S), as the model sees it."""
    from openmed.data.images import resize_film

    has = evidence.test["label"] == evidence.spec.positive_index
    film = evidence.test.loc[has, "id"].min()
    source = registry.films_of(workspace).set_index("id").loc[film]
    return resize_film(_decoded(film, source, workspace), evidence.spec.image_size_px)


def _groups(films: "pd.DataFrame", evidence: Evidence, compared: Comparison, workspace: Path) -> list[Group]:
    """Films of each way to disagree, what harms most first."""
    has = films["label"] == evidence.spec.positive_index
    flagged = films["score"] >= evidence.spec.threshold
    if compared.films is None:
        chosen = (
            ("Missed", "miss", has & ~flagged, True),
            ("False alarms", "alarm", ~has & flagged, False),
        )
        models = [("this version", registry.load(f"models:/{registry.MODEL_NAME}/{evidence.version}"))]
    else:
        before = films["score_other"] >= compared.other_threshold
        chosen = (
            ("New misses: the champion flags them", "miss", has & ~flagged & before, True),
            ("New false alarms: the champion passes them", "alarm", ~has & flagged & ~before, False),
            ("Newly found: the champion misses them", "gain", has & flagged & ~before, False),
            ("Newly passed: the champion raises false alarms", "gain", ~has & ~flagged & before, True),
        )
        models = [
            (name, registry.load(f"models:/{registry.MODEL_NAME}/{version}"))
            for name, version in (("this version", evidence.version), ("champion", compared.other))
        ]
    sources = registry.films_of(workspace).set_index("id")
    found = []
    for title, kind, where, lowest_first in chosen:
        some = films[where].sort_values(["score", "id"], ascending=[lowest_first, True])
        cases = _cases(some, evidence.spec.class_names)
        shown = [
            replace(case, pictures=_pictures(case.id, sources.loc[case.id], models, workspace))
            for case in islice(cases, _SHOWN)
        ]
        found.append(Group(title, kind, shown, list(cases)))
    return found


def _cases(films: "pd.DataFrame", class_names: "tuple[str, ...]") -> Iterator[Case]:
    for film in films.itertuples():
        champion = getattr(film, "score_other", math.nan)
        said = None if math.isnan(champion) else float(champion)
        yield Case(film.id, class_names[film.label], float(film.score), said)


def _pictures(
    film: str, source: "pd.Series", models: "list[tuple[str, BaseModel]]", workspace: Path
) -> tuple[tuple[str, bytes], ...]:
    grey = _decoded(film, source, workspace)
    maps = ((name, _picture(grey, _map(model, grey))) for name, model in models)
    return (("film", _picture(grey, None)), *maps)


def _decoded(film: str, source: "pd.Series", workspace: Path) -> "np.ndarray":
    from openmed.data.images import decode_film
    from openmed.data.manifest import film_bytes

    return decode_film(film_bytes(workspace / "data", source["path"], source["sha256"]), f"film {film}")


def _map(model: "BaseModel", grey: "np.ndarray") -> "np.ndarray":
    from openmed.data.images import resize_film
    from openmed.explain.heatmap import explain, methods

    square, primary = resize_film(grey, model.spec.image_size_px), methods(model)[0]
    return explain(model, square[None], model.spec.positive_index, primary)[primary][0]


def _picture(grey: "np.ndarray", heat: "np.ndarray | None") -> bytes:
    import cv2

    from openmed.explain.overlay import encode_jpeg, fitted, overlay

    small = fitted(grey, _PICTURE_PX)
    return encode_jpeg(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB) if heat is None else overlay(small, heat))
