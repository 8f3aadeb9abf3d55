"""What the record says stands: the champion, moves that were cut off, holds; and how a move is carried out.

Hides the aliases and tags that show it in MLflow. Aliases that were moved by anything else are noticed,
because they differ from the record.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from openmed.errors import IntegrityError
from pipeline.ledger import mirror, record
from pipeline.ledger.entry import HELD, LOGGED, MOVED, MOVES, PROMOTED, REGISTERED, REJECTED, RELEASED, Entry
from pipeline.settings.variables import variables
from pipeline.tracking.store import CHAMPION, MODEL_NAME, PREVIOUS, connect
from pipeline.tracking.versions import aliases

if TYPE_CHECKING:
    from mlflow import MlflowClient


def last(entries: Sequence[Entry], *events: str, version: str | None = None) -> Entry | None:
    """Returns the latest entry of these events, of one version or of any."""
    return next(
        (each for each in reversed(entries) if each.event in events and version in (None, each.version)), None
    )


def settled(entries: Sequence[Entry]) -> str | None:
    """Returns the champion of the last move that was carried out."""
    moved = last(entries, MOVED)
    return moved.version if moved else None


def pending(entries: Sequence[Entry]) -> Entry | None:
    """Returns the last move, if nothing says that it was carried out."""
    latest = last(entries, MOVED, *MOVES)
    return latest if latest and latest.event in MOVES else None


def standing_hold(entries: Sequence[Entry], version: str) -> Entry | None:
    """Returns the entry that has a version on hold, None where none has."""
    latest = last(entries, HELD, RELEASED, version=version)
    return latest if latest and latest.event == HELD else None


def wanted(entries: Sequence[Entry]) -> dict[str, str | None]:
    """Returns where the record says that the aliases are: alias -> version, None for nowhere."""
    move = last(entries, *MOVES)
    if move is None:
        return {CHAMPION: None, PREVIOUS: None}
    return {CHAMPION: move.version, PREVIOUS: move.content["previous"]}


def alias_problem(entries: Sequence[Entry]) -> str | None:
    """Says in one sentence how the aliases differ from the record; None when they do not."""
    if cut_off := pending(entries):
        return f"the decision of entry {cut_off.number} was cut off: repeat it, or make the next one"
    for alias, version in wanted(entries).items():
        if (now := aliases().get(alias)) != version:
            return str(moved_outside(now, version, alias))
    return None


def steady(read: Callable[[], list[Entry]]) -> tuple[list[Entry], str | None]:
    """Returns the record and what is wrong with the aliases, nobody having decided between both readings."""
    entries = read()
    while (problem := alias_problem(entries)) is not None:
        before, entries = entries, read()
        if entries == before:
            return entries, problem
    return entries, None


def verdict_problem(entries: Sequence[Entry], version: str) -> str | None:
    """Says in one sentence that a champion was not promoted for passing its gates; None when it was."""
    from openmed.gates.gate import PASS

    promoted = last(entries, PROMOTED, version=version)
    verdict = promoted.content["verdict"] if promoted else "nothing"
    if verdict == PASS:
        return None
    return (
        f"the gate of version {version}, the champion, said {verdict}: roll back, or promote another version"
    )


def moved_outside(now: str | None, recorded: str | None, alias: str = CHAMPION) -> IntegrityError:
    """Returns the error for an alias that is not where the record says."""
    return IntegrityError(
        f"the alias {alias} points to {spoken(now)}, but the record of decisions says {spoken(recorded)}: "
        "it was moved by something else; put it back with `openmed registry repair`"
    )


def spoken(version: str | None) -> str:
    """Returns how a sentence names a version that may be none."""
    return "none" if version is None else f"version {version}"


def carry_out(client: "MlflowClient", entries: Sequence[Entry], move: Entry) -> Entry:
    """Sets aliases and tags as a move says and writes down that it was done."""
    known = len(entries)
    set_tags(client, move)
    while True:
        if variables().record_remote:
            # Another host may have finished this move and made others: the aliases follow the last one.
            entries = record.read(client)
        set_aliases(client, entries)
        for entry in entries[known:]:
            if entry.event == MOVED and entry.content["by_entry"] == move.number:
                return entry
        with suppress(record.RecordMoved):
            return record.append(client, entries, MOVED, move.version, {"by_entry": move.number})
        entries = record.read(client)


def set_aliases(client: "MlflowClient", entries: Sequence[Entry]) -> None:
    """Puts the aliases where the record says."""
    for alias, version in wanted(entries).items():
        if version is not None:
            client.set_registered_model_alias(MODEL_NAME, alias, version)
        elif alias in aliases():
            client.delete_registered_model_alias(MODEL_NAME, alias)


def set_tags(client: "MlflowClient", entry: Entry) -> None:
    """Shows a decision in MLflow."""
    for version, tags in tags_of(entry).items():
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)


def tags_of(entry: Entry) -> dict[str, dict[str, str]]:
    """Returns the tags that show a promotion, a rollback or a rejection: version -> tag -> value."""
    by, at = entry.by, entry.at
    if entry.event == PROMOTED:
        comment = entry.content["comment"]
        tags = {"decision": "promoted", "approved_by": by, "approved_at": at, "comment": comment}
        return {entry.version: tags}
    if entry.event == REJECTED:
        tags = {"decision": "rejected", "rejected_by": by, "rejected_at": at, "reason": entry.reason}
        return {entry.version: tags}
    why = {"by": by, "at": at, "reason": entry.reason}
    shown = {entry.version: {"decision": "restored", **why}}
    if (replaced := entry.content["replaced"]) is not None:
        shown[replaced] = {"decision": "rolled back", "replaced_by": entry.version, **why}
    return shown


def history(version: str | None = None) -> list[Entry]:
    """Returns the record, of one version or the whole; IntegrityError when it was changed."""
    with connect() as client:
        entries = record.read(client)
    return [entry for entry in entries if version in (None, entry.version)]


def registration_of(version: str) -> Entry:
    """Returns the entry that says what was registered as a version.

    It is taken from the record alone, whatever the tracking store shows of it.

    Raises:
        IntegrityError: The record was changed, or knows no such version.
    """
    entry = last(_recorded(), REGISTERED, version=version)
    if entry is None:
        raise IntegrityError(f"the record knows no registration of version {version}: register it again")
    return entry


def version_of(model: str) -> str | None:
    """Returns the version that was registered with a stored model, by MLflow's id of it; None for none."""
    registered = (entry for entry in _recorded() if entry.event == REGISTERED)
    return next((entry.version for entry in registered if entry.content.get("model_id") == model), None)


