"""The story of a version in sentences, a line each, as the record of decisions tells it."""

from collections.abc import Callable

from pipeline.ledger import record as audit
from pipeline.ledger.decisions import history
from pipeline.ledger.record import Entry
from pipeline.settings.plain_text import plain
from pipeline.tracking.versions import get_version


def story(version: str) -> list[tuple[str, str]]:
    """Returns when and what happened to a version, the oldest first.

    Raises:
        BadInput: There is no such version.
        IntegrityError: The record was changed.
    """
    get_version(version)
    told = []
    for entry in history():
        if entry.version == version and entry.event in _SENTENCES:
            told.append((entry.at, plain(_SENTENCES[entry.event](entry))))
        elif entry.content.get("replaced") == version:
            told.append(
                (entry.at, plain(f"version {entry.version} took its place, by {entry.content['by']}"))
            )
    return told


def _registered(entry: Entry) -> str:
    said = entry.content
    measured = ", ".join(f"{name} {said[name][:5]}" for name in ("auc", "sensitivity", "specificity"))
    return (
        f"registered: {said['architecture']} of retraining {said['run_key']}, started by "
        f"{said['started_by'] or 'the schedule'}, code {said['revision'][:12]}, "
        f"data {said['data_md5'][:12]}; its gates said {said['verdict']} ({measured})"
    )


def _promoted(entry: Entry) -> str:
    said = entry.content
    instead = f"in place of version {said['replaced']}" if said["replaced"] else "as the first champion"
    return f"promoted by {said['by']} {instead}" + (f": {said['comment']}" if said["comment"] else "")


_SENTENCES: dict[str, Callable[[Entry], str]] = {
    audit.REGISTERED: _registered,
    audit.PROMOTED: _promoted,
    audit.REJECTED: lambda entry: f"rejected by {entry.content['by']}: {entry.content['reason']}",
    audit.RESTORED: lambda entry: (
        f"made the champion again by {entry.content['by']}: {entry.content['reason']}"
    ),
    audit.SHOWN: lambda entry: (
        f"shown for review: {entry.content['verdict']}, against "
        + (f"champion {entry.content['champion']}" if entry.content["champion"] else "no champion")
    ),
    audit.ADOPTED: lambda entry: (
        f"its change plan was adopted by {entry.content['by']}: {entry.content['reason']}"
    ),
    audit.HELD: lambda entry: f"put on hold by {entry.content['by']}: {entry.content['reason']}",
    audit.RELEASED: lambda entry: f"taken off hold by {entry.content['by']}: {entry.content['reason']}",
    audit.REPAIRED: lambda entry: (
        f"its alias was put back by {entry.content['by']}, having been moved outside of the record: "
        f"{entry.content['reason']}"
    ),
}
