"""Who may decide: what each decision demands of the people who make it.

The one place of these rules, for the command line and for the questions that Airflow asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from openmed.errors import BadInput, IntegrityError
from pipeline.ledger.entry import ADOPTED, HELD, REJECTED, RELEASED, REPAIRED, RESTORED
from pipeline.settings.people import has_letters, same_person
from pipeline.settings.plain_text import one_line, plain

_DEMANDS = {
    REJECTED: ("reviewer", "a rejection needs a reason: say what is wrong with the version"),
    ADOPTED: ("person who adopts", "adopting a change plan needs a reason: say why it may change"),
    HELD: ("person who holds", "a hold needs a reason: say what is wrong with the version"),
    RELEASED: ("person who releases", "a release needs a reason: say why the version may answer again"),
    RESTORED: ("person who rolls back", "a rollback needs a reason: say why the champion is taken back"),
    REPAIRED: ("person who repairs", "a repair needs a reason: say how the alias came to be moved"),
}
"""Decision -> how an error calls who makes it, and what it says where no reason is given."""


GATE, MONITORING = "gate", "monitoring"
"""What decides without a person. Its sentences name every finding, so they may be long."""


@dataclass(frozen=True)
class Caller:
    """Who has a decision made, beside who is named in it.

    Attributes:
        logins: What the one who gives the command is logged in as: system or service -> login.
    """

    logins: Mapping[str, str]

    def content(self) -> dict[str, Any]:
        """Returns what an entry says of it."""
        return {"login": dict(self.logins)}


def signed(event: str, *, by: str | None, reason: str, caller: Caller | None = None) -> dict[str, Any]:
    """Returns who decides and why, as they are recorded.

    Raises:
        BadInput: Nobody or no reason is named, or it cannot be written on one line.
    """
    person, without_reason = _DEMANDS[event]
    if not reason.strip():
        raise BadInput(without_reason)
    login = caller.content() if caller else {}
    if by in (GATE, MONITORING):
        return {"by": by, "reason": plain(" ".join(reason.split()))} | login
    return {"by": _named(by, person), "reason": one_line(reason, "the reason")} | login


def _named(name: str | None, role: str) -> str:
    if name is None or not name.strip():
        raise BadInput(f"the {role} must be named: a decision without a person cannot be recorded")
    line = one_line(name, f"the name of the {role}")
    if not has_letters(line):
        raise BadInput(
            f"the name of the {role} holds no letter or digit: write it so that it can be compared"
        )
    return line


def refuse_starter(started_by: str | None, name: str, version: str, what: str) -> None:
    """Refuses one of those who started the retraining of a version, several joined by a comma."""
    for starter in (started_by or "").split(","):
        if starter.strip() and same_person(name, starter):
            alias = "" if name == starter.strip() else f", who is named {name} here,"
            raise BadInput(
                f"{starter.strip()}{alias} started the retraining of version {version} and cannot {what}"
            )


@dataclass(frozen=True)
class Approval:
    """Who says yes to a promotion: role -> name, ordered by role; why, perhaps empty; who types it."""

    people: dict[str, str]
    comment: str
    caller: Caller | None = None

    @classmethod
    def of(
        cls, people: Mapping[str, str | None], comment: str | None, caller: Caller | None = None
    ) -> "Approval":
        """Takes them as they were written; BadInput where a name is missing or a text is not one line."""
        named = {role: _named(name, f"{role} reviewer") for role, name in sorted(people.items())}
        return cls(named, one_line(comment or "", "the comment"), caller)

    @property
    def by(self) -> str:
        """The people with their roles, as one text."""
        return ", ".join(f"{name} ({role})" for role, name in self.people.items())


@dataclass(frozen=True)
class Basis:
    """What the gates say of a version, as far as a promotion stands on it.

    Attributes:
        version: The version.
        verdict: PASS, or another word, which promotes nothing.
        champion: The version it was compared with, None for none.
        model_sha256: Hash of the list of all files of its stored model.
        reviewers: Role of its change plan -> what it answers for.
        started_by: Who started its retraining, several joined by a comma; None for no person.
        started_login: The system's login that the starter's name was given under, None where it is not known.
    """

    version: str
    verdict: str
    champion: str | None
    model_sha256: str
    reviewers: Mapping[str, str]
    started_by: str | None
    started_login: str | None = None

    @classmethod
    def of(cls, judged: Mapping[str, Any]) -> "Basis":
        """Takes it from what `pipeline.promotion.actions.gate` returns."""
        known = {field.name for field in fields(cls)} & judged.keys()
        return cls(**{name: judged[name] for name in known})

    def check_people(self, people: Mapping[str, str]) -> None:
        """Refuses who may not approve, role -> name: who started the retraining, and one person twice.

        Names are compared as `pipeline.settings.people.same_person` does.
        """
        for name in people.values():
            refuse_starter(self.started_by, name, self.version, "approve it")
        for one, other in combinations(people.values(), 2):
            if same_person(one, other):
                twins = "" if one == other else f"; {one} and {other} look like one"
                roles = ", ".join(sorted(self.reviewers))
                raise BadInput(f"version {self.version} needs another person in each role: {roles}{twins}")

    def _check_login(self, approval: Approval) -> None:
        """Refuses names that are typed by whoever started the retraining."""
        starters = [name for name in (*(self.started_by or "").split(","), self.started_login) if name]
        for login in approval.caller.logins.values() if approval.caller else ():
            if any(same_person(login, starter) for starter in starters):
                raise BadInput(
                    f"the retraining of version {self.version} was started under the login {login}, which "
                    f"cannot approve it in the name of {approval.by}: let somebody else give the command"
                )

    def check(self, approval: Approval, expected_champion: str | None, expected_model: str | None) -> None:
        """Refuses a promotion that this does not carry; see `pipeline.ledger.promote`."""
        from openmed.gates.gate import PASS

        version, roles, people = self.version, self.reviewers.keys(), approval.people
        if self.verdict != PASS:
            raise BadInput(
                f"version {version} cannot be promoted: its gate says {self.verdict}; see its table"
            )
        if unknown := sorted(people.keys() - roles):
            raise BadInput(
                f"the change plan knows no role {' and '.join(unknown)}: "
                f"choose from {', '.join(sorted(roles))}"
            )
        if missing := sorted(roles - people.keys()):
            raise BadInput(
                f"version {version} needs the yes of every role: {' and '.join(missing)} is missing"
            )
        self.check_people(people)
        self._check_login(approval)
        if self.champion != expected_champion:
            raise BadInput(
                f"version {version} was reviewed against champion {expected_champion}, but the champion is "
                f"{self.champion} by now: run the gate and the review again"
            )
        if expected_model not in (None, self.model_sha256):
            raise IntegrityError(
                f"the model of version {version} is not the one that was reviewed: review it again"
            )
