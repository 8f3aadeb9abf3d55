"""The decisions on versions: what each demands, and that it is written down before it is carried out.

Hides the order of the steps: the entry first, then aliases and tags, then an entry that says so. What a kill
leaves half done is finished by the next decision, whoever makes it; the entry is what counts.

Each raises BadInput where there is no such version or what it demands is missing, and IntegrityError where
the record was changed or an alias was moved outside of it; then nothing is written.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_file
from pipeline.ledger import mirror, record, repository, signatures
from pipeline.ledger.approval import Approval, Basis, signed
from pipeline.ledger.champion import (
    alias_problem,
    carry_out,
    last,
    noted_answers,
    pending,
    set_aliases,
    set_tags,
    settled,
    spoken,
    standing_hold,
    wanted,
)
from pipeline.ledger.entry import (
    ADOPTED,
    HELD,
    LOGGED,
    MOVES,
    PROMOTED,
    REGISTERED,
    REJECTED,
    RELEASED,
    REPAIRED,
    RESTORED,
    SHOWN,
    SIGNED,
    Entry,
)
from pipeline.ledger.signatures import Caller
from pipeline.settings.variables import variables
from pipeline.tracking.store import CHALLENGER, CHAMPION, MODEL_NAME, PREVIOUS, connect
from pipeline.tracking.versions import aliases, artifact, find

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DECISIONS = (*MOVES, REJECTED)
_PATIENCE_S, _PAUSE_S, _GRACE_S = 60.0, 0.2, 5.0
_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


def _again(decide: Callable[_Asked, _Answer]) -> Callable[_Asked, _Answer]:
    """Decides anew when another host has added to the record meanwhile, for a minute at most."""

    @wraps(decide)
    def retried(*args: _Asked.args, **options: _Asked.kwargs) -> _Answer:
        until: float | None = None
        while True:
            try:
                return decide(*args, **options)
            except record.RecordMoved:
                until = until or time.monotonic() + _PATIENCE_S
                if time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0, _PAUSE_S))

    return retried


@_again
def register(client: "MlflowClient", version: str, content: Mapping[str, Any]) -> None:
    """Writes down that a version was registered and with what; once, however often it is called."""
    with repository.exclusive():
        entries = record.read(client)
        if last(entries, REGISTERED, version=version) is None:
            record.append(client, entries, REGISTERED, version, content)


@_again
def show(version: str, content: Mapping[str, Any]) -> Entry:
    """Writes down what reviewers were shown of a version."""
    with _deciding() as (client, entries):
        return record.append(client, entries, SHOWN, version, content)


def promote(
    version: str,
    *,
    approval: Approval,
    expected_champion: str | None,
    expected_model: str | None,
    judge: Callable[[], Basis],
) -> Entry:
    """Makes a version the champion, and records who let it through.

    Repeating it for the same version and people, after a kill too, changes nothing but what is missing.

    Args:
        version: The version that was reviewed.
        approval: The yes of every role of the version's change plan, each of another person.
        expected_champion: The champion it was compared with, None if there was none.
        expected_model: Hash of the model that was reviewed; None does not bind the decision to one.
        judge: Judges the version as it is now; asked without a lock, since it takes long.

    Raises:
        BadInput: It does not pass its gate now, was rejected, is on hold or lacks an approval, or the
            champion has changed.
        IntegrityError: Its model is not the one that was reviewed.
    """
    with _deciding() as (client, entries):
        find(client, version)
        decided = last(entries, *_DECISIONS, version=version)
        now = settled(entries)
    if decided is not None and decided.event == REJECTED:
        raise BadInput(f"version {version} was rejected by {decided.by}: retrain instead")
    if decided is not None and now == version:
        if decided.event == PROMOTED and decided.content["approvals"] == approval.people:
            return decided
        raise BadInput(f"version {version} is the champion already, by {decided.by}")
    basis = judge()
    basis.check(approval, expected_champion, expected_model)
    return _move(
        version,
        PROMOTED,
        lambda entries: basis.approved(entries, approval),
        expected=expected_champion,
        previous=expected_champion,
    )


def sign(version: str, *, role: str, by: str, caller: Caller, judge: Callable[[], Basis]) -> Entry:
    """Signs the yes of a role with the caller's key, so that whoever promotes the version finds it.

    Args:
        version: The version.
        role: A role of its change plan.
        by: Who says yes in it.
        caller: Who signs; with a key, which may ask for its passphrase.
        judge: Judges the version as it is now.

    Raises:
        BadInput: It does not pass its gate, who signs may not say yes, or the key is none of the plan's.
    """
    name = Approval.of({role: by}, "").people[role]
    basis = judge()
    basis.check_yes({role: name})
    if caller.key is None:
        raise BadInput("a signature needs a key: name it with --key")
    signature = signatures.sign(basis.text(signatures.written(), role, name), caller.key)
    return _keep_signature(basis, role, name, signature, caller)


@_again
def _keep_signature(basis: Basis, role: str, name: str, signature: str, caller: Caller) -> Entry:
    with _deciding() as (client, entries):
        found = basis.check_signer(entries, role, name, signature)
        content = {"by": name, "role": role, "signature": signature, **found.content(), **caller.content()}
        return record.append(client, entries, SIGNED, basis.version, content)


def roll_back(*, by: str, reason: str, check: Callable[[str], None], caller: Caller | None = None) -> Entry:
    """Makes the previous champion the champion again.

    Args:
        by: Who decides.
        reason: Why.
        check: Checks all that the previous champion stands on; asked without a lock, since it takes long.
        caller: Who has it done.

    Raises:
        BadInput: There is no previous champion, or it was rejected since or is on hold.
    """
    content = signed(RESTORED, by=by, reason=reason, caller=caller)
    with _deciding() as (_, entries):
        now, previous = settled(entries), wanted(entries)[PREVIOUS]
        decided = last(entries, *_DECISIONS, version=previous)
    if previous is None or decided is None:
        raise BadInput("there is no previous champion to roll back to: promote another version instead")
    if decided.event == REJECTED:
        raise BadInput(
            f"version {previous}, the previous champion, was rejected by {decided.by}: "
            "promote another version instead"
        )
    check(previous)
    # A second rollback goes one step further back, never forward to the model just taken off.
    further = decided.content["previous"]
    further = None if further == now else further
    full = signatures.countersigned(RESTORED, previous, content, caller)
    return _move(previous, RESTORED, lambda entries: full, expected=now, previous=further)


@_again
def reject(version: str, *, by: str | None, reason: str, caller: Caller | None = None) -> Entry:
    """Turns down a version that is not the champion; once, however often the same person does it."""
    content = signed(REJECTED, by=by, reason=reason, caller=caller)
    with _deciding() as (client, entries):
        find(client, version)
        if settled(entries) == version:
            raise BadInput(f"version {version} is the champion: roll back instead of rejecting it")
        entry = next((each for each in reversed(entries) if each.version == version), None)
        if entry is None or entry.event != REJECTED or entry.by != content["by"]:
            entry = record.append(client, entries, REJECTED, version, content)
        set_tags(client, entry)
        if aliases().get(CHALLENGER) == version:
            client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)
    return entry


@_again
def adopt(version: str, *, by: str, reason: str, caller: Caller | None = None) -> Entry:
    """Makes the change plan that came with a version one that counts, beside the champion's, from now on."""
    from pipeline.settings.plan import PLAN_FILE

    content = signed(ADOPTED, by=by, reason=reason, caller=caller)
    content["plan_sha256"] = sha256_file(artifact(version, PLAN_FILE))
    content = signatures.countersigned(ADOPTED, version, content, caller)
    with _deciding() as (client, entries):
        return signatures.append(client, entries, ADOPTED, version, content)


