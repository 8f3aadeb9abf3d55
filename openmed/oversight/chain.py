"""The chain of a journal: its lines, and whether each goes on where the one before it ends."""

import json
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from openmed.errors import IntegrityError
from openmed.files import sha256_bytes

START = "0" * 64
"""What the first line of all names as the line before it."""

DELETED = "deleted"
"""The event of a line that tells of days that were deleted."""

_REMEDY = "restore it from the backup"


def lines_of(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yields the lines of a file between two positions, without their ends; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        stream.seek(start)
        left = None if end is None else end - start
        for line in stream:
            if left is not None:
                line, left = line[:left], left - len(line[:left])
            if stripped := line.rstrip(b"\n"):
                yield stripped


def end_of(path: Path) -> str:
    """Returns the hash of the last entry of a file."""
    digest = START
    for line in lines_of(path):
        if parsed(line) is not None:
            digest = sha256_bytes(line)
    return digest


def parsed(line: bytes) -> dict[str, Any] | None:
    """Returns the entry in a line, None where it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("previous"), str) else None


def checked(sizes: dict[Path, int], head: str | None) -> Iterator[dict[str, Any]]:
    """Yields the entries of files, the oldest first, each up to a size in bytes.

    The head is the hash of the last line as it was noted, None where that cannot be read. A writer who was
    killed before he noted his lines leaves some after it; one who was killed in a line leaves a line that is
    no entry, over which the chain goes on.

    Raises:
        IntegrityError: The chain is broken, or days were deleted before their time.
    """
    digest: str | None = None
    entry: dict[str, Any] | None = None
    first: str | None = None
    deleted = {START}
    reached = head == START
    for path, size in sizes.items():
        for number, line in enumerate(lines_of(path, end=size), start=1):
            found = parsed(line)
            if found is None:
                continue
            if entry is not None and found["previous"] != digest:
                raise IntegrityError(
                    f"line {number} of {path} does not go on where the lines before it end: "
                    f"one of them was changed, added or removed; {_REMEDY}"
                )
            # An entry is what was written once the line after it, or the head, says so.
            if entry is not None:
                deleted |= _ends_of(entry, path)
                yield entry
            first = found["previous"] if first is None else first
            entry, digest = found, sha256_bytes(line)
            reached = reached or digest == head
    if entry is not None:
        deleted |= _ends_of(entry, next(reversed(sizes)))
    if first is not None and first not in deleted:
        raise IntegrityError(
            f"the first line of {next(iter(sizes))}, or a day before it, was changed or removed; {_REMEDY}"
        )
    if not reached:
        last = next(reversed(sizes), None)
        where = f"the end of {last}" if last else "all of its days"
        raise IntegrityError(
            f"the journal does not end as its head says: {where} or the head was changed or removed; "
            f"{_REMEDY}"
        )
    if entry is not None:
        yield entry


def _ends_of(entry: Mapping[str, Any], path: Path) -> set[str]:
    """The hashes at which the days ended that an entry says were deleted; none for every other entry."""
    if entry.get("event") != DELETED:
        return set()
    kept_from = date.fromisoformat(entry["at"][:10]) - timedelta(days=entry["keep_days"])
    if early := [day for day in entry["days"] if date.fromisoformat(day) >= kept_from]:
        raise IntegrityError(f"{path} tells that {early[0]} was deleted before its time; {_REMEDY}")
    return set(entry["days"].values())