def hold_of(version: str) -> Entry | None:
    """Returns the entry that has a version on hold, None where none has; from the record alone too."""
    return standing_hold(_recorded(), version)


def _recorded() -> list[Entry]:
    if entries := record.written(mirror.NOTHING):
        return entries
    with connect() as client:
        return record.written(mirror.read(client))


def noted_answers(log: str, entries: Sequence[Entry] | None = None) -> list[Entry]:
    """Returns the entries that hold a last hash of a log of answers, the oldest first."""
    known = record.written(mirror.NOTHING) if entries is None else entries
    return [entry for entry in known if entry.event == LOGGED and entry.content["log"] == log]


def champion() -> str | None:
    """Returns the version that is live, None when there is none."""
    with connect() as client:
        entries = record.read(client)
        while True:
            now, recorded, cut_off = aliases().get(CHAMPION), settled(entries), pending(entries)
            if now == recorded or (cut_off and now == cut_off.version):
                return now
            # Another one may have decided between the two readings.
            before, entries = entries, record.read(client)
            if entries == before:
                raise moved_outside(now, recorded)


def recorded_champion() -> tuple[str | None, str | None]:
    """Returns what the record says is live, wherever aliases point, and why it may not answer but for a hold.

    Either is None: there is no champion, or nothing is wrong with it.
    """
    entries, problem = steady(history)
    version = settled(entries)
    return version, problem or (version and verdict_problem(entries, version))


def check_verdict(version: str) -> None:
    """Refuses, by IntegrityError, a champion that was not promoted for passing its gates."""
    if problem := verdict_problem(history(), version):
        raise IntegrityError(problem)


def first_champion() -> str | None:
    """Returns the version that was promoted first, None before any was."""
    return next((entry.version for entry in history() if entry.event == PROMOTED), None)


def on_hold() -> dict[str, Entry]:
    """Returns the versions on hold, each with the entry that put it there."""
    entries = history()
    holds = {entry.version: standing_hold(entries, entry.version) for entry in entries}
    return {version: entry for version, entry in holds.items() if entry is not None}
