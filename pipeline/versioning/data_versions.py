"""Data versions: films are added, the pointer is committed, retraining is told; and the list of versions.

A data version is a commit of data.dvc. What a reader wants to know of it, the counts, stands in that file
too, so that the list needs neither the films nor the DVC cache.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from openmed.cache.film_store import FilmStore
from openmed.dataset.manifest import FILMS_FILE, measure_films, read_films
from openmed.errors import BadInput
from openmed.files import write_text
from openmed.intake.appending import append_films
from openmed.intake.importing import import_films
from pipeline.settings.params import Params
from pipeline.tools.airflow_client import DATASET, running_airflow
from pipeline.tools.dvc_lock import parse_pointer, read_pointer
from pipeline.tools.git import check_branch, dvc, git, push
from pipeline.tools.terminal import progress
from pipeline.versioning.dataset import own_remote
from pipeline.versioning.site import pseudonyms

POINTER = "data.dvc"


@dataclass(frozen=True)
class DataVersion:
    """One version of the films.

    Attributes:
        revision: Commit that brought it.
        date: When, ISO 8601.
        subject: First line of the commit.
        md5: DVC's hash of the data folder, None where data.dvc of that commit is damaged.
        films: Number of films, None where it was not written down.
        patients: Number of patients, likewise.
        classes: Films of each class, empty where they were not written down.
    """

    revision: str
    date: str
    subject: str
    md5: str | None
    films: int | None
    patients: int | None
    classes: dict[str, int]


def add_version(
    root: Path,
    home: Path,
    source: Path,
    params: Params,
    say: Callable[[str], None],
    *,
    source_name: str = "",
    patients_from: str = "auto",
) -> dict[str, Any]:
    """Adds films to data/, and makes a data version of the result that starts a retraining.

    Every step can be repeated: after a kill, or when the remote or Airflow could not be reached, the
    same call does what is still missing.

    Args:
        root: The checkout.
        home: The state folder.
        source: Folder, zip or CSV list of new films.
        params: The settings.
        say: Told what happens.
        source_name: Name of the hospital or archive that the films come from; may be empty.
        patients_from: One of `openmed.intake.identity.PATIENTS_FROM`.

    Returns:
        added and known (films), revision (None when nothing changed), pushed and announced (bool).

    Raises:
        BadInput: The source cannot be used, too many of its films are unusable, data/ is not as
            committed, the checkout is on no branch, or git refuses.
        ResourceError: The remote or Airflow does not answer.
    """
    data = root / "data"
    if not (data / FILMS_FILE).is_file():
        raise BadInput(f"{data} holds no films yet: get them with `dvc pull data.dvc`, or use `data import`")
    check_branch(root)
    about = {"source_name": source_name, "patients_from": patients_from}
    new, summary, bad = _add_films(root, home, source, params, about)
    say(f"{len(new)} new films ({_counts(new['label'])}), {summary.films - len(new)} were there already")
    for reason, count in summary.withheld.items():
        say(f"{count} of the films: nothing is kept but the reason, {reason}")
    for sentence in summary.recognised.sentences():
        say(sentence)
    if bad:
        say(f"{bad} of the new films are unusable and will be quarantined; see artifacts/validate")
    say("Making the data version")
    dvc(root, "add", "data")
    own_remote(root)
    _describe(root, params)
    done = {"added": len(new), "known": summary.films - len(new), "unusable": bad, "revision": None}
    if not git(root, "status", "--porcelain", "--", POINTER):
        say("Nothing is new: the data stay as they are")
        return done | {"pushed": False, "announced": False}
    pushed = push(root, POINTER, "the films", say)
    subject = f"Add {len(new)} films: {_counts(new['label'])}" if len(new) else "Record the films"
    git(root, "commit", "--quiet", "--message", subject, "--", POINTER)
    done |= {"revision": git(root, "rev-parse", "HEAD"), "pushed": pushed}
    say(f"Data version {done['revision'][:10]}")
    return done | {"announced": _announce(home, done, say)}


def _add_films(
    root: Path, home: Path, source: Path, params: Params, about: dict[str, str]
) -> tuple[pd.DataFrame, Any, int]:
    """Appends the films; returns the new rows, the summary of the import and how many are unusable."""
    classes, data = params.task.classes, root / "data"
    # On the disk of the data, so that films are moved and not copied.
    with tempfile.TemporaryDirectory(prefix=".data.", dir=root) as scratch:
        staging = Path(scratch) / "new"
        summary = import_films(
            source,
            staging,
            class_names=classes,
            pseudonyms=pseudonyms(home),
            every_class=False,
            **about,
        )
        bad = _unusable(staging, home, params)
        if bad > params.validate_.max_quarantined_share * summary.films:
            raise BadInput(
                f"{bad} of the {summary.films} films in {source} are unusable, more than "
                "validate.max_quarantined_share of params.yaml allows: nothing was added"
            )
        new = append_films(staging, data, classes)
    # The version is about to be recorded as good: no film of it may have changed since its import.
    _unusable(data, home, params)
    return new, summary, bad


def _unusable(folder: Path, home: Path, params: Params) -> int:
    """Measures what is not known of the films yet and counts the unusable ones."""
    films = read_films(folder, params.task.classes)
    with FilmStore(home / "films") as store, progress(len(films), "validate") as tick:
        manifest = measure_films(folder, films, store, min_side_px=params.validate_.min_side_px, tick=tick)
    return int((manifest["status"] == "quarantined").sum())


def _describe(root: Path, params: Params) -> None:
    """Writes the counts into data.dvc."""
    films = pd.read_csv(root / "data" / FILMS_FILE, dtype=str, keep_default_na=False)
    counts = films["label"].value_counts()
    about = {"films": len(films), "patients": int(films["patient"].nunique())}
    about["classes"] = {name: int(counts.get(name, 0)) for name in params.task.classes}
    pointer = root / POINTER
    content = read_pointer(pointer)
    if content.get("meta") != about:
        write_text(pointer, yaml.safe_dump(content | {"meta": about}, sort_keys=False))


def _announce(home: Path, done: dict[str, Any], say: Callable[[str], None]) -> bool:
    airflow = running_airflow(home)
    if airflow is None:
        say("No Airflow is running for this project: its next scheduled run takes the new version")
        return False
    airflow.emit(DATASET, {"revision": done["revision"], "films": done["added"]})
    say(f"Airflow at {airflow.url} was told: the retraining starts")
    return True


def log_versions(root: Path) -> list[DataVersion]:
    """Lists the data versions of the current branch, newest first.

    Raises:
        BadInput: This is no git checkout, or data.dvc was never committed.
    """
    lines = git(root, "log", "--format=%H%x09%cI%x09%s", "--", POINTER).splitlines()
    if not lines:
        raise BadInput(f"{root / POINTER} was never committed: there is no data version yet")
    versions = [_version(root, *line.split("\t", 2)) for line in lines]
    return [version for version in versions if version is not None]


def _version(root: Path, revision: str, date: str, subject: str) -> DataVersion | None:
    try:
        text = git(root, "show", f"{revision}:{POINTER}")
    except BadInput:
        return None  # the commit took the pointer away
    try:
        content = parse_pointer(text, f"{POINTER} of {revision}")
    except BadInput:
        return DataVersion(revision, date, subject, None, None, None, {})
    out, meta = content["outs"][0], content.get("meta", {})
    files, films = _count(out.get("nfiles")), _count(meta.get("films"))
    if films is None and files:
        films = files - 1  # films.csv is one of the files
    classes = meta.get("classes")
    classes = classes if isinstance(classes, dict) else {}
    counts = {str(name): _count(count) or 0 for name, count in classes.items()}
    return DataVersion(revision, date, subject, out["md5"], films, _count(meta.get("patients")), counts)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counts(labels: pd.Series) -> str:
    counts = labels.value_counts().sort_index()
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
