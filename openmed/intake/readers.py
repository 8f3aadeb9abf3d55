"""The files of a folder or a zip archive, as readers that extract nothing."""

import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from openmed.archives import place_of, read_stored
from openmed.dataset.manifest import is_inside
from openmed.errors import BadInput
from openmed.files import open_regular
from openmed.films.budgets import MAX_FILE_BYTES
from openmed.intake.unpacking import ARCHIVE_ERRORS, ByteStream, open_entry

_CHUNK_BYTES = 1 << 20
_MOST_ENTRY_BYTES = 512 << 20
_MOST_RATIO, _HARMLESS_BYTES = 200, 1 << 30


@dataclass(frozen=True)
class FilmReader:
    """Reads one film of a source when it is asked to, without extracting anything.

    Attributes:
        place: What to call the film in an error.
        opener: Opens the film's bytes.
    """

    place: str
    opener: Callable[[], ByteStream]

    def __call__(self) -> bytes:
        """Returns the whole content. Raises BadInput as `chunks` does."""
        content = io.BytesIO()  # which gives its content away without a copy
        content.writelines(self.chunks())
        return content.getvalue()

    def start(self, most_bytes: int) -> bytes:
        """Returns the first bytes. Raises BadInput as `chunks` does."""
        return next(self.chunks(most_bytes), b"")

    def chunks(self, most_bytes: int = _CHUNK_BYTES) -> Iterator[bytes]:
        """Yields the content piece by piece.

        BadInput where it cannot be read, is no regular file or is larger than `MAX_FILE_BYTES`.
        """
        count = 0
        try:
            with self.opener() as stream:
                while chunk := stream.read(most_bytes):
                    count += len(chunk)
                    if count > MAX_FILE_BYTES:
                        raise BadInput(f"{self.place} is larger than {MAX_FILE_BYTES >> 20} MiB; no film is")
                    yield chunk
        except (OSError, *ARCHIVE_ERRORS) as error:
            raise BadInput(f"{self.place} cannot be read ({reason_of(error)}): get a whole copy") from None


def folder_files(source: Path) -> list[tuple[str, FilmReader]]:
    """Lists all files below a folder, POSIX path below it and reader; BadInput where one cannot be read."""

    def refuse(error: OSError) -> None:
        # Its name is not told: it may be a patient's.
        raise BadInput(f"{source} or a folder in it cannot be read: {error.strerror}") from None

    paths = [Path(folder, name) for folder, _, names in os.walk(source, onerror=refuse) for name in names]
    return [
        (path.relative_to(source).as_posix(), file_reader(path, f"file {number} of {source} (by name)"))
        for number, path in enumerate(sorted(paths), 1)
    ]


def reason_of(error: Exception) -> str:
    """Says why something cannot be read, without the names that errors quote: they may be a patient's."""
    reason = getattr(error, "strerror", None) or re.split("b?[\"']", str(error))[0].strip()
    return reason or type(error).__name__


def file_reader(path: Path, place: str) -> FilmReader:
    """Returns the reader of one file, or of a film in an archive of another data folder.

    Its name is not used in errors: it may hold a patient's.
    """
    if place_of(str(path)).offset is not None:
        return FilmReader(place, lambda: io.BytesIO(read_stored(str(path))))
    return FilmReader(place, partial(open_regular, path))


def zip_files(source: Path) -> list[tuple[str, FilmReader]]:
    """Lists all files of a zip, path and reader; BadInput where it is damaged or dangerous to unpack."""
    try:
        # Left open: the readers hold it, and it is closed with the last of them.
        archive = zipfile.ZipFile(source)
    except (OSError, *ARCHIVE_ERRORS) as error:
        raise BadInput(f"{source} is not a whole zip archive ({reason_of(error)}): get it again") from None
    entries = archive.infolist()
    for number, entry in enumerate(entries, 1):
        if danger := _danger(entry):
            raise BadInput(f"entry {number} of {source} {danger}: unpack and check it by hand")
    total = sum(entry.file_size for entry in entries)
    if total > max(_MOST_RATIO * source.stat().st_size, _HARMLESS_BYTES):
        raise BadInput(f"{source} would unpack to {total >> 20} MiB, more than {_MOST_RATIO} times its size")
    return [
        (entry.filename, FilmReader(f"entry {number} of {source}", partial(open_entry, archive, entry)))
        for number, entry in enumerate(entries, 1)
        if not entry.is_dir()
    ]


def _danger(entry: zipfile.ZipInfo) -> str:
    """Says what is wrong with a zip entry. Its name is not repeated: it may hold a patient's."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not entry.filename or not is_plain(entry.filename):
        return "has a path that leads out of the archive or cannot be written"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > _MOST_ENTRY_BYTES:
        return f"unpacks to more than {_MOST_ENTRY_BYTES >> 20} MiB"
    return ""


def is_plain(path: str) -> bool:
    """Tells whether a path stays inside and has no control characters or undecodable bytes."""
    return is_inside(path) and not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in path)
