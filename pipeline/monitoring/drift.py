"""Compares the films of a workspace with those of the champion, before anything is trained on them.

This is no stage of dvc.yaml: what it compares with is in the registry and changes with each promotion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import read_json, read_table, sha256_file, write_json, write_text
from pipeline.settings.artifacts import MANIFEST, folder
from pipeline.settings.params import Params, load_params

if TYPE_CHECKING:
    import pandas as pd

    from openmed.monitoring.drift import Shift


@dataclass(frozen=True)
class Comparison:
    """So many films of so many patients against those of the champion."""

    films: int
    patients: int
    shifts: "list[Shift]"

    @property
    def verdict(self) -> str:
        """none, moderate, large or not measured: the worst of the shifts."""
        from openmed.monitoring.drift import verdict

        return verdict(self.shifts)

    def to_json(self) -> dict[str, Any]:
        """Returns plain numbers and text."""
        shifts = [shift.to_json() for shift in self.shifts]
        return {"films": self.films, "patients": self.patients, "verdict": self.verdict, "shifts": shifts}


@dataclass(frozen=True)
class DriftResult:
    """How far the films of a workspace lie from those of the champion.

    `accepted` says whether a large shift was accepted beforehand, `judged` whose verdict counts: that of the
    added films or of the whole version, None where nothing was compared.
    """

    champion: str | None
    accepted: bool
    manifest_sha256: str
    judged: str | None
    sentence: str
    comparisons: Mapping[str, Comparison]

    @property
    def verdict(self) -> str:
        """none, moderate, large, not measured or not compared."""
        return "not compared" if self.judged is None else self.comparisons[self.judged].verdict

    def to_json(self) -> dict[str, Any]:
        """Returns the content of drift.json."""
        about = {"champion": self.champion, "accepted": self.accepted}
        about |= {"manifest_sha256": self.manifest_sha256, "verdict": self.verdict, "judged": self.judged}
        if not self.comparisons:
            return about | {"comparisons": {}, "sentence": self.sentence}
        compared = {name: each.to_json() for name, each in self.comparisons.items()}
        return about | {"sentence": self.sentence, "comparisons": compared}


def check_drift(workspace: Path, *, accept: bool = False) -> DriftResult:
    """Measures how far the films of a workspace, in which `validate` has run, lie from the champion's.

    Both the whole version of the data and the films that are new in it are compared. The new ones are judged
    when there are enough of them (`drift.min_added_films` in params.yaml), else the whole version: a few odd
    films among thousands must not pass unseen, nor must three films stop a run. Writes drift.json and
    drift.html in artifacts/drift.

    Raises:
        BadInput: The shift is large and not accepted beforehand, or validate has not run.
        IntegrityError: The films stored with the champion were changed.
        ResourceError: The registry does not answer.
    """
    from openmed.dataset.profile import profile_films
    from pipeline.registry import champion_profile

    params = load_params(workspace / "params.yaml")
    manifest = read_table(workspace / MANIFEST, needed=("label", "patient", "sha256", "status"))
    new = profile_films(manifest, params.task.classes)
    version, reference = champion_profile()
    judged: str | None = None
    comparisons: dict[str, Comparison] = {}
    if version is not None and reference is not None:
        judged, comparisons = _compared(reference, new, params)
        sentence = _sentence(judged, comparisons[judged], version)
    else:
        missing = "there is no champion" if version is None else f"champion {version} was registered without"
        missing += " yet" if version is None else " its films"
        sentence = f"There is nothing to compare these {len(new)} films with yet: {missing}."
    digest = sha256_file(workspace / MANIFEST)
    result = DriftResult(version, accept, digest, judged, sentence, comparisons)
    _write(workspace, result.to_json(), reference, new)
    if result.verdict == "large" and not accept:
        raise BadInput(
            f"{sentence.rstrip('.')}; see artifacts/drift/drift.html in {workspace} and, if these "
            "films are meant, run again with accept_drift (`openmed data drift --accept`)"
        )
    return result


def restore_drift(workspace: Path, content: dict[str, Any]) -> None:
    """Writes what `check_drift` found on another host into a workspace, page and all; what is there stays.

    Raises:
        BadInput: validate has not run.
        IntegrityError: The films stored with the champion were changed.
        ResourceError: The registry does not answer.
    """
    from openmed.dataset.profile import profile_films
    from pipeline.registry import profile_of

    file = workspace / folder("drift") / "drift.json"
    if file.is_file() and read_json(file) == content:
        return
    params = load_params(workspace / "params.yaml")
    manifest = read_table(workspace / MANIFEST, needed=("label", "patient", "sha256", "status"))
    reference = profile_of(content["champion"]) if content["comparisons"] else None
    _write(workspace, content, reference, profile_films(manifest, params.task.classes))


def _write(
    workspace: Path, content: dict[str, Any], reference: "pd.DataFrame | None", new: "pd.DataFrame"
) -> None:
    from openmed.dataset.profile import added_films
    from pipeline.report.drift_page import build_drift_page

    shown = {} if reference is None else {f"champion {content['champion']}": reference, "new version": new}
    if reference is not None and "added" in content["comparisons"]:
        shown["added films"] = added_films(reference, new)
    target = workspace / folder("drift")
    write_text(target / "drift.html", build_drift_page(content, shown))
    write_json(target / "drift.json", content)


def _compared(
    reference: "pd.DataFrame", new: "pd.DataFrame", params: Params
) -> tuple[str, dict[str, Comparison]]:
    """Returns which films are judged, and the comparisons."""
    from openmed.dataset.profile import added_films, link_patients
    from openmed.monitoring.drift import MIN_PATIENTS, Limits, compare

    settings = params.drift
    limits = {str(name): Limits(each.moderate, each.large) for name, each in settings.limits.items()}

    def compared(films: "pd.DataFrame") -> Comparison:
        shifts = compare(
            reference,
            films,
            limits,
            replicates=settings.replicates,
            confidence=settings.confidence,
            seed=params.run.seed,
        )
        return Comparison(len(films), int(films["patient"].nunique()), shifts)

    reference, new = link_patients(reference, new)
    added = added_films(reference, new)
    comparisons = {"whole": compared(new)}
    if len(added):
        comparisons["added"] = compared(added)
    enough = len(added) >= settings.min_added_films and comparisons["added"].patients >= MIN_PATIENTS
    return "added" if enough else "whole", comparisons


def _sentence(judged: str, compared: Comparison, version: str) -> str:
    subject = f"The {compared.films} {'added ' if judged == 'added' else ''}films"
    shifts, worst = compared.shifts, compared.verdict
    other = f"those of champion {version}"
    if worst == "not measured":
        return f"{subject} could not be compared with {other}: there are too few patients."
    if worst == "none":
        return f"{subject} look like {other}."
    named = [
        f"{shift.aspect} {shift.interval.value:.2f} ({shift.interval.low:.2f} to {shift.interval.high:.2f})"
        for shift in shifts
        if shift.verdict == worst
    ]
    how = "differ too much" if worst == "large" else "differ moderately"
    return f"{subject} {how} from {other}: {', '.join(named)}."
