"""Who may decide: what each decision demands of the people who make it.

The one place of these rules, for the command line and for the questions that Airflow asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

from openmed.errors import BadInput, IntegrityError
from pipeline.ledger.entry import ADOPTED, HELD, REJECTED, RELEASED, REPAIRED, RESTORED, SIGNED, Entry
from pipeline.ledger.signatures import Caller, Signer, approval_text, check_signed, signer
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
        plan_sha256: Hash of its change plan.
        keys: Role -> keys that may sign for it, one of which must; of the roles that sign.
    """

    version: str
    verdict: str
    champion: str | None
    model_sha256: str
    reviewers: Mapping[str, str]
    started_by: str | None
    started_login: str | None = None
    plan_sha256: str = ""
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)

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

    def check_yes(self, people: Mapping[str, str]) -> None:
        """Refuses a yes, role -> name, to what does not pass, in no role, or of who may not give it."""
        from openmed.gates.gate import PASS

        if self.verdict != PASS:
            raise BadInput(
                f"version {self.version} cannot be promoted: its gate says {self.verdict}; see its table"
            )
        if unknown := sorted(people.keys() - self.reviewers.keys()):
            raise BadInput(
                f"the change plan knows no role {' and '.join(unknown)}: "
                f"choose from {', '.join(sorted(self.reviewers))}"
            )
        self.check_people(people)

    def _started(self, login: str) -> bool:
        starters = [*(self.started_by or "").split(","), self.started_login or ""]
        return any(name.strip() and same_person(login, name) for name in starters)

    def text(self, entries: Sequence[Entry], role: str, name: str) -> str:
        """Returns what a person signs who says yes in a role; see `pipeline.ledger.signatures`."""
        return approval_text(
            entries,
            version=self.version,
            model=self.model_sha256,
            verdict=self.verdict,
            plan=self.plan_sha256,
            role=role,
            name=name,
        )

    def check_signer(self, entries: Sequence[Entry], role: str, name: str, signature: str | None) -> Signer:
        """Returns who signed a yes; BadInput where nobody did who may."""
        text = self.text(entries, role, name)
        if role in self.keys:
            found = check_signed(text, signature, self.keys[role])
        else:
            found = signer(text, signature or "", None)
        if found.name and self._started(found.name.partition("@")[0]):
            raise BadInput(
                f"{found.name} started the retraining of version {self.version} and cannot approve it"
            )
        return found

    def approved(self, entries: Sequence[Entry], approval: Approval) -> dict[str, Any]:
        """Returns what an entry says of the promotion, on the record as it is before it.

        Raises:
            BadInput: A signature that the change plan asks for is missing or does not hold, two are by one
                key, or the names are typed by who started the retraining.
        """
        signatures: dict[str, dict[str, str]] = {}
        for role, name in approval.people.items():
            if given := self._signature(entries, role, name):
                signatures[role] = given
        for one, other in combinations(signatures.values(), 2):
            if one["key"] == other["key"] or one.get("signer", 1) == other.get("signer", 2):
                raise BadInput(f"one key or person signed for two roles of version {self.version}")
        typed = [name for role, name in approval.people.items() if role not in signatures]
        for login in approval.caller.logins.values() if approval.caller else ():
            if typed and self._started(login):
                raise BadInput(
                    f"the retraining of version {self.version} was started under the login {login}, which "
                    f"cannot approve it in the name of {' and '.join(typed)}: let others give the command"
                )
        proven = {
            "plan_sha256": self.plan_sha256,
            "signatures": signatures,
            "keys": {role: list(lines) for role, lines in self.keys.items()},
        }
        return {
            "by": approval.by,
            "approvals": approval.people,
            "comment": approval.comment,
            "verdict": self.verdict,
            "model_sha256": self.model_sha256,
            **(approval.caller.content() if approval.caller else {}),
            **{key: value for key, value in proven.items() if value},
        }

    def _signature(self, entries: Sequence[Entry], role: str, name: str) -> dict[str, str]:
        """The latest signature of a person in a role; empty where none is needed and none holds."""
        given = [
            each
            for each in entries
            if (each.event, each.version, each.content.get("role")) == (SIGNED, self.version, role)
            and same_person(each.by, name)
        ]
        if not given and role not in self.keys:
            return {}
        by, signature = (given[-1].by, given[-1].content["signature"]) if given else (name, None)
        try:
            found = self.check_signer(entries, role, by, signature)
        except BadInput as error:
            if role not in self.keys:
                return {}
            raise BadInput(
                f"version {self.version} lacks the signature of {name} as {role}: {error}; `openmed registry "
                f"sign {self.version} --as {role} --by '{name}' --key ~/.ssh/id_ed25519`"
            ) from None
        assert signature
        return {"by": by, "signature": signature, **found.content()}

    def check(self, approval: Approval, expected_champion: str | None, expected_model: str | None) -> None:
        """Refuses a promotion that this does not carry; see `pipeline.ledger.promote`."""
        version, roles, people = self.version, self.reviewers.keys(), approval.people
        self.check_yes(people)
        if missing := sorted(roles - people.keys()):
            raise BadInput(
                f"version {version} needs the yes of every role: {' and '.join(missing)} is missing"
            )
        if self.champion != expected_champion:
            raise BadInput(
                f"version {version} was reviewed against champion {expected_champion}, but the champion is "
                f"{self.champion} by now: run the gate and the review again"
            )
        if expected_model not in (None, self.model_sha256):
            raise IntegrityError(
                f"the model of version {version} is not the one that was reviewed: review it again"
            )