@_again
def hold(version: str, *, by: str | None, reason: str, caller: Caller | None = None) -> Entry:
    """Puts a version on hold: it answers no new films and cannot become the champion until it is released.

    A version that is on hold already keeps the entry that put it there.
    """
    content = signed(HELD, by=by, reason=reason, caller=caller)
    with _deciding() as (client, entries):
        find(client, version)
        standing = standing_hold(entries, version)
        return standing or record.append(client, entries, HELD, version, content)


@_again
def release(version: str, *, by: str | None, reason: str, caller: Caller | None = None) -> Entry:
    """Takes a version off its hold."""
    content = signed(RELEASED, by=by, reason=reason, caller=caller)
    content = signatures.countersigned(RELEASED, version, content, caller)
    with _deciding() as (client, entries):
        find(client, version)
        if not standing_hold(entries, version):
            raise BadInput(f"version {version} is not on hold: there is nothing to release")
        return signatures.append(client, entries, RELEASED, version, content)


@_again
def note_answers(version: str, *, log: str, head: str, goes_on: bool) -> None:
    """Writes down the last hash of a log of answers, so that one that is cut off later is found; once a day.

    Args:
        version: The champion.
        log: What tells the log from others.
        head: The hash, 64 hex digits.
        goes_on: Whether the log still holds the hash that was written down before.
    """
    with repository.exclusive(), connect() as client:
        entries = record.read(client)
        noted = noted_answers(log, entries)[-1:]
        today = datetime.now(UTC).date().isoformat()
        if not (goes_on and noted and (noted[0].content["head"] == head or noted[0].at[:10] == today)):
            content = {"log": log, "head": head, "goes_on": goes_on}
            record.append(client, entries, LOGGED, version, content)


