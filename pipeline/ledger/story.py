"""The story of a version in sentences, a line each, as the record of decisions tells it."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.ledger.champion import history
from pipeline.ledger.entry import (
    ADOPTED,
    HELD,
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
from pipeline.ledger.signatures import Signer
from pipeline.settings.plain_text import plain
from pipeline.tracking.versions import get_version


def story(version: str) -> list[tuple[str, str]]:
    """Returns when and what happened to a version, the oldest first.

    Raises:
        BadInput: There is no such version.
        IntegrityError: The record was changed.
    """
    get_version(version)
    lines = []
    for entry in history():
        if entry.version == version and entry.event in _SENTENCES:
            lines.append((entry.at, plain(_SENTENCES[entry.event](entry) + _login(entry))))
        elif entry.content.get("replaced") == version:
            lines.append((entry.at, plain(f"version {entry.version} took its place, by {entry.by}")))
    return lines


def _login(entry: Entry) -> str:
    logins = sorted(entry.content.get("login", {}).items(), reverse=True)
    if started := entry.content.get("started_login"):
        logins = [("system", started)]
    named = [login if where == "system" else f"{where} {login}" for where, login in logins]
    return f" [login {', '.join(named)}]" if named else ""


def _registered(entry: Entry) -> str:
    tags = entry.content
    measured = ", ".join(f"{name} {tags[name][:5]}" for name in ("auc", "sensitivity", "specificity"))
    return (
        f"registered: {tags['architecture']} of retraining {tags['run_key']}, started by "
        f"{tags['started_by'] or 'the schedule'}, code {tags['revision'][:12]}, "
        f"data {tags['data_md5'][:12]}; its gates said {tags['verdict']} ({measured})"
    )


def _shown(entry: Entry) -> str:
    champion = entry.content["champion"]
    against = f"champion {champion}" if champion else "no champion"
    return f"shown for review: {entry.content['verdict']}, against {against}"


def _signer(content: Mapping[str, Any]) -> str:
    return str(Signer(content.get("signer"), content["key"]))


def _promoted(entry: Entry) -> str:
    replaced, comment = entry.content["replaced"], entry.content["comment"]
    instead = f"in place of version {replaced}" if replaced else "as the first champion"
    signed = [
        f"{role} signed by {_signer(given)}" for role, given in entry.content.get("signatures", {}).items()
    ]
    proven = f" ({'; '.join(signed)})" if signed else ""
    return f"promoted by {entry.by} {instead}{proven}" + (f": {comment}" if comment else "")


def _signed(entry: Entry) -> str:
    return f"signed by {entry.by} as {entry.content['role']} ({_signer(entry.content)})"


_SENTENCES: dict[str, Callable[[Entry], str]] = {
    REGISTERED: _registered,
    SHOWN: _shown,
    PROMOTED: _promoted,
    SIGNED: _signed,
    REJECTED: lambda entry: f"rejected by {entry.by}: {entry.reason}",
    RESTORED: lambda entry: f"made the champion again by {entry.by}: {entry.reason}",
    ADOPTED: lambda entry: f"its change plan was adopted by {entry.by}: {entry.reason}",
    HELD: lambda entry: f"put on hold by {entry.by}: {entry.reason}",
    RELEASED: lambda entry: f"taken off hold by {entry.by}: {entry.reason}",
    REPAIRED: lambda entry: (
        f"its alias was put back by {entry.by}, having been moved outside of the record: {entry.reason}"
    ),
}
