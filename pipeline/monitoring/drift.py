"""Compares the films of a workspace with those of the champion, before anything is trained on them.

This is no stage of dvc.yaml: what it compares with is in the registry and changes with each promotion.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import read_table, sha256_file, write_json, write_text
from pipeline.settings.artifacts import MANIFEST, folder
from pipeline.settings.params import Params, load_params

if TYPE_CHECKING:
    import pandas as pd

    from openmed.monitoring.drift import Shift

NOT_COMPARED = "not compared"


def check_drift(workspace: Path, *, accept: bool = False) -> dict[str, Any]:
    """Measures how far the films of a workspace lie from those of the champion.

    Both the whole version of the data and the films that are new in it are compared. The new ones are judged
    when there are enough of them (`drift.min_added_films` in params.yaml), else the whole version: a few odd
    films among thousands must not pass unseen, nor must three films stop a run. Writes drift.json and
    drift.html in artifacts/drift.

    Args:
        workspace: A checkout in which the stage `validate` has run.
        accept: Go on although the shift is large.

    Returns:
        verdict (none, moderate, large, not measured or not compared), sentence, accepted, judged (added,
        whole or None), champion, manifest_sha256, and comparisons: for added and whole the number of films
        and patients, the verdict and the shifts.

    Raises:
        BadInput: The shift is large and was not accepted, or validate has not run.
        IntegrityError: The films stored with the champion were changed.
        ResourceError: The registry does not answer.
    """
    from pipeline.registry import champion_profile

    workspace = Path(workspace)
    params = load_params(workspace / "params.yaml")
    new = _films(workspace, params)
    version, reference = champion_profile()
    result = {"champion": version, "accepted": accept, "manifest_sha256": sha256_file(workspace / MANIFEST)}
    if reference is None:
        missing = "there is no champion" if version is None else f"champion {version} was registered without"
        missing += " yet" if version is None else " its films"
        result |= {"verdict": NOT_COMPARED, "judged": None, "comparisons": {}}
        result["sentence"] = f"There is nothing to compare these {len(new)} films with yet: {missing}."
    else:
        result |= _compared(reference, new, params, version)
    _write(workspace, result, reference, new)
    if result["verdict"] == "large" and not accept:
        raise BadInput(
            f"{result['sentence'].rstrip('.')}; see artifacts/drift/drift.html in {workspace} and, if these "
            "films are meant, run again with accept_drift (`openmed data drift --accept`)"
        )
    return result


def _films(workspace: Path, params: Params) -> "pd.DataFrame":
    from openmed.dataset.profile import profile_films

    manifest = read_table(workspace / MANIFEST, needed=("label", "patient", "sha256", "status"))
    return profile_films(manifest, params.task.classes)


def _compared(reference: "pd.DataFrame", new: "pd.DataFrame", params: Params, version: str) -> dict[str, Any]:
    from openmed.dataset.profile import added_films, link_patients
    from openmed.monitoring.drift import MIN_PATIENTS, Limits, compare, verdict

    settings = params.drift
    options = {
        "limits": {name: Limits(found.moderate, found.large) for name, found in settings.limits.items()},
        "replicates": settings.replicates,
        "confidence": settings.confidence,
        "seed": params.run.seed,
    }
    reference, new = link_patients(reference, new)
    added = added_films(reference, new)
    found = {"whole": (new, compare(reference, new, **options))}
    if len(added):
        found["added"] = (added, compare(reference, added, **options))
    enough = len(added) >= settings.min_added_films and added["patient"].nunique() >= MIN_PATIENTS
    judged = "added" if enough else "whole"
    films, shifts = found[judged]
    subject = f"The {len(films)} added films" if enough else f"The {len(films)} films"
    return {
        "verdict": verdict(shifts),
        "judged": judged,
        "sentence": _sentence(subject, shifts, verdict(shifts), version),
        "comparisons": {
            name: {
                "films": len(table),
                "patients": int(table["patient"].nunique()),
                "verdict": verdict(measured),
                "shifts": [shift.to_json() for shift in measured],
            }
            for name, (table, measured) in found.items()
        },
    }


def _sentence(subject: str, shifts: "list[Shift]", worst: str, version: str) -> str:
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


def _write(
    workspace: Path, result: dict[str, Any], reference: "pd.DataFrame | None", new: "pd.DataFrame"
) -> None:
    from openmed.dataset.profile import added_films
    from pipeline.report.drift_page import build_drift_page

    target = workspace / folder("drift")
    shown = {} if reference is None else {f"champion {result['champion']}": reference, "new version": new}
    if reference is not None and "added" in result["comparisons"]:
        shown["added films"] = added_films(reference, new)
    write_text(target / "drift.html", build_drift_page(result, shown))
    write_json(target / "drift.json", result)
