"""The record of what was registered and decided: entries in a chain of hashes that shows tampering.

Hides where an entry lies: in a tag of the version it is about, which the store writes whole or not at all.
Each entry holds the hash of the one before it, and the store's head names the last; so a byte that changes,
an entry that goes missing and an entry put in between are all found. Who can rewrite the whole store can
rewrite the whole chain: note the head elsewhere, it is printed with every decision.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from openmed.errors import IntegrityError
from openmed.files import sha256_bytes
from pipeline.tracking.store import ENTRY_TAG, MODEL_NAME, registered_model, search

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HEAD = "audit_head"
_START = "0" * 64

REGISTERED, SHOWN, REJECTED, ADOPTED = "registered", "shown", "rejected", "adopted"
PROMOTED, RESTORED, MOVED, REPAIRED = "promoted", "restored", "moved", "repaired"
HELD, RELEASED = "held", "released"
MOVES = (PROMOTED, RESTORED)
"""What makes a version the champion."""


@dataclass(frozen=True)
class Entry:
    """One thing that was done.

    Attributes:
        number: Place in the chain, from 1.
        at: When, ISO 8601 in UTC.
        event: What was done.
        version: The version it is about.
        content: What it says; JSON.
        previous: Hash of the entry before it.
    """

    number: int
    at: str
    event: str
    version: str
    content: dict[str, Any]
    previous: str

    @property
    def by(self) -> str:
        """Who decided; of a promotion, the people with their roles."""
        return self.content["by"]

    @property
    def reason(self) -> str:
        """Why; of everything that a person decides but a promotion, which has a comment."""
        return self.content["reason"]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON content."""
        return asdict(self)

    def to_text(self) -> str:
        """Returns the one text that stands for this entry."""
        return json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 of the text, 64 hex digits."""
        return sha256_bytes(self.to_text().encode())


def read(client: "MlflowClient") -> list[Entry]:
    """Reads the whole chain and checks it.

    Raises:
        IntegrityError: It is broken; the sentence names the first entry that is not what was written.
    """
    entries = _stored(client)
    head = _head(client)
    # The store may have been cut off between the last entry and the head: then the head is one behind.
    behind = bool(entries) and entries[-1].previous == head
    expected = [entry.previous for entry in entries[1:]] + ([] if behind else [head])
    wrong = [entry.digest != digest for entry, digest in zip(entries, expected, strict=False)]
    if not entries and head != _START:
        raise IntegrityError("the record of decisions is gone: restore the registry from its backup")
    for position, (entry, bad) in enumerate(zip(entries, wrong, strict=False)):
        # An entry that was changed says nothing about the one before it.
        if bad and not any(wrong[position + 1 : position + 2]):
            last = position == len(entries) - 1
            raise IntegrityError(
                f"entry {entry.number} of the record ({entry.event}, version {entry.version}) was changed"
                f"{' or later ones are missing' if last else ''}: restore the registry from its backup"
            )
    if entries and entries[0].previous != _START:
        raise IntegrityError("entry 1 of the record was changed: restore the registry from its backup")
    return entries


def append(
    client: "MlflowClient", entries: Sequence[Entry], event: str, version: str, content: Mapping[str, Any]
) -> Entry:
    """Adds an entry to the chain. The caller holds the lock `record` and has just read `entries`."""
    entry = Entry(
        number=len(entries) + 1,
        at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        event=event,
        version=version,
        content=dict(content),
        previous=entries[-1].digest if entries else _START,
    )
    if _head(client) != entry.previous:
        _set_head(client, entry.previous)
    client.set_model_version_tag(MODEL_NAME, version, f"audit.{entry.number:06d}", entry.to_text())
    _set_head(client, entry.digest)
    return entry


def _stored(client: "MlflowClient") -> list[Entry]:
    entries = []
    for number, (stored, version, text) in enumerate(sorted(_texts(client)), start=1):
        if stored != number:
            problem = "is missing" if stored > number else "is there twice"
            raise IntegrityError(
                f"entry {min(stored, number)} of the record {problem}: restore the registry from its backup"
            )
        entry = _parsed(text)
        if entry is None or (entry.number, entry.version) != (number, version):
            raise IntegrityError(
                f"entry {number} of the record (version {version}) was changed: "
                "restore the registry from its backup"
            )
        entries.append(entry)
    return entries


def _texts(client: "MlflowClient") -> Iterator[tuple[int, str, str]]:
    for version in search(client, f"name = '{MODEL_NAME}'"):
        for tag, text in version.tags.items():
            if match := ENTRY_TAG.fullmatch(tag):
                yield int(match[1]), str(version.version), text


def _parsed(text: str) -> Entry | None:
    try:
        entry = Entry(**json.loads(text))
    except (TypeError, ValueError):
        return None
    return entry if entry.to_text() == text else None


def _head(client: "MlflowClient") -> str:
    model = registered_model(client)
    return _START if model is None else model.tags.get(_HEAD, _START)


def _set_head(client: "MlflowClient", digest: str) -> None:
    client.set_registered_model_tag(MODEL_NAME, _HEAD, digest)
