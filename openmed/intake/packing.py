"""The last step of every import: cleaned films go from files of their own into archives."""

import shutil
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from openmed.archives import pack, read_stored


def pack_rows(
    rows: Sequence[Mapping[str, str]], loose: Path, folder: Path, first: int = 0
) -> list[dict[str, str]]:
    """Packs the films of rows of films.csv into archives below a folder, numbered from `first`.

    They go in the order of their paths, which are made of hashes: that of the source could tell who somebody
    is. The films lie in the folder `loose`, which is used up.

    Returns:
        The rows in that order, each with its new path.
    """
    rows = sorted(rows, key=itemgetter("path"))
    paths = pack(folder, ((row["path"], _taken(loose / row["path"])) for row in rows), first)
    packed = [{**row, "path": path} for row, path in zip(rows, paths, strict=True)]
    shutil.rmtree(loose, ignore_errors=True)
    return packed


def _taken(film: Path) -> bytes:
    content = read_stored(str(film))
    film.unlink()  # so that the disk never holds all films twice
    return content
