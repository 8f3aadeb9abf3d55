"""The log of scored films: what a version answered to each, kept by the content of the film.

Hides the files: numbered Parquet parts for each version, which are only ever added, and the labels that came
later. Both lie in `scores` below the state folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, sha256_bytes
from pipeline.project import locked

if TYPE_CHECKING:
    import pandas as pd

SCORED, UNUSABLE = "scored", "unusable"


class ScoreLog:
    """What one version answered to films.

    Args:
        home: The state folder.
        version: The version.
    """

    def __init__(self, home: Path, version: str) -> None:
        self.folder = Path(home) / "scores" / f"version-{version}"

    def parts(self) -> list[Path]:
        """Returns the files of the log, the oldest first."""
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def known(self) -> set[str]:
        """Returns the SHA-256 of all films in it."""
        return {digest for part in self.parts() for digest in _read(part, ["sha256"])["sha256"]}

    def append(self, films: "pd.DataFrame") -> Path:
        """Adds films; the caller holds the lock `scores`."""
        parts = self.parts()
        path = self.folder / f"{int(parts[-1].stem) + 1 if parts else 1:08d}.parquet"
        with atomic_path(path) as temporary:
            films.to_parquet(temporary, index=False)
        return path

    def latest(self, films: int, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Returns the films that were scored last, at most so many, the oldest first.

        Args:
            films: The most to return; those that could not be scored do not count.
            columns: The columns to read; default: all.
        """
        import pandas as pd

        wanted, found, count = None if columns is None else [*columns, "status"], [], 0
        for part in reversed(self.parts()):
            table = _read(part, wanted)
            found.append(table[table["status"] == SCORED])
            count += len(found[-1])
            if count >= films:
                break
        if not found:
            return pd.DataFrame(columns=columns)
        return pd.concat(found[::-1], ignore_index=True).iloc[-films:].reset_index(drop=True)


def add_labels(home: Path, source: Path, class_names: Sequence[str]) -> dict[str, int]:
    """Keeps what films turned out to be; a film that was labelled before gets the new label.

    Args:
        home: The state folder.
        source: Folder, zip or list of labelled films, as `openmed data import` takes it. The files are those
            that were scored: films are told by their content.
        class_names: The known classes.

    Returns:
        films (in the source), new, changed.

    Raises:
        BadInput: The source cannot be used, or holds one film under two labels.
    """
    from openmed.data.manifest import ordered_map
    from openmed.data.sources import iter_labelled

    films = list(iter_labelled(source, class_names))
    told: dict[str, str] = {}
    for film, digest in zip(films, ordered_map(lambda film: sha256_bytes(film.reader()), films), strict=True):
        if told.setdefault(digest, film.label) != film.label:
            raise BadInput(
                f"{source} holds one film as {told[digest]} and as {film.label} (SHA-256 {digest[:16]}): "
                "take one of them away"
            )
    with locked("scores"):
        before = labels(home)
        _write_labels(home, before | told)
    new = len(told.keys() - before.keys())
    changed = sum(before.get(digest, label) != label for digest, label in told.items())
    return {"films": len(films), "new": new, "changed": changed}


def labels(home: Path) -> dict[str, str]:
    """Returns what is known of films: SHA-256 -> name of the class."""
    path = _labels_file(home)
    if not path.exists():
        return {}
    table = _read(path, ["sha256", "label"])
    return dict(zip(table["sha256"], table["label"], strict=True))


def _write_labels(home: Path, known: Mapping[str, str]) -> None:
    import pandas as pd

    table = pd.DataFrame({"sha256": list(known), "label": list(known.values())}, dtype=str)
    with atomic_path(_labels_file(home)) as temporary:
        table.to_parquet(temporary, index=False)


def _labels_file(home: Path) -> Path:
    return Path(home) / "scores" / "labels.parquet"


def _read(path: Path, columns: Sequence[str] | None) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} cannot be read ({type(error).__name__}): restore it from the backup"
        ) from None


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Cuts a sequence into parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