@_again
def repair(*, by: str, reason: str, caller: Caller | None = None) -> Entry:
    """Puts aliases back that are not where the record says, and writes down where they were."""
    content = signed(REPAIRED, by=by, reason=reason, caller=caller)
    if (champion := wanted(signatures.written())[CHAMPION]) is not None:
        content = signatures.countersigned(REPAIRED, champion, content, caller)
    with repository.exclusive(), connect() as client:
        entries = record.written(mirror.read(client))
        shown_otherwise = bool(entries) and mirror.restore(client, entries)
        move = last(entries, *MOVES)
        now = {alias: aliases().get(alias) for alias in wanted(entries)}
        if not shown_otherwise and now == wanted(entries):
            raise BadInput(
                "the record knows no champion: promote a version instead"
                if move is None
                else "the aliases are where the record says: there is nothing to repair"
            )
        subject = entries[-1] if move is None else move
        entry = signatures.append(client, entries, REPAIRED, subject.version, {**content, "found": now})
        set_aliases(client, entries)
        if move is not None:
            carry_out(client, [*entries, entry], move)
    return entry


@_again
def _move(
    version: str,
    event: str,
    decide: Callable[[Sequence[Entry]], Mapping[str, Any]],
    *,
    expected: str | None,
    previous: str | None,
) -> Entry:
    """Makes a version the champion, if the champion is still the one that the decision was about."""
    with _deciding() as (client, entries):
        now = settled(entries)
        if now != expected:
            raise BadInput(
                f"the champion is {spoken(now)} by now, not {spoken(expected)}: compare {version} again"
            )
        if (standing := standing_hold(entries, version)) is not None:
            raise BadInput(
                f"version {version} is on hold ({standing.reason}): release it first, with "
                "`openmed registry release`"
            )
        content = {**decide(entries), "previous": previous, "replaced": now}
        entry = signatures.append(client, entries, event, version, content)
        carry_out(client, [*entries, entry], entry)
    return entry


@contextmanager
def _deciding() -> Iterator[tuple["MlflowClient", list[Entry]]]:
    """One decision at a time, on a record that is whole and carried out."""
    first_seen: dict[int, float] = {}
    with repository.exclusive(), connect() as client:
        while True:
            entries = record.read(client)
            mirror.show(client, entries)
            if cut_off := pending(entries):
                now = time.monotonic()
                # On this machine nobody is at it, as the lock says; another host has some time to finish.
                if variables().record_remote and now < first_seen.setdefault(cut_off.number, now) + _GRACE_S:
                    time.sleep(_PAUSE_S)
                else:
                    carry_out(client, entries, cut_off)
            elif (problem := alias_problem(entries)) is None:
                break
            elif record.read(client) == entries:
                raise IntegrityError(problem)
        yield client, entries
