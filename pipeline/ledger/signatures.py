"""Signatures under decisions: OpenSSH's, checked against the keys that a change plan lists.

Hides what is signed, and the program that signs and checks, `ssh-keygen -Y` (OpenSSH 8.2 or later). A
signature stands for one decision on one state of the record: it holds for no other version, role, person or
plan, and not again after the champion has changed.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput, ResourceError
from pipeline.ledger import mirror, record, repository
from pipeline.ledger.entry import ADOPTED, MOVES, PROMOTED, RELEASED, REPAIRED, RESTORED, Entry
from pipeline.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAMESPACE = "openmed-approval"
SIGNED_TOO = (RESTORED, ADOPTED, RELEASED, REPAIRED)
"""What is signed where the plan that counts lists keys, beside the yes of a role."""

_GOOD = re.compile(r'Good ".*" signature (?:for (.+) )?with \S+ key (\S+)')
NO_KEY = (
    "the change plan asks for a signature but lists no key: put the line that `echo you@hospital.example "
    "$(cat ~/.ssh/id_ed25519.pub)` prints into its list in protocol.keys of change_plan.yaml, commit, retrain"
)


@dataclass(frozen=True)
class Signer:
    """Who made a signature.

    Attributes:
        name: As the change plan lists the key; None where it lists none.
        key: Fingerprint of the key.
    """

    name: str | None
    key: str

    def content(self) -> dict[str, str]:
        """Returns what an entry says of it."""
        return {"key": self.key} | ({"signer": self.name} if self.name else {})

    def __str__(self) -> str:
        return (
            f"{self.name}, key {self.key}" if self.name else f"key {self.key}, which the plan does not list"
        )


@dataclass(frozen=True)
class Caller:
    """Who has a decision made, beside who is named in it.

    Attributes:
        logins: What the one who gives the command is logged in as: system or service -> login.
        key: The private key that signs, None for none.
    """

    logins: Mapping[str, str]
    key: Path | None = None

    def content(self) -> dict[str, Any]:
        """Returns what an entry says of it."""
        return {"login": dict(self.logins)}


def approval_text(
    entries: Sequence[Entry], *, version: str, model: str, verdict: str, plan: str, role: str, name: str
) -> str:
    """Returns what is signed with the yes of a role: all that it rests on, and the state of the record.

    Args:
        entries: The record up to this yes.
        version: The version.
        model: Hash of the list of all files of its stored model.
        verdict: What its gates say.
        plan: Hash of its change plan.
        role: The role.
        name: Who says yes in it.
    """
    facts = {"version": version, "model_sha256": model, "verdict": verdict, "plan_sha256": plan}
    return _text(entries, PROMOTED, facts | {"role": role, "name": name})


def decision_text(entries: Sequence[Entry], event: str, version: str, content: Mapping[str, Any]) -> str:
    """Returns what is signed with another decision; the content as `pipeline.ledger.signed` makes it."""
    said = {key: content[key] for key in ("by", "reason", "plan_sha256") if key in content}
    return _text(entries, event, {"version": version, **said})


def _text(entries: Sequence[Entry], event: str, facts: Mapping[str, Any]) -> str:
    move = _last_move(entries)
    state = {
        "champion": move.version if move else None,
        # So that it cannot be used again when the same champion is back.
        "champion_since_entry": move.digest if move else None,
    }
    return (
        json.dumps({"decision": event, **facts, **state}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )


def _last_move(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.event in MOVES), None)


def keys_in_force(entries: Sequence[Entry]) -> list[str]:
    """Returns the keys of the champion's change plan, of all roles, as they were when it was promoted."""
    move = _last_move(entries)
    if move is None:
        return []
    listed = _approval_of(entries, move).content.get("keys", {})
    return [line for lines in listed.values() for line in lines]


def _approval_of(entries: Sequence[Entry], move: Entry) -> Entry:
    """Returns the promotion by which the champion of a move was approved."""
    approved = (each for each in reversed(entries) if each.event == PROMOTED and each.version == move.version)
    return next(approved, move)


def sign(text: str, key: Path) -> str:
    """Signs a text with a private key, or with the agent's key to a public one; may ask for a passphrase.

    Raises:
        BadInput: There is no such key, or it does not sign.
        ResourceError: OpenSSH is not installed.
    """
    if not key.is_file():
        raise BadInput(f"there is no key {key}: `ssh-keygen -t ed25519` makes one")
    return _ssh_keygen(f"{key} does not sign", "sign", "-n", NAMESPACE, "-f", str(key.absolute()), text=text)


