"""Data versions: films are added, the pointer is committed, retraining is told; and the list of versions.

A data version is a commit of data.dvc. What a reader wants to know of it, the counts, stands in that file
too, so that the list needs neither the films nor the DVC cache.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from openmed.cache.film_store import FilmStore
from openmed.dataset.manifest import FILMS_FILE, measure_films, read_films
from openmed.errors import BadInput
from openmed.intake.appending import append_films
from openmed.intake.importing import ImportSummary, import_films
from pipeline.settings.params import Params
from pipeline.settings.yaml_file import parse_yaml
from pipeline.tools.airflow_client import DATASET, running_airflow
from pipeline.tools.dvc_lock import check_pointer, describe
from pipeline.tools.git import check_branch, dvc, git, push
from pipeline.tools.terminal import progress
from pipeline.versioning.dataset import own_remote
from pipeline.versioning.site import pseudonyms

POINTER = "data.dvc"


@dataclass(frozen=True)
class DataVersion:
    """One version of the films: the commit that brought it (date in ISO 8601), and its counts.

    `md5`, DVC's hash of the data folder, is None where data.dvc of that commit is damaged; counts are None or
    empty where they were not written down.
    """

    revision: str
    date: str
    subject: str
    md5: str | None
    films: int | None
    patients: int | None
    classes: dict[str, int]


@dataclass(frozen=True)
class Addition:
    """How many films are new, were there already, and will be quarantined of the new ones.

    The revision is None when nothing changed; where there was a remote or Airflow, it was pushed, announced.
    """

    added: int
    known: int
    unusable: int
    revision: str | None = None
    pushed: bool = False
    announced: bool = False


def add_version(
    root: Path,
    home: Path,
    source: Path,
    params: Params,
    say: Callable[[str], None],
    *,
    source_name: str = "",
    patients_from: str = "auto",
) -> Addition:
    """Adds films to data/, and makes a data version of the result that starts a retraining.

    Every step can be repeated: after a kill, or when the remote or Airflow could not be reached, the
    same call does what is still missing. `say` is told what happens; for the rest see `import_films`.

    Raises:
        BadInput: The source cannot be used, too many of its films are unusable, data/ is not as
            committed, the checkout is on no branch, or git refuses.
        ResourceError: The remote or Airflow does not answer.
    """
    data = root / "data"
    if not (data / FILMS_FILE).is_file():
        raise BadInput(f"{data} holds no films yet: get them with `dvc pull data.dvc`, or use `data import`")
    check_branch(root)
    with _staged(root, home, source, params, source_name, patients_from) as (staging, summary):
        bad = _unusable(staging, home, params)
        if bad > params.validate_.max_quarantined_share * summary.films:
            raise BadInput(
                f"{bad} of the {summary.films} films in {source} are unusable, more than "
                "validate.max_quarantined_share of params.yaml allows: nothing was added"
            )
        new = append_films(staging, data, params.task.classes)["label"]
    # The version is about to be recorded as good: no film of it may have changed since its import.
    _unusable(data, home, params)
    say(f"{len(new)} new films ({_counts(new)}), {summary.films - len(new)} were there already")
    for reason, count in summary.withheld.items():
        say(f"{count} of the films: nothing is kept but the reason, {reason}")
    for sentence in summary.recognised.sentences():
        say(sentence)
    if bad:
        say(f"{bad} of the new films are unusable and will be quarantined; see artifacts/validate")
    return _record(root, home, params, Addition(len(new), summary.films - len(new), bad), new, say)


@contextmanager
def _staged(
    root: Path, home: Path, source: Path, params: Params, source_name: str, patients_from: str
) -> Iterator[tuple[Path, ImportSummary]]:
    """Imports the films beside the data, on their disk, so that films are moved and not copied."""
    with tempfile.TemporaryDirectory(prefix=".data.", dir=root) as scratch:
        staging = Path(scratch) / "new"
        summary = import_films(
            source,
            staging,
            class_names=params.task.classes,
            pseudonyms=pseudonyms(home),
            every_class=False,
            source_name=source_name,
            patients_from=patients_from,
        )
        yield staging, summary


def _record(
    root: Path, home: Path, params: Params, done: Addition, new: pd.Series, say: Callable[[str], None]
) -> Addition:
    """Gives the films to DVC, pushes and commits them, and tells Airflow."""
    say("Making the data version")
    dvc(root, "add", "data")
    own_remote(root)
    write_counts(root, params)
    if not git(root, "status", "--porcelain", "--", POINTER):
        say("Nothing is new: the data stay as they are")
        return done
    pushed = push(root, POINTER, "the films", say)
    subject = f"Add {done.added} films: {_counts(new)}" if done.added else "Record the films"
    git(root, "commit", "--quiet", "--message", subject, "--", POINTER)
    revision = git(root, "rev-parse", "HEAD")
    say(f"Data version {revision[:10]}")
    if (airflow := running_airflow(home)) is None:
        say("No Airflow is running for this project: its next scheduled run takes the new version")
    else:
        airflow.emit(DATASET, {"revision": revision, "films": done.added})
        say(f"Airflow at {airflow.url} was told: the retraining starts")
    return replace(done, revision=revision, pushed=pushed, announced=airflow is not None)


def count_unusable(folder: Path, films: pd.DataFrame, home: Path, params: Params) -> int:
    """Measures what is not known of films yet and counts the unusable ones."""
    with FilmStore(home / "films") as store, progress(len(films), "validate") as tick:
        manifest = measure_films(folder, films, store, min_side_px=params.validate_.min_side_px, tick=tick)
    return int((manifest["status"] == "quarantined").sum())


def _unusable(folder: Path, home: Path, params: Params) -> int:
    return count_unusable(folder, read_films(folder, params.task.classes), home, params)


def write_counts(root: Path, params: Params) -> None:
    """Writes the counts of the films in data/ into data.dvc, which must be there."""
    films = pd.read_csv(root / "data" / FILMS_FILE, dtype=str, keep_default_na=False)
    counts = films["label"].value_counts()
    classes = {name: int(counts.get(name, 0)) for name in params.task.classes}
    describe(
        root / POINTER, {"films": len(films), "patients": films["patient"].nunique(), "classes": classes}
    )


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
    source = f"{POINTER} of {revision}"
    try:
        text = git(root, "show", f"{revision}:{POINTER}")
    except BadInput:
        return None  # the commit took the pointer away
    try:
        content = check_pointer(parse_yaml(text, source), source)
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
