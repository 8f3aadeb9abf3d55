"""Decisions on versions and the moves of the champion, each written down before it is carried out.

Hides the order of the steps: the entry first, then aliases and tags, then an entry that says so. What a kill
leaves half done is finished by the next decision, whoever makes it; the entry is what counts. Aliases that
were moved by anything else than this module are noticed, because they differ from the record.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openmed.errors import BadInput, IntegrityError
from openmed.files import hashes_below, sha256_bytes, write_bytes, write_text
from pipeline.ledger import record as audit
from pipeline.ledger.record import Entry
from pipeline.settings.plain_text import one_line
from pipeline.settings.project import locked
from pipeline.tracking.store import CHALLENGER, CHAMPION, MODEL_NAME, PREVIOUS, connect
from pipeline.tracking.versions import address_of, aliases, file_address, find

if TYPE_CHECKING:
    from mlflow import MlflowClient

_Key = TypeVar("_Key")

REVIEWS = "reviews"
_MOVES = (audit.PROMOTED, audit.RESTORED)
_DECISIONS = (*_MOVES, audit.REJECTED)


def history(version: str | None = None) -> list[Entry]:
    """Returns the record, of one version or the whole, after checking that it is unbroken.

    Raises:
        IntegrityError: The record was changed.
    """
    # Under the lock: between an entry and its head the record looks broken.
    with locked("record"), connect() as client:
        entries = audit.read(client)
    return [entry for entry in entries if version in (None, entry.version)]


def last_decision(version: str) -> Entry | None:
    """Returns what was decided on a version last: an entry promoted, restored or rejected."""
    return next((entry for entry in reversed(history(version)) if entry.event in _DECISIONS), None)


def champion() -> str | None:
    """Returns the version that is live, None when there is none.

    Raises:
        IntegrityError: The alias is not where the record says, or the record was changed.
    """
    with locked("record"), connect() as client:
        entries = audit.read(client)
        settled, pending = _settled(entries), _pending(entries)
        now = aliases().get(CHAMPION)
    if now != settled and not (pending and now == pending.version):
        raise _moved_outside(now, settled)
    return now


def first_champion() -> str | None:
    """Returns the version that was promoted first, None before any was."""
    return next((entry.version for entry in history() if entry.event == audit.PROMOTED), None)


def record_registration(client: "MlflowClient", version: str, content: Mapping[str, Any]) -> None:
    """Writes down that a version was registered and with what; once, however often it is called."""
    with locked("record"):
        entries = audit.read(client)
        if not any(entry.event == audit.REGISTERED and entry.version == version for entry in entries):
            audit.append(client, entries, audit.REGISTERED, version, content)


def reject(version: str, *, by: str, reason: str) -> Entry:
    """Turns a version down; repeated by the same person it only finishes what a kill has left.

    Raises:
        BadInput: There is no such version, or it is the champion.
    """
    with _deciding() as (client, entries):
        find(client, version)
        if _settled(entries) == version:
            raise BadInput(f"version {version} is the champion: roll back instead of rejecting it")
        entry = next((found for found in reversed(entries) if found.version == version), None)
        if entry is None or entry.event != audit.REJECTED or entry.content["by"] != by:
            entry = audit.append(client, entries, audit.REJECTED, version, {"by": by, "reason": reason})
        _set_tags(client, entry)
        if aliases().get(CHALLENGER) == version:
            client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)
    return entry


def keep_review(
    version: str, page: str, pictures: Mapping[_Key, bytes], content: Mapping[str, Any]
) -> tuple[str, dict[_Key, str]]:
    """Stores what reviewers decide on beside the evidence, and writes down that it was shown.

    Args:
        version: The version it is about.
        page: HTML.
        pictures: Key -> JPEG, for a page that shows them from where they are stored.
        content: What it says, in short.

    Returns:
        Where a person can open the page, and key -> where a browser finds each picture; no pictures where
        no server shows them.
    """
    names = {key: f"{sha256_bytes(data)[:12]}.jpeg" for key, data in pictures.items()}
    page_name = f"{sha256_bytes(page.encode())[:12]}.html"
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / page_name, page)
        for key, data in pictures.items():
            write_bytes(Path(folder) / names[key], data)
        hashes = {f"{REVIEWS}/{name}": digest for name, digest in hashes_below(Path(folder)).items()}
        with connect(adds_files=True) as client:
            client.log_artifacts(find(client, version).run_id, folder, REVIEWS)
    path = f"{REVIEWS}/{page_name}"
    said = {**content, "path": path, "sha256": hashes.pop(path), "pictures": hashes}
    with _deciding() as (client, entries):
        audit.append(client, entries, audit.SHOWN, version, said)
    addresses = {key: file_address(version, f"{REVIEWS}/{name}") for key, name in names.items()}
    return address_of(version, path), {key: found for key, found in addresses.items() if found}


def adopt(version: str, *, by: str, reason: str, plan_sha256: str) -> Entry:
    """Makes the change plan that came with a version one that counts from now on.

    Raises:
        BadInput: There is no such version.
    """
    with _deciding() as (client, entries):
        find(client, version)
        content = {"by": by, "reason": reason, "plan_sha256": plan_sha256}
        return audit.append(client, entries, audit.ADOPTED, version, content)


def hold(version: str, *, by: str, reason: str) -> Entry:
    """Puts a version on hold: it answers no new films and cannot become the champion until it is released.

    A version that is on hold already keeps the entry that put it there.

    Raises:
        BadInput: There is no such version.
    """
    with _deciding() as (client, entries):
        find(client, version)
        if (standing := _standing_hold(entries, version)) is not None:
            return standing
        return audit.append(client, entries, audit.HELD, version, {"by": by, "reason": reason})


def release(version: str, *, by: str, reason: str) -> Entry:
    """Takes a version off hold.

    Raises:
        BadInput: There is no such version, or it is not on hold.
    """
    with _deciding() as (client, entries):
        find(client, version)
        if _standing_hold(entries, version) is None:
            raise BadInput(f"version {version} is not on hold: there is nothing to release")
        return audit.append(client, entries, audit.RELEASED, version, {"by": by, "reason": reason})


def on_hold() -> dict[str, Entry]:
    """Returns the versions on hold, each with the entry that put it there."""
    entries = history()
    found = {entry.version: _standing_hold(entries, entry.version) for entry in entries}
    return {version: entry for version, entry in found.items() if entry is not None}


def move_champion(
    version: str, *, event: str, content: Mapping[str, Any], expected: str | None, previous: str | None
) -> Entry:
    """Makes a version the champion, if the champion is still the one that the decision was about.

    Args:
        version: The new champion.
        event: audit.PROMOTED or audit.RESTORED.
        content: Who decided (`by`), why, and on what evidence.
        expected: The champion that the decision was about; None for none.
        previous: The version to roll back to from now on; None for none.

    Raises:
        BadInput: There is no such version, it is on hold, or the champion is another one by now.
        IntegrityError: The record was changed, or an alias moved outside of it.
    """
    with _deciding() as (client, entries):
        find(client, version)
        now = _settled(entries)
        if now != expected:
            raise BadInput(
                f"the champion is {_spoken(now)} by now, not {_spoken(expected)}: compare {version} again"
            )
        if (standing := _standing_hold(entries, version)) is not None:
            raise BadInput(
                f"version {version} is on hold ({standing.content['reason']}): release it first, with "
                "`openmed registry release`"
            )
        content = {**content, "previous": previous, "replaced": now}
        entry = audit.append(client, entries, event, version, content)
        _carry_out(client, [*entries, entry], entry)
    return entry


def finish() -> None:
    """Finishes a move that was cut off; raises IntegrityError when an alias moved outside of the record."""
    with _deciding():
        pass


def repair(*, by: str, reason: str) -> Entry:
    """Puts the aliases back to where the record says, and writes down what was found.

    Raises:
        BadInput: Nothing is wrong, or there was never a champion.
        IntegrityError: The record itself was changed.
    """
    by, reason = one_line(by, "the name"), one_line(reason, "the reason")
    with locked("record"), connect() as client:
        entries = audit.read(client)
        wanted = next((entry for entry in reversed(entries) if entry.event in _MOVES), None)
        found = {alias: aliases().get(alias) for alias in (CHAMPION, PREVIOUS)}
        if wanted is None:
            raise BadInput("the record knows no champion: promote a version instead")
        if found == {CHAMPION: wanted.version, PREVIOUS: wanted.content["previous"]}:
            raise BadInput("the aliases are where the record says: there is nothing to repair")
        content = {"by": by, "reason": reason, "found": found}
        entry = audit.append(client, entries, audit.REPAIRED, wanted.version, content)
        _carry_out(client, [*entries, entry], wanted)
    return entry


def alias_problem(entries: Sequence[Entry]) -> str | None:
    """Says in one sentence how the aliases differ from the record; None when they do not."""
    if pending := _pending(entries):
        return f"the decision of entry {pending.number} was cut off: repeat it, or make the next one"
    wanted = next((entry for entry in reversed(entries) if entry.event in _MOVES), None)
    for alias, version in (
        (CHAMPION, wanted and wanted.version),
        (PREVIOUS, wanted and wanted.content["previous"]),
    ):
        if (now := aliases().get(alias)) != version:
            return str(_moved_outside(now, version, alias))
    return None


@contextmanager
def _deciding() -> Iterator[tuple["MlflowClient", list[Entry]]]:
    """One decision at a time, on a record that is whole and carried out."""
    with locked("record"), connect() as client:
        entries = audit.read(client)
        if pending := _pending(entries):
            entries = [*entries, _carry_out(client, entries, pending)]
        if problem := alias_problem(entries):
            raise IntegrityError(problem)
        yield client, entries


def _settled(entries: Sequence[Entry]) -> str | None:
    """The champion of the last move that was carried out."""
    return next((entry.version for entry in reversed(entries) if entry.event == audit.MOVED), None)


def _pending(entries: Sequence[Entry]) -> Entry | None:
    """The last move, if nothing says that it was carried out."""
    for entry in reversed(entries):
        if entry.event == audit.MOVED:
            return None
        if entry.event in _MOVES:
            return entry
    return None


def _standing_hold(entries: Sequence[Entry], version: str) -> Entry | None:
    own = (each for each in reversed(entries) if each.version == version)
    last = next((each for each in own if each.event in (audit.HELD, audit.RELEASED)), None)
    return last if last is not None and last.event == audit.HELD else None


def _carry_out(client: "MlflowClient", entries: Sequence[Entry], move: Entry) -> Entry:
    """Sets aliases and tags as a move says and writes down that it was done."""
    previous = move.content["previous"]
    if previous is not None:
        client.set_registered_model_alias(MODEL_NAME, PREVIOUS, previous)
    elif PREVIOUS in aliases():
        client.delete_registered_model_alias(MODEL_NAME, PREVIOUS)
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, move.version)
    _set_tags(client, move)
    return audit.append(client, entries, audit.MOVED, move.version, {"by_entry": move.number})


def tags_of(entry: Entry) -> dict[str, dict[str, str]]:
    """Returns the tags that show a decision in MLflow: version -> tag -> value."""
    by, at, said = entry.content["by"], entry.at, entry.content
    if entry.event == audit.PROMOTED:
        tags = {"decision": "promoted", "approved_by": by, "approved_at": at, "comment": said["comment"]}
        return {entry.version: tags}
    if entry.event == audit.REJECTED:
        tags = {"decision": "rejected", "rejected_by": by, "rejected_at": at, "reason": said["reason"]}
        return {entry.version: tags}
    shown = {"by": by, "at": at, "reason": said["reason"]}
    tags = {entry.version: {"decision": "restored", **shown}}
    if said["replaced"] is not None:
        tags[said["replaced"]] = {"decision": "rolled back", "replaced_by": entry.version, **shown}
    return tags


def _set_tags(client: "MlflowClient", entry: Entry) -> None:
    for version, tags in tags_of(entry).items():
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)


def _moved_outside(now: str | None, recorded: str | None, alias: str = CHAMPION) -> IntegrityError:
    return IntegrityError(
        f"the alias {alias} points to {_spoken(now)}, but the record of decisions says {_spoken(recorded)}: "
        "it was moved by something else; put it back with `openmed registry repair`"
    )


def _spoken(version: str | None) -> str:
    return "none" if version is None else f"version {version}"
