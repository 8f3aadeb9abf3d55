"""Where a film's bytes lie: in a file of its own, or with about a thousand others in a tar archive.

The path of a film in an archive names the archive, the offset of its header there and its name:
`films/00003.tar/1536/NORMAL/0a1b2c3d4e5f6071.png`. So one film is read without looking at the others,
and a list of films needs no further column. Archives are POSIX tar without compression; every header has
the same owner, mode and time, so that the same films in the same order are the same bytes.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

from openmed.errors import IntegrityError
from openmed.files import open_regular, sha256_bytes, sync
from openmed.films.budgets import MAX_FILE_BYTES, read_film_file

ARCHIVE_FILMS = 1024
"""Films of a full archive; as few as one in an archive of films that were added."""
ARCHIVE_BYTES = 1 << 30
"""An archive that has grown to as much is full whatever it holds."""
FOLDER = "films"
"""Folder of the archives below a data folder."""
_PACKED = re.compile(rf"((?:.*/)?{FOLDER}/(\d{{5,}})\.tar)/(\d+)/(.+)", re.DOTALL)
_REMEDY = "get the data back with `dvc checkout --force`"


class Place(NamedTuple):
    """Where a film lies.

    Attributes:
        file: Path of the file that holds it.
        offset: Of its header in that file, in bytes; None for a file of its own.
        name: Path that the film has, or would have, as a file of its own.
    """

    file: str
    offset: int | None
    name: str


class FilmState(NamedTuple):
    """What changes when somebody writes to a film, as the file system tells it.

    The place on the disk (with -1 as the offset of a file of its own), time of change and size of the file.
    """

    device: int
    inode: int
    offset: int
    modified_ns: int
    size: int


def place_of(path: str) -> Place:
    """Tells where the film with a path of films.csv lies, whatever folder stands before the path."""
    if packed := _PACKED.fullmatch(path):
        file, _, offset, name = packed.groups()
        return Place(file, int(offset), f"{os.path.dirname(file)}/{name}")  # noqa: PTH120  millions of them
    return Place(path, None, path)


def state_of(path: str) -> FilmState | None:
    """Returns the state of a film; None where its file is not there."""
    place = place_of(path)
    try:
        found = os.stat(place.file)  # noqa: PTH116  a Path for each of millions costs more than the call
    except OSError:
        return None
    offset = -1 if place.offset is None else place.offset
    return FilmState(found.st_dev, found.st_ino, offset, found.st_mtime_ns, found.st_size)


def read_stored(path: str) -> bytes:
    """Reads the bytes of a film.

    Raises:
        OSError: Its own file cannot be read or is larger than `MAX_FILE_BYTES`.
        IntegrityError: Its archive is missing, cut short or damaged where the film begins.
    """
    file, offset, _ = place_of(path)
    if offset is None:
        return read_film_file(Path(path))
    try:
        with open_regular(Path(file)) as stream:
            whole = os.fstat(stream.fileno()).st_size
            stream.seek(offset)
            header = stream.read(tarfile.BLOCKSIZE)
            film = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            if offset + tarfile.BLOCKSIZE + film.size <= whole and film.size <= MAX_FILE_BYTES:
                return stream.read(film.size)
    except OSError as error:
        raise IntegrityError(f"{file} cannot be read: {error.strerror or error}: {_REMEDY}") from None
    except tarfile.HeaderError:
        if len(header) == tarfile.BLOCKSIZE:
            raise IntegrityError(f"{path} is not in its archive: the archive is damaged: {_REMEDY}") from None
    raise IntegrityError(f"{file} is cut short: {_REMEDY}")


def film_bytes(data: Path, path: str, sha256: str) -> bytes:
    """Reads a film of the manifest; IntegrityError where it is gone or has another hash."""
    file = f"{data}/{path}"
    try:
        content = read_stored(file)
    except OSError as error:
        raise IntegrityError(f"{file} cannot be read any more: {error.strerror or error}") from None
    if sha256_bytes(content) != sha256:
        raise IntegrityError(
            f"{file} was changed after it was validated: get it back or run the pipeline again"
        )
    return content


def pack(folder: Path, films: Iterable[tuple[str, bytes]], first: int = 0) -> Iterator[str]:
    """Writes films into archives below a folder, numbered from `first`, and yields the path of each.

    The films are their paths as files of their own, below `FOLDER`, and their bytes. An archive is whole and
    on the disk once the path after its last film, or the end, is reached.
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    films, numbers = iter(films), count(first)
    for film in films:  # each round begins behind the last film of the archive before
        archive = f"{FOLDER}/{next(numbers):05d}.tar"
        yield from _write(folder / archive, archive, chain([film], films))


def number_behind(paths: Iterable[str]) -> int:
    """Returns the number of the first archive behind those that hold some films."""
    return max((int(found[2]) + 1 for path in paths if (found := _PACKED.fullmatch(path))), default=0)


def _write(target: Path, archive: str, films: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    with target.open("wb") as stream:
        for path, content in islice(films, ARCHIVE_FILMS):
            name = path.removeprefix(f"{FOLDER}/")
            stream.write(_header(name, len(content)))
            offset = stream.tell() - tarfile.BLOCKSIZE
            stream.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
            yield f"{archive}/{offset}/{name}"
            if stream.tell() >= ARCHIVE_BYTES:
                break
        # Two empty blocks end an archive, and tar reads by records.
        end = stream.tell() + 2 * tarfile.BLOCKSIZE
        stream.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
    sync(target)


def _header(name: str, size: int) -> bytes:
    """The header of a film, the block that is its own last; a long name has blocks before it."""
    info = tarfile.TarInfo(name)  # whose owner, mode and time are the same for all
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)
