"""The log of scored films: what a version answered to each, kept by the content of the film.

Hides the files: numbered Parquet parts for each version, which are only ever added, and the labels that came
later. Both lie in `scores` below the state folder, those of other hosts below its further `roots`. The films
of one run of `live score` are one batch: they lay in a folder, and nothing tells which of them came first.
"""

import csv
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, sha256_bytes
from pipeline.monitoring.sharing import roots, sharing
from pipeline.settings.project import locked

if TYPE_CHECKING:
    import pandas as pd

SCORED, UNUSABLE = "scored", "unusable"
# Logs of before batches do not tell their runs apart; two parts of one run are far less than this apart.
_SAME_RUN = timedelta(minutes=30)
# A command of seconds does not wait for long behind another.
WAIT_S = 60.0


class ScoreLog:
    """What one version answered to films. All that one object adds is one batch."""

    def __init__(self, home: Path, version: str) -> None:
        self.version = version
        self.folders = [root / "scores" / f"version-{version}" for root in roots(home)]
        self.folder = self.folders[0]
        self._batch = uuid4().hex

    def parts(self) -> list[Path]:
        """Returns the files of the log, host by host, of each the oldest first."""
        return [part for folder in self.folders for part in _numbered(folder)]

    def known(self) -> set[str]:
        """Returns the SHA-256 of all films in it."""
        return {digest for part in self.parts() for digest in _read(part, ["sha256"])["sha256"]}

    def append(self, films: "pd.DataFrame") -> Path:
        """Adds films to the batch of this object; the caller holds the lock `scores`."""
        parts = _numbered(self.folder)
        path = self.folder / f"{int(parts[-1].stem) + 1 if parts else 1:08d}.parquet"
        with atomic_path(path) as temporary:
            films.assign(batch=self._batch).to_parquet(temporary, index=False)
        return path

    def batches(self) -> Iterator[list[Path]]:
        """Yields the files of each batch, the latest batch first; the files of a batch have no order."""
        of_hosts = (_batches(_numbered(folder)) for folder in self.folders)
        for _, batch in heapq.merge(*of_hosts, key=lambda each: each[0], reverse=True):
            yield batch


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.parquet"))


def _batches(parts: Sequence[Path]) -> Iterator[tuple[datetime, list[Path]]]:
    """Yields the batches of one host, the latest first, each with when its last film was scored."""
    batch: list[Path] = []
    ended: datetime | None = None
    later: _Written | None = None
    for part in reversed(parts):
        written = _Written.of(part)
        if ended is not None and not written.with_next(later):
            yield ended, batch
            batch, ended = [], None
        batch.append(part)
        ended = max(ended or written.last, written.last)
        later = written
    if ended is not None:
        yield ended, batch


