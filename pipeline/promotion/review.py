"""The page that a reviewer decides on: the verdict, and the films on which two models disagree."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import registry
from pipeline.evaluation.metrics_file import AtSites
from pipeline.promotion.gates.comparison import Against, Comparison
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.subgroups import Subgroup, subgroups
from pipeline.registry.evidence import EXTERNAL_METRICS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from openmed.models.base import BaseModel
    from pipeline.promotion.judgement import Judgement

# With their heat maps, of each group: on the page, and in Airflow beside the question.
_SHOWN, _SHOWN_IN_AIRFLOW = 24, 3
# Three of them fit beside each other in Airflow.
_PICTURE_PX = 220
_OWN = "this version"


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


@dataclass(frozen=True)
class FindingPage:
    """What the page shows of one finding.

    Attributes:
        name: The finding.
        groups: Films of each way to disagree on it, what harms most first.
        subgroups: What groups of films show.
        sites: What test films show at simulated sites.
        site_pictures: Name of a site -> a film as it would give it.
        threshold: The operating point (0..1).
        champion_threshold: That of the champion; None where it was not compared.
        elsewhere: What external sets show, by their names.
        maps_trusted: Whether its heat maps passed their checks.
    """

    name: str
    groups: list[Group]
    subgroups: list[Subgroup]
    sites: AtSites
    site_pictures: Mapping[str, str]
    threshold: float
    champion_threshold: float | None
    elsewhere: Mapping[str, Any]
    maps_trusted: bool


def build_review(
    judged: "Judgement",
    refused: "Sequence[Judgement]",
    evidence: Evidence,
    compared: Mapping[str, Comparison],
    workspace: Path,
) -> Review:
    """Builds the page from the comparison of each finding with the champion and the films of a workspace.

    Raises:
        IntegrityError: A model or a film is not what was registered.
    """
    from openmed.files import read_json
    from pipeline.report.page import confusion_picture, sets_of
    from pipeline.report.render import render

    named = ("explain.json", EXTERNAL_METRICS)
    explained, external = map(evidence.files.find, named)
    checks, sets = read_json(explained) if explained else {}, read_json(external)["sets"] if external else {}
    models, findings = _models(evidence, compared), []
    for own in evidence.each_finding():
        name = own.spec.positive
        trusted = _maps_trusted(checks, name if name != evidence.spec.positive else None)
        findings.append(_finding(own, compared[name], models, workspace, sets_of(sets, name), trusted))
    confusion = evidence.metrics.confusion if len(evidence.spec.class_names) > 2 else None
    page = render(
        "review.html",
        judged=judged,
        refused=refused,
        findings=findings,
        confusion=confusion and confusion_picture(confusion),
        called_rightly=evidence.metrics.called_rightly,
    )
    groups = [group for finding in findings for group in finding.groups]
    return Review(page, groups, all(finding.maps_trusted for finding in findings))


def _models(evidence: Evidence, compared: Mapping[str, Comparison]) -> "dict[str, BaseModel]":
    """The models whose maps are shown, by what they are called on the page."""
    champion = next((each.against.version for each in compared.values() if each.against), None)
    versions = {_OWN: evidence.version, "champion": champion}
    return {
        name: registry.load(f"models:/{registry.MODEL_NAME}/{version}")
        for name, version in versions.items()
        if version is not None
    }


def _maps_trusted(checks: Mapping[str, Any], finding: str | None) -> bool:
    """Whether the maps of a finding passed their checks; those of the first, None, stand at the top."""
    own = checks if finding is None else checks.get("findings", {}).get(finding, {})
    return bool(own) and own["faithfulness"][checks["primary_method"]]["trusted"]


def _finding(
    evidence: Evidence,
    compared: Comparison,
    models: "Mapping[str, BaseModel]",
    workspace: Path,
    elsewhere: Mapping[str, Any],
    maps_trusted: bool,
) -> FindingPage:
    from pipeline.report.site_pictures import site_pictures

    return FindingPage(
        evidence.spec.positive,
        _groups(evidence, compared.against, models, workspace),
        subgroups(evidence, compared),
        evidence.measured.sites["test"],
        site_pictures(_a_film_with_the_finding(evidence, workspace)),
        evidence.spec.operating_point,
        None if compared.against is None else compared.against.threshold,
        elsewhere,
        maps_trusted,
    )


def _a_film_with_the_finding(evidence: Evidence, workspace: Path) -> "np.ndarray":
    """The first test film that has it, uint8 (S, S), as the model sees it."""
    from openmed.films.images import resize_film

    has = evidence.test["label"] == evidence.spec.positive_index
    film = evidence.test.loc[has, "id"].min()
    source = registry.films_of(workspace).set_index("id").loc[film]
    return resize_film(_decoded(film, source, workspace), evidence.spec.image_size_px)


def _groups(
    evidence: Evidence, champion: Against | None, models: "Mapping[str, BaseModel]", workspace: Path
) -> list[Group]:
    """Films of each way to disagree on the finding, what harms most first."""
    films = evidence.test if champion is None else champion.films
    sources, finding = registry.films_of(workspace).set_index("id"), evidence.spec.positive
    several, groups = len(evidence.spec.findings) > 1, []
    # A film may be shown for several findings, each with maps of its own.
    of_which = f", {finding}" if several else ""
    drawn = {f"{name}{of_which}": models[name] for name in models if name == _OWN or champion is not None}
    for title, kind, where, lowest_first in _ways(films, evidence, champion):
        some = films[where].sort_values(["score", "id"], ascending=[lowest_first, True])
        cases = _cases(some, evidence.spec.class_names)
        shown = [
            replace(case, pictures=_pictures(case.id, sources.loc[case.id], drawn, finding, workspace))
            for case in islice(cases, _SHOWN)
        ]
        groups.append(Group(f"{finding}: {title}" if several else title, kind, shown, list(cases)))
    return groups


def _ways(
    films: "pd.DataFrame", evidence: Evidence, champion: Against | None
) -> "tuple[tuple[str, str, pd.Series, bool], ...]":
    """Title and kind of each group, which films are in it, and whether the lowest score comes first."""
    has = films["label"] == evidence.spec.positive_index
    flagged = films["score"] >= evidence.spec.operating_point
    if champion is None:
        return ("Missed", "miss", has & ~flagged, True), ("False alarms", "alarm", ~has & flagged, False)
    before = films["score_other"] >= champion.threshold
    return (
        ("New misses: the champion flags them", "miss", has & ~flagged & before, True),
        ("New false alarms: the champion passes them", "alarm", ~has & flagged & ~before, False),
        ("Newly found: the champion misses them", "gain", has & flagged & ~before, False),
        ("Newly passed: the champion raises false alarms", "gain", ~has & ~flagged & before, True),
    )


def _cases(films: "pd.DataFrame", class_names: "tuple[str, ...]") -> Iterator[Case]:
    for film in films.itertuples():
        champion = getattr(film, "score_other", math.nan)
        other = None if math.isnan(champion) else float(champion)
        yield Case(film.id, class_names[film.label], float(film.score), other)


def _pictures(
    film: str, source: "pd.Series", models: "Mapping[str, BaseModel]", finding: str, workspace: Path
) -> tuple[tuple[str, bytes], ...]:
    grey = _decoded(film, source, workspace)
    maps = ((name, _picture(grey, _map(model, grey, finding))) for name, model in models.items())
    return (("film", _picture(grey, None)), *maps)


def _decoded(film: str, source: "pd.Series", workspace: Path) -> "np.ndarray":
    from openmed.archives import film_bytes
    from openmed.films.images import decode_film

    return decode_film(film_bytes(workspace / "data", source["path"], source["sha256"]), f"film {film}")


def _map(model: "BaseModel", grey: "np.ndarray", finding: str) -> "np.ndarray":
    from openmed.explain.heatmap import explain, methods
    from openmed.films.images import resize_film

    square, primary = resize_film(grey, model.spec.image_size_px), methods(model)[0]
    return explain(model, square[None], model.spec.class_names.index(finding), primary)[primary][0]


def _picture(grey: "np.ndarray", heat: "np.ndarray | None") -> bytes:
    import cv2

    from openmed.explain.overlay import encode_jpeg, fitted, overlay

    small = fitted(grey, _PICTURE_PX)
    return encode_jpeg(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB) if heat is None else overlay(small, heat))
