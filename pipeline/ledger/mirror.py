"""The record of decisions as MLflow shows it: every entry a tag of the version it is about.

The record itself is a git branch; what the store shows is held against it, so that a store that was
rewritten is noticed. Before November 2026 these tags were the record, and from them it is taken over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openmed.errors import IntegrityError
from pipeline.ledger.entry import Entry
from pipeline.tracking.store import ENTRY_TAG, MODEL_NAME, registered_model, search

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEAD_TAG = "audit_head"
_REPAIR = "it was changed by something else; `openmed registry repair` writes it anew"


@dataclass(frozen=True)
class Mirror:
    """What the store shows.

    Attributes:
        head: Hash of the entry that was shown last, None for none.
        entries: Number, version and text of each entry that is shown, in this order.
    """

    head: str | None
    entries: tuple[tuple[int, str, str], ...]


NOTHING = Mirror(None, ())
"""What an empty store shows."""


def read(client: "MlflowClient") -> Mirror:
    """Reads all that the store shows of the record."""
    model = registered_model(client)
    if model is None:
        return NOTHING
    shown = [
        (int(match[1]), str(version.version), text)
        for version in search(client, f"name = '{MODEL_NAME}'")
        for tag, text in version.tags.items()
        if (match := ENTRY_TAG.fullmatch(tag))
    ]
    return Mirror(model.tags.get(HEAD_TAG), tuple(sorted(shown)))


def check(mirror: Mirror, entries: Sequence[Entry], *, complete: bool = False) -> None:
    """Holds what the store shows against the record.

    Args:
        mirror: What it shows.
        entries: The record.
        complete: Whether the last entries have to be shown too: a kill leaves them out until the next
            decision.

    Raises:
        IntegrityError: They differ; the sentence names the first entry that does.
    """
    if len(entries) > 1 and mirror == NOTHING:
        raise IntegrityError(
            f"the record has {len(entries)} entries and the tracking store shows none: restore the store "
            "from its backup, or begin a new record: `git branch -m openmed-record openmed-record-old`"
        )
    for position, (number, version, text) in enumerate(mirror.entries, start=1):
        if number > position:
            raise _missing(entries, position)
        if number > len(entries):
            raise IntegrityError(
                f"the tracking store shows entry {number}, which the record lacks: it is forged, or hosts "
                "that share the store do not share the record; see OPENMED_RECORD_REMOTE"
            )
        entry = entries[number - 1]
        if number < position or (version, text) != (entry.version, entry.to_text()):
            raise IntegrityError(f"{_named(entry)} was changed in the tracking store: {_REPAIR}")
    digests = {entry.digest: entry.number for entry in entries}
    shown, last = len(mirror.entries), digests.get(mirror.head or "", 0)
    if mirror.head is not None and not last:
        raise IntegrityError(f"the tracking store names a last entry that the record lacks: {_REPAIR}")
    # Between the first entry and the store's first word of it a kill may lie, but never more than one entry.
    if last > shown or (len(entries) > 1 and not shown) or (complete and len(entries) > min(last, shown)):
        raise _missing(entries, min(last, shown) + 1 if complete else shown + 1)


def _missing(entries: Sequence[Entry], number: int) -> IntegrityError:
    return IntegrityError(f"{_named(entries[number - 1])} is missing in the tracking store: {_REPAIR}")


def _named(entry: Entry) -> str:
    return f"entry {entry.number} of the record ({entry.event}, version {entry.version})"


def show(client: "MlflowClient", entries: Sequence[Entry]) -> None:
    """Shows the entries that are not shown yet: the last one, and those that a kill has left out."""
    model = registered_model(client)
    head = model.tags.get(HEAD_TAG) if model else None
    shown = next((entry.number for entry in reversed(entries) if entry.digest == head), 0)
    if shown == len(entries):
        return
    for entry in entries[shown:]:
        _tag(client, entry)
    client.set_registered_model_tag(MODEL_NAME, HEAD_TAG, entries[-1].digest)


def restore(client: "MlflowClient", entries: Sequence[Entry]) -> bool:
    """Makes the store show the record and nothing else; tells whether it did not.

    Raises:
        IntegrityError: The store goes on where the record ends: then it is the record that was set back.
    """
    mirror = read(client)
    for number, _, text in mirror.entries:
        if number == len(entries) + 1 and f'"previous":"{entries[-1].digest}"' in text:
            raise IntegrityError(
                f"the record ends with entry {len(entries)}, but the tracking store goes on with {number}: "
                "the branch was set back; restore it from its remote or `git reflog openmed-record`"
            )
    right = {(entry.number, entry.version, entry.to_text()) for entry in entries}
    for number, version, _ in set(mirror.entries) - right:
        client.delete_model_version_tag(MODEL_NAME, version, f"audit.{number:06d}")
    missing = sorted(right - set(mirror.entries))
    for number, _, _ in missing:
        _tag(client, entries[number - 1])
    client.set_registered_model_tag(MODEL_NAME, HEAD_TAG, entries[-1].digest)
    return bool(missing) or len(mirror.entries) > len(right) or mirror.head != entries[-1].digest


def _tag(client: "MlflowClient", entry: Entry) -> None:
    client.set_model_version_tag(MODEL_NAME, entry.version, f"audit.{entry.number:06d}", entry.to_text())
