"""Atomic writes and hashes: the only way artefacts reach the disk."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from openmed.errors import BadInput, IntegrityError

if TYPE_CHECKING:
    import pandas as pd

_MOST_JSON_BYTES = 256 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that replaces it when the block ends well.

    The file is flushed to the disk before the rename and the folder after it, so that after a
    crash `path` holds either the old content or the new, never a part of either.
    The folder is made when it is missing; the path lies in it, with the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_not_input(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuses, with BadInput, to write a file that is read, whatever links lead to it."""
    sources = [Path(path) for path in inputs if Path(path).exists()]
    for target in map(Path, outputs):
        for source in sources:
            if target.exists() and target.samefile(source):
                raise BadInput(
                    f"{target} is {source}, which is read: choose another name for what is written"
                )


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, indented; NaN and infinities become null."""
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; BadInput where it is missing, is not JSON, or is nested too deeply."""
    try:
        return json.loads(read_regular(path, _MOST_JSON_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except RecursionError:
        raise BadInput(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON: {error}") from None


def read_table(
    path: Path, columns: Sequence[str] | None = None, *, needed: Sequence[str] = (), **options: Any
) -> "pd.DataFrame":
    """Reads a Parquet file that a stage wrote, by default all its columns; options are those of pandas.

    BadInput where it is missing, is no Parquet, or lacks a column that is needed.
    """
    import pandas as pd
    from pyarrow.lib import ArrowException

    from openmed.memory import give_back

    try:
        # Without `pre_buffer` not all bytes of the file are in memory beside the table.
        columns = None if columns is None else list(columns)
        table = pd.read_parquet(path, columns=columns, pre_buffer=False, **options)
        give_back()
        table[[*needed]]
        return table
    except (OSError, ArrowException, ValueError, KeyError, TypeError):
        raise BadInput(f"{path} is missing or unreadable: run the pipeline in this workspace first") from None


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file; OSError for any other, as a pipe or device could keep its reader for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer is not waited for
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Reads a regular file whole; OSError where it cannot be read, is none or is larger.

    Its bytes are counted while reading: what a file system says of a file that grows, or that a program
    feeds, is no limit.
    """
    with open_regular(path) as stream:
        content = stream.read(most_bytes + 1) if os.fstat(stream.fileno()).st_size <= most_bytes else None
    if content is None or len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"Larger than {most_bytes >> 20} MiB", str(path))
    return content


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content as 64 hex digits, in constant memory."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Returns the SHA-256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def hashes_below(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder, by its path below it, in order."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def check_hashes(found: Mapping[str, str], recorded: Mapping[str, str], what: str) -> None:
    """Holds present files against recorded ones, both path -> SHA-256; IntegrityError where one differs."""
    for path in sorted(found.keys() | recorded.keys()):
        if found.get(path) != recorded.get(path):
            problem = (
                "is missing" if path not in found else "was added" if path not in recorded else "was changed"
            )
            raise IntegrityError(f"{path} of {what} {problem}: restore it from the backup")


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, or where the file system knows no links a copy of it."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def sync(path: Path) -> None:
    """Sees a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(content: Any) -> Any:
    """Returns what JSON can say: NaN and infinities as None, tuples as lists."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
