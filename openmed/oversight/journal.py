"""A journal: lines of JSON that are only added, one file a day, in one chain of hashes over all days.

Hides files and locks. Each line holds the SHA-256 of the line before it, across the days too, and the file
`head` names the last, so a line that was changed, added or removed is found (`openmed.oversight.chain`). Who
may write all files can write another journal: the last hash is worth noting elsewhere.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from openmed.errors import IntegrityError, ResourceError
from openmed.files import link_or_copy, sha256_bytes, sync
from openmed.oversight.chain import DELETED, START, checked, end_of, lines_of, parsed

_DAY_FILE = re.compile(r"\d{4}-\d\d-\d\d\.jsonl")
_WAIT_S = 10.0
# A clock that runs ahead writes days of its own, but seldom on so many.
_WITNESSES = 7


@dataclass(frozen=True)
class _Head:
    """The last line: the day of its file, the size of that file in bytes after it, its hash."""

    day: str
    size: int
    digest: str

    def to_bytes(self) -> bytes:
        # Of one length always, so that it is written over at once.
        return f"{self.day:10} {self.size:020d} {self.digest}\n".encode()

    @classmethod
    def of(cls, content: bytes) -> "_Head | None":
        match = re.fullmatch(rb"(\d{4}-\d\d-\d\d| {10}) (\d{20}) ([0-9a-f]{64})\n", content)
        return cls(match[1].decode().strip(), int(match[2]), match[3].decode()) if match else None


_NOTHING = _Head("", 0, START)


class Journal:
    """The journal in a folder, which its owner alone can read. Any number of processes may write at once."""

    def __init__(self, folder: Path, *, wait_s: float = _WAIT_S) -> None:
        self.folder = Path(folder)
        self._wait_s = wait_s

    def append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines, all in one write, and returns when they are on the disk; `at` and `previous` are set.

        Raises:
            ResourceError: They could not be written.
        """
        with self._written(), self._locked() as (descriptor, head):
            self._add(descriptor, head, entries)

    def prepare(self) -> None:
        """Makes the folder; ResourceError where nothing can be written there."""
        with self._written(), self._locked():
            pass

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yields all entries in their order, holding each against the chain.

        Raises:
            IntegrityError: A line is not the one that was written; raised at the next or at the end.
            ResourceError: The files cannot be read, or some were deleted meanwhile.
        """
        with self._written():
            with self._locked() as (_, head):
                sizes = {path: path.stat().st_size for path in self.days()}
            try:
                yield from checked(sizes, None if head is None else head.digest)
            except IntegrityError:
                if all(path.exists() for path in sizes):
                    raise
                raise ResourceError(
                    f"days of {self.folder} were deleted while it was read: read it again"
                ) from None

    def latest(self, *texts: str) -> dict[str, Any] | None:
        """Returns the last entry whose line holds some texts, without checking the chain."""
        wanted = [text.encode() for text in texts]
        with self._written():
            for path in reversed(self.days()):
                lines = [line for line in lines_of(path) if all(text in line for text in wanted)]
                entries = (parsed(line) for line in reversed(lines))
                if (found := next(filter(None, entries), None)) is not None:
                    return found
        return None

    def head(self) -> str:
        """Returns the hash of the last line."""
        with self._written(), self._locked() as (_, head):
            return (head or _NOTHING).digest

    def delete_older(self, keep_days: int) -> list[str]:
        """Deletes the files of days that are more than so many days ago; a line tells of it first.

        Not the clock alone says how long ago that is: the seventh-last day of the journal does too.

        Returns:
            The days that were deleted, such as 2026-01-31.

        Raises:
            ResourceError: It could not be done.
        """
        with self._written(), self._locked() as (descriptor, head):
            days = self.days()
            witness = [date.fromisoformat(path.stem) for path in days[-_WITNESSES:][:1]]
            today = min([datetime.now(UTC).date(), *witness])
            kept_from = (today - timedelta(days=keep_days)).isoformat()
            old = [path for path in days if path.stem < kept_from]
            if old:
                ends = {path.stem: end_of(path) for path in old}
                self._add(descriptor, head, [{"event": DELETED, "days": ends, "keep_days": keep_days}])
                for path in old:
                    path.unlink()
            return [path.stem for path in old]

    def copy_to(self, folder: Path) -> None:
        """Copies the journal as it is now; files of past days, which are not written any more, as links.

        Raises:
            ResourceError: It could not be done.
        """
        with self._written(), self._locked():
            folder.mkdir(mode=0o700, parents=True)
            shutil.copy2(self.folder / "head", folder / "head")
            days = self.days()
            for path in days[:-1]:
                link_or_copy(path, folder / path.name)
            for path in days[-1:]:
                shutil.copy2(path, folder / path.name)

    def days(self) -> list[Path]:
        """Returns the files, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _is_day_file(path))

    def _add(self, descriptor: int, head: _Head | None, entries: Sequence[Mapping[str, Any]]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        head = self._caught_up(head, now[:10])
        # A clock that was put back must not put a line before those that are there.
        day, lines, digest = max(now[:10], head.day), [], head.digest
        for entry in entries:
            content = {"at": now, **entry, "previous": digest}
            lines.append(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())
            digest = sha256_bytes(lines[-1])
        size = _write(self.folder / f"{day}.jsonl", b"".join(line + b"\n" for line in lines))
        os.pwrite(descriptor, _Head(day, size, digest).to_bytes(), 0)

    def _caught_up(self, head: _Head | None, today: str) -> _Head:
        """The head, moved over lines that a writer left who was killed before he could move it."""
        if head is None:
            # Somebody took the head away. A second beginning stays in the chain for ever, and is found.
            return replace(_NOTHING, day=max((path.stem for path in self.days()), default=""))
        paths = [self.folder / f"{head.day}.jsonl"] if head.day else []
        if head.day < today:
            paths += [path for path in self.days() if path.stem > head.day]
        for path in paths:
            start = head.size if path.stem == head.day else 0
            digest = head.digest
            for line in lines_of(path, start):
                if (parsed(line) or {}).get("previous") == digest:
                    digest = sha256_bytes(line)
            if digest != head.digest:
                head = _Head(path.stem, path.stat().st_size, digest)
        return head

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, _Head | None]]:
        """Lets one writer in at a time; gives the open head file and what it says, None where it is damaged.

        The operating system lets go of what a killed process held.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # a file system may know no owners
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
        descriptor = os.open(self.folder / "head", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._wait(descriptor)
            content = os.pread(descriptor, 1024, 0)
            if not content and not self.days():
                content = _NOTHING.to_bytes()
                os.pwrite(descriptor, content, 0)
                os.fsync(descriptor)
            yield descriptor, _Head.of(content)
        finally:
            os.close(descriptor)

    def _wait(self, descriptor: int) -> None:
        until = time.monotonic() + self._wait_s
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ResourceError(
                        f"another process has held {self.folder / 'head'} for {self._wait_s:g} s: end it"
                    ) from None
                time.sleep(0.002)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"{self.folder} cannot be read or written ({error.strerror or error}): "
                "make room there, or give it to the account that runs this"
            ) from None


def _is_day_file(path: Path) -> bool:
    if not _DAY_FILE.fullmatch(path.name):
        return False
    with suppress(ValueError):
        return bool(date.fromisoformat(path.stem))
    return False


def _write(path: Path, data: bytes) -> int:
    """Adds bytes to a file and brings them to the disk; returns its size then."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        # A writer who was killed in a line left it without an end.
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fdatasync(descriptor)
        if not size:
            sync(path.parent)
        return size + len(data)
    finally:
        os.close(descriptor)
