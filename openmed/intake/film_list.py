"""CSV lists of labelled films: a row a film, perhaps several that say the same."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from openmed.archives import place_of
from openmed.dataset.manifest import DECLARED_SPLITS, FILMS_COLUMNS
from openmed.errors import BadInput
from openmed.films.dicom.header import START_BYTES, is_dicom
from openmed.films.images import SUFFIXES
from openmed.intake.readers import file_reader, is_plain, reason_of

SPLIT_NAMES = {name: name for name in DECLARED_SPLITS} | dict.fromkeys(("val", "valid"), "validation")
"""How sources call the declared splits -> what they are here."""


def read_list(
    source: Path, classes: Mapping[str, str], more: Sequence[str] = ()
) -> tuple[list[dict[str, str]], int]:
    """Reads a list of films, each once.

    A list may have several rows for a film, such as one for each box that was drawn in it. They must agree in
    path, label, patient, split and the columns `more`; what they say in others does not matter.

    Args:
        source: The .csv, with the columns path, label, patient and perhaps split, in UTF-8.
        classes: Name of each class in lower case -> name.
        more: Further columns that count, in lower case.

    Returns:
        The rows of the films by column in lower case, with every column of `FILMS_COLUMNS`, the path POSIX
        and below the folder of the list, and `place`, what to call the film in an error; and how many further
        rows say the same.

    Raises:
        BadInput: It is no such list, a row is bad, or two rows of a film contradict each other.
    """
    films: dict[str, dict[str, str]] = {}
    line_of: dict[str, int] = {}
    root, repeated = source.parent.resolve(), 0
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            rows.fieldnames = [column.strip().casefold() for column in rows.fieldnames or ()]
            if missing := {"path", "label", "patient"} - set(rows.fieldnames):
                raise BadInput(f"{source} has no column {min(missing)}: it needs path, label and patient")
            for row in rows:
                cells = _cells(row, root)
                if problem := _problem(cells, root, classes):
                    raise BadInput(f"{source} has {problem} on line {rows.line_num}: correct or remove it")
                path, first = cells["path"], films.get(cells["path"])
                if first is None:
                    line_of[path] = rows.line_num
                    films[path] = cells | {"place": f"the film on line {rows.line_num} of {source}"}
                    continue
                repeated += 1
                if odd := _contradiction(first, cells, more):
                    raise BadInput(
                        f"{source} says two things of one film in the column {odd}, on lines "
                        f"{line_of[path]} and {rows.line_num}: correct or remove one"
                    )
    except (OSError, RuntimeError, ValueError, csv.Error) as error:
        raise BadInput(f"{source} cannot be read as CSV in UTF-8: {reason_of(error)}") from None
    return list(films.values()), repeated


def _cells(row: Mapping[str, str | None], root: Path) -> dict[str, str]:
    texts = {column: (text or "").strip() for column, text in row.items() if isinstance(text, str | None)}
    cells = dict.fromkeys(FILMS_COLUMNS, "") | {str(column): text for column, text in texts.items()}
    # The path becomes POSIX, and relative to the folder of the list where it lies there.
    path = cells["path"].replace("\\", "/")
    if path.startswith("/") and Path(path).is_relative_to(root):
        path = Path(path).relative_to(root).as_posix()
    return cells | {"path": PurePosixPath(path).as_posix() if path else ""}


def _problem(cells: dict[str, str], root: Path, classes: Mapping[str, str]) -> str:
    """Says what is wrong with a line. Its content is not repeated: it may hold a patient's name."""
    path = cells["path"]
    if path.startswith("/") or PureWindowsPath(path).drive:
        return "an absolute path that leads out of the folder of the list, below which all films must lie,"
    if not path or not is_plain(path) or not (root / path).resolve().is_relative_to(root):
        return "a path that leads out of the folder of the list"
    if not Path(place_of(str(root / path)).file).is_file():
        return "a file that is not there"
    start = file_reader(root / path, "a film of the list").start(START_BYTES)
    if Path(path).suffix.lower() not in SUFFIXES and not is_dicom(start):
        return f"a file that is none of {', '.join(SUFFIXES)}"
    if cells["label"].casefold() not in classes:
        return f"a label other than {', '.join(classes.values())}"
    if not cells["patient"]:
        return "no patient"
    if cells["split"] and cells["split"].casefold() not in SPLIT_NAMES:
        return "a split other than train, validation and test"
    return ""


def _contradiction(first: Mapping[str, str], again: Mapping[str, str], more: Sequence[str]) -> str:
    """The first column in which two rows of a film say different things; empty where they agree."""
    for column in (*FILMS_COLUMNS, *more):
        one, other = first.get(column, ""), again.get(column, "")
        if one != other and (column in ("path", "patient") or one.casefold() != other.casefold()):
            return column
    return ""