def read_films(path: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Reads the scored films of one of `ScoreLog.parts`; IntegrityError when it is damaged."""
    table = _read(path, None if columns is None else list(dict.fromkeys([*columns, "status"])))
    return table.loc[table["status"] == SCORED, slice(None) if columns is None else list(columns)]


@dataclass(frozen=True)
class _Written:
    """The batch of a file (empty in logs of before), and when its first and last film were scored."""

    batch: str
    first: datetime
    last: datetime

    @classmethod
    def of(cls, part: Path) -> "_Written":
        table = _read(part, ["scored_at"], optional=["batch"])
        batch = str(table["batch"].iloc[0]) if "batch" in table else ""
        at = table["scored_at"]
        return cls(batch, datetime.fromisoformat(at.min()), datetime.fromisoformat(at.max()))

    def with_next(self, later: "_Written | None") -> bool:
        """Tells whether the next file is of the same batch."""
        if later is None or self.batch or later.batch:
            return later is not None and self.batch == later.batch
        return later.first - self.last < _SAME_RUN


@sharing(needed=False)
def add_labels(home: Path, source: Path, class_names: Sequence[str]) -> dict[str, int]:
    """Keeps what films turned out to be; a film that was labelled before gets the new label.

    The source is a folder, zip or list of labelled films, as `openmed data import` takes it, or the list of
    `openmed live ask` with labels filled in (CSV: sha256, label; rows without a label are passed over). The
    files are those that were scored: films are told by their content.

    Returns:
        films (in the source), new, changed.

    Raises:
        BadInput: The source cannot be used, or holds one film under two labels.
        ResourceError: Other labels are being kept, for a minute or more.
    """
    from openmed.concurrency import ordered_map
    from openmed.intake.sources import list_source

    films = _answered_list(source, class_names)
    if films is None:
        labelled = list_source(source, class_names, patients_from="film").films
        films = list(ordered_map(lambda film: (sha256_bytes(film.reader()), film.label), labelled))
    answers: dict[str, str] = {}
    for digest, label in films:
        if answers.setdefault(digest, label) != label:
            raise BadInput(
                f"{source} holds one film as {answers[digest]} and as {label} (SHA-256 {digest[:16]}): "
                "take one of them away"
            )
    # Not the lock of the scores, which a scoring holds for as long as it lasts.
    with locked("labels", wait_s=WAIT_S):
        before = labels(home)
        _write_labels(home, answers)
    new = len(answers.keys() - before.keys())
    changed = sum(before.get(digest, label) != label for digest, label in answers.items())
    return {"films": len(films), "new": new, "changed": changed}


def _answered_list(source: Path, class_names: Sequence[str]) -> list[tuple[str, str]] | None:
    """The films of a list of hashes that have a label; None where the source is no such list."""
    if Path(source).suffix.lower() != ".csv" or not Path(source).is_file():
        return None
    names = {name.casefold(): name for name in class_names}
    try:
        with Path(source).open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            columns = rows.fieldnames or ()
            if "sha256" not in columns or "path" in columns:
                return None
            answered = []
            for row in rows:
                digest, label = ((row.get(name) or "").strip().casefold() for name in ("sha256", "label"))
                if not re.fullmatch("[0-9a-f]{64}", digest) or (label and label not in names):
                    raise BadInput(
                        f"{source} has no SHA-256, or a label other than {', '.join(class_names)}, "
                        f"on line {rows.line_num}: correct or remove it"
                    )
                if label:
                    answered.append((digest, names[label]))
            return answered
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{source} cannot be read as CSV in UTF-8: {error}") from None


def read_asks(home: Path, version: str) -> "pd.DataFrame":
    """Returns all asks at a version: ask, sha256, probability, sample; one row a film that it could draw."""
    import pandas as pd

    columns = ["ask", "sha256", "probability", "sample"]
    parts = [part for folder in ScoreLog(home, version).folders for part in _numbered(folder / "asks")]
    if not parts:
        empty = pd.DataFrame(columns=columns)
        return empty.astype({"ask": int, "sha256": str, "probability": float, "sample": bool})
    # Hosts number their own asks.
    tables = (_read(part, columns).assign(ask=number) for number, part in enumerate(parts, start=1))
    return pd.concat(tables, ignore_index=True)


def labels(home: Path) -> dict[str, str]:
    """Returns what is known of films: SHA-256 -> name of the class."""
    return {digest: label for digest, (_, label) in _dated_labels(roots(home)).items()}


def _dated_labels(folders: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """SHA-256 -> when a film was labelled last and the label; empty for a time that was not kept."""
    known: dict[str, tuple[str, str]] = {}
    for path in filter(Path.exists, map(_labels_file, folders)):
        table = _read(path, ["sha256", "label"], optional=["at"])
        dated = zip(table["at"] if "at" in table else [""] * len(table), table["label"], strict=True)
        for digest, label in zip(table["sha256"], dated, strict=True):
            known[digest] = max(known.get(digest, label), label)
    return known


def _write_labels(home: Path, answers: Mapping[str, str]) -> None:
    """Adds labels to those that this host keeps; they are later than all that are known of their films."""
    import pandas as pd

    own, known = _dated_labels([Path(home)]), _dated_labels(roots(home))
    for digest, label in answers.items():
        at, before = datetime.now(UTC), known.get(digest, ("", ""))[0]
        if before and before >= at.isoformat(timespec="microseconds"):  # by a clock that runs ahead
            at = datetime.fromisoformat(before) + timedelta(microseconds=1)
        own[digest] = at.isoformat(timespec="microseconds"), label
    columns = {"sha256": list(own), "label": [label for _, label in own.values()]}
    table = pd.DataFrame(columns | {"at": [at for at, _ in own.values()]}, dtype=str)
    with atomic_path(_labels_file(home)) as temporary:
        table.to_parquet(temporary, index=False)


def _labels_file(home: Path) -> Path:
    return Path(home) / "scores" / "labels.parquet"


def _read(path: Path, columns: Sequence[str] | None, optional: Sequence[str] = ()) -> "pd.DataFrame":
    import pandas as pd
    from pyarrow.parquet import read_schema

    try:
        if columns is not None:
            there = set(read_schema(path).names)
            columns = [*columns, *(name for name in optional if name in there)]
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} cannot be read ({type(error).__name__}): restore it from the backup"
        ) from None


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Cuts a sequence into parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