def signer(text: str, signature: str, lines: Sequence[str] | None, at: str | None = None) -> Signer:
    """Checks a signature under a text and returns whose it is.

    Args:
        text: What was signed.
        signature: The signature, as OpenSSH writes it.
        lines: The keys that may sign, as in OpenSSH's `allowed_signers`; None takes any key.
        at: When it was made, ISO 8601 in UTC, for keys that hold for some time; None for now.

    Raises:
        BadInput: It is no signature under this text, or by none of these keys.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, allowed = Path(folder) / "signature", Path(folder) / "allowed_signers"
        file.write_text(signature, encoding="utf-8")
        given = ("-n", NAMESPACE, "-s", str(file))
        wrong = "it is no signature under this decision as it stands now: sign again"
        if lines is None:
            return _signer(_ssh_keygen(wrong, "check-novalidate", *given, text=text))
        allowed.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        when = (f"-Overify-time={re.sub(r'[^0-9]', '', at)}",) if at else ()
        listed = ("-f", str(allowed), *when)
        found = _ssh_keygen(
            "it is by a key that the change plan does not list for this",
            "find-principals",
            *listed,
            *given[2:],
        )
        name = found.splitlines()[0].split(",")[0]
        return _signer(_ssh_keygen(wrong, "verify", *listed, "-I", name, *given, text=text))


def _signer(said: str) -> Signer:
    match = _GOOD.search(said)
    if match is None:
        raise ResourceError(f"ssh-keygen says what is not understood: {said[:200]!r}")
    return Signer(match[1], match[2])


def _ssh_keygen(refusal: str, task: str, *arguments: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", task, *arguments],
            # Times in the list of keys and on the command line are then in UTC.
            env=os.environ | {"TZ": "UTC", "LC_ALL": "C.UTF-8"},
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise ResourceError(
            "signatures need ssh-keygen of OpenSSH: install it (apt-get install openssh-client)"
        ) from None
    if done.returncode:
        detail = " ".join((done.stderr or done.stdout).split())[:200]
        raise BadInput(f"{refusal} ({detail or f'ssh-keygen ended with {done.returncode}'})")
    return done.stdout


def check_signed(text: str, signature: str | None, lines: Sequence[str], at: str | None = None) -> Signer:
    """Checks the signature that a decision needs where a plan lists keys.

    Raises:
        BadInput: There is none, no key is listed, or it does not hold.
    """
    if not lines:
        raise BadInput(NO_KEY)
    if not signature:
        raise BadInput("the change plan lists keys: this needs a signature by one of them")
    return signer(text, signature, lines, at)


def countersigned(event: str, version: str, content: dict[str, Any], caller: Caller | None) -> dict[str, Any]:
    """Signs a decision with the caller's key where the plan that counts lists keys; asked without a lock.

    Raises:
        BadInput: There is no key.
    """
    entries = written()
    if not keys_in_force(entries):
        return content
    if caller is None or caller.key is None:
        raise BadInput(
            "the champion's change plan lists keys: sign this on the command line, --key ~/.ssh/id_ed25519"
        )
    return {**content, "signature": sign(decision_text(entries, event, version, content), caller.key)}


def append(
    client: "MlflowClient", entries: Sequence[Entry], event: str, version: str, content: Mapping[str, Any]
) -> Entry:
    """Adds a decision to the record, if it is signed where the plan that counts asks for it."""
    lines = keys_in_force(entries)
    if event in SIGNED_TOO and lines:
        text = decision_text(entries, event, version, content)
        content = {**content, **check_signed(text, content.get("signature"), lines).content()}
    return record.append(client, entries, event, version, content)


def written() -> list[Entry]:
    """Returns the record, whatever the tracking store shows of it."""
    with repository.exclusive(), connect() as client:
        return record.written(mirror.read(client))


def check_entry(entries: Sequence[Entry], entry: Entry, keys: Mapping[str, Sequence[str]]) -> None:
    """Checks the signatures of an entry of the record against the text that it stands for, anew.

    Args:
        entries: The whole record.
        entry: One of them.
        keys: What the change plan of its version lists, role -> keys.

    Raises:
        BadInput: A signature is missing or does not hold, or a plan that needed one was never adopted.
    """
    before, content = entries[: entry.number - 1], entry.content
    if entry.event in SIGNED_TOO and (lines := keys_in_force(before)):
        text = decision_text(before, entry.event, entry.version, content)
        check_signed(text, content.get("signature"), lines, entry.at)
    if entry.event != PROMOTED:
        return
    _check_plan(entries, entry)
    if content.get("keys", {}) != {role: list(lines) for role, lines in keys.items()}:
        raise BadInput(f"the promotion of version {entry.version} was not held against the keys of its plan")
    signatures = content.get("signatures", {})
    for role in keys.keys() | signatures.keys():
        given = signatures.get(role, {})
        text = approval_text(
            before,
            version=entry.version,
            model=content["model_sha256"],
            verdict=content["verdict"],
            plan=content["plan_sha256"],
            role=role,
            name=given.get("by", ""),
        )
        if role in keys:
            check_signed(text, given.get("signature"), keys[role], entry.at)
        else:
            signer(text, given["signature"], None)


def _check_plan(entries: Sequence[Entry], entry: Entry) -> None:
    """Checks that a promotion came with the plan of the champion, or with one adopted since by signature.

    Otherwise a version with a plan that lists no keys would need none.
    """
    before, plan = entries[: entry.number - 1], entry.content.get("plan_sha256")
    move = _last_move(before)
    if move is None or not keys_in_force(before):
        return
    if plan == _approval_of(before, move).content.get("plan_sha256"):
        return
    since = before[move.number :]
    adopted = [each for each in since if each.event == ADOPTED and each.content["plan_sha256"] == plan]
    if not adopted:
        raise BadInput(f"the change plan of version {entry.version} was not adopted before it was promoted")
    check_entry(entries, adopted[-1], {})
