"""The record of what was registered and decided: entries in a chain of hashes, on a branch of git.

Each entry holds the hash of the one before it, so a byte that changes, an entry that goes missing and an
entry put in between are all found; and the tracking store shows every entry too, so that who rewrites one of
the two is found by the other. Who can rewrite both can rewrite the whole chain: push the branch to another
machine (OPENMED_RECORD_REMOTE), or have git sign its commits.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from openmed.errors import IntegrityError
from pipeline.ledger import mirror, repository
from pipeline.ledger.entry import Entry
from pipeline.ledger.mirror import Mirror
from pipeline.ledger.repository import RecordMoved
from pipeline.settings.plain_text import plain

if TYPE_CHECKING:
    from mlflow import MlflowClient

_START = "0" * 64


def read(client: "MlflowClient") -> list[Entry]:
    """Reads the whole chain, checks it and holds what the tracking store shows against it.

    Raises:
        IntegrityError: It is broken; the sentence names the first entry that is not what was written.
    """
    # First the store: an entry is shown there after it was written.
    shown = mirror.read(client)
    entries = written(shown)
    mirror.check(shown, entries)
    return entries


def written(shown: Mirror) -> list[Entry]:
    """Reads the chain, whatever the store shows; a record that only the store holds is taken over first."""
    commit, texts = repository.texts()
    if commit is None and shown.entries:
        _take_over(shown)
        _, texts = repository.texts()
    return _chain(texts, "restore the branch from its remote or backup")


def append(
    client: "MlflowClient", entries: Sequence[Entry], event: str, version: str, content: Mapping[str, Any]
) -> Entry:
    """Adds an entry to the chain that was read as `entries`, and shows it in the store.

    Raises:
        RecordMoved: Somebody else has added one since; nothing was written.
    """
    entry = Entry(
        number=len(entries) + 1,
        at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        event=event,
        version=version,
        content=dict(content),
        previous=entries[-1].digest if entries else _START,
    )
    commit, texts = repository.texts()
    if texts[-1:] != [each.to_text() for each in entries[-1:]]:
        raise RecordMoved("the record was added to by somebody else: try again")
    _write(entry, commit)
    mirror.show(client, [*entries, entry])
    return entry


def _write(entry: Entry, parent: str | None) -> str:
    by = f" by {entry.content['by']}" if entry.content.get("by") else ""
    subject = plain(f"{entry.number} {entry.event} version {entry.version}{by}")
    return repository.add(entry.to_text(), subject, entry.at, parent)


def _take_over(shown: Mirror) -> None:
    """Writes a record down that was kept in the store alone; the same commits, whoever does it."""
    remedy = "restore the registry from its backup"
    for position, (number, _, _) in enumerate(shown.entries, start=1):
        if number != position:
            problem = "is missing" if number > position else "is there twice"
            raise IntegrityError(f"entry {min(number, position)} of the record {problem}: {remedy}")
    entries = _chain([text for _, _, text in shown.entries], remedy)
    # The store may have been cut off between the last entry and the head: then the head is one behind.
    if entries[-1].digest != shown.head and entries[-1].previous != shown.head:
        raise IntegrityError(f"later entries than {len(entries)} of the record are missing: {remedy}")
    commit = None
    for entry in entries:
        commit = _write(entry, commit)


def _chain(texts: Sequence[str], remedy: str) -> list[Entry]:
    entries: list[Entry] = []
    for number, text in enumerate(texts, start=1):
        entry = _parsed(text)
        previous = entries[-1].digest if entries else _START
        if entry is None or (entry.number, entry.previous) != (number, previous):
            # An entry that was changed is found by the one after it, which holds its hash.
            changed = number if entry is None or entry.number != number or number == 1 else number - 1
            raise IntegrityError(f"entry {changed} of the record was changed: {remedy}")
        entries.append(entry)
    return entries


def _parsed(text: str) -> Entry | None:
    try:
        entry = Entry(**json.loads(text))
    except (TypeError, ValueError):
        return None
    return entry if entry.to_text() == text else None
