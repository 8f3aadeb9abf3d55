"""The change plan: what may change between versions, and whether a version stayed inside."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.settings.params import Section, Share
from pipeline.settings.yaml_file import first_problem, read_settings

PLAN_FILE = "change_plan.yaml"
# Settings that say where work is done and change nothing of what comes out.
_WHERE = "stages."
LOGIN, ANYONE, HOLD = "login", "anyone", "hold"
Text = Annotated[str, Field(min_length=1)]
# A line of OpenSSH's allowed_signers, with one plain name: patterns would name anybody.
AllowedSigner = Annotated[
    str,
    Field(
        pattern=r"^[^\s#*?!,\"]+ ([^\n\r]+ )?(ssh|ecdsa|sk-ssh|sk-ecdsa)-\S+ [A-Za-z0-9+/]+=*( [^\n\r]*)?$"
    ),
]
# The name of an account, as whoever logs in gives it.
Account = Annotated[str, Field(pattern=r"^[^\s,]+$")]


class Modifications(Section):
    """What may change: in words, and as patterns of settings in params.yaml."""

    description: Text
    settings: tuple[str, ...]


class Subgroups(Section):
    """From how many films of a class on a group is judged, and what it must reach."""

    min_films: Annotated[int, Field(ge=5)]
    floors: dict[Literal["sensitivity", "specificity"], Share]


class NetBenefit(Section):
    """Where clinicians would waver (threshold probability), how frequent the finding is, the least gain."""

    threshold_probability: Annotated[float, Field(gt=0, lt=1)]
    # Some waver at the odds divided by this, some at the odds times it.
    odds_range: Annotated[float, Field(ge=1)] = 2.0
    prevalence: Annotated[float, Field(gt=0, lt=1)]
    above: Annotated[float, Field(ge=-1, lt=1)]


class Stress(Section):
    """Floors of the worst simulated site; what AUC a hidden border may cost, hidden lungs may leave."""

    # Plans of before there were simulated sites have max_loss instead, which judges nothing.
    site_floors: Annotated[dict[Literal["sensitivity", "specificity"], Share], Field(min_length=2)] | None = (
        None
    )
    max_loss: Share | None = None
    max_border_loss: Share
    max_auc_without_lungs: Share


class ExternalSet(Section):
    """What an external set must show in each of its views; of one class only, a single share."""

    floors: dict[Literal["sensitivity", "specificity", "auc"], Share] = Field(min_length=1)


class External(Section):
    """Whether films from elsewhere must judge, which sets count, the fewest films of a class and view."""

    required: bool
    min_films: Annotated[int, Field(ge=5)]
    sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")], ExternalSet]


class Evaluation(Section):
    """The least that every version must show."""

    floors: dict[Literal["sensitivity", "specificity", "auc"], Share] = Field(min_length=1)
    margins: dict[Literal["auc", "sensitivity", "specificity"], Share] = Field(min_length=1)
    # Comparisons that need not be shown: where the films are too few, the reviewers decide.
    reviewers_decide: tuple[Literal["auc", "sensitivity", "specificity"], ...] = ()
    looks: Annotated[int, Field(ge=1)]
    subgroups: Subgroups
    max_calibration_error: Share
    calibration_slope: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """What the slope must not lie surely outside of; plans of before have none."""
    net_benefit: NetBenefit
    stress: Stress
    # Plans of versions that were registered before there were external sets have none.
    external: External | None = None
    max_unlike: Share | None = None
    """The share of test films that may be referred as unlike; plans of before have none."""
    # Classes that must be looked for beside the first finding, each with the entries in which it differs.
    findings: dict[Text, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> "Evaluation":
        for name, own in self.findings.items():
            if shared := own.keys() & {"looks", "max_unlike", "findings"}:
                raise ValueError(f"findings.{name}: {sorted(shared)[0]} is asked once, of no single finding")
            try:
                self.of_finding(name)
            except ValidationError as error:
                raise ValueError(f"findings.{name}: {first_problem(error)}") from None
        return self

    def of_finding(self, name: str) -> "Evaluation":
        """Returns what one finding must show."""
        return Evaluation.model_validate(self.model_dump(exclude={"findings"}) | self.findings.get(name, {}))


class Monitoring(Section):
    """How the champion is watched on new films, and what puts it on hold."""

    films: Annotated[int, Field(ge=50)]
    min_patients: Annotated[int, Field(ge=20)]
    drift: Literal["moderate", "large"]
    floors: dict[Literal["sensitivity", "specificity", "auc"], Share] = Field(min_length=1)
    max_referred: Share
    # Plans of before know only floors, and watched without an error rate; they are watched with this one.
    max_losses: dict[Literal["sensitivity", "specificity", "auc"], Share] | None = None
    error_rate: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    keep_answers_days: Annotated[int, Field(ge=184)] | None = None
    """How long the log of answers is kept, six months at least; plans of before have none: for ever."""


class Protocol(Section):
    """How data, retraining, evaluation and update are done, and which roles let a version through."""

    data: Text
    retraining: Text
    evaluation: Evaluation
    update: Text
    monitoring: Monitoring
    reviewers: dict[Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")], Text] = Field(min_length=1)
    # Role -> the keys one of which must sign its yes, or that a login is enough, as in plans of before.
    keys: dict[str, Literal["login"] | tuple[AllowedSigner, ...]] = Field(default_factory=dict)
    # Role, or `hold` -> the accounts of Airflow that may answer; in plans of before anyone may.
    accounts: dict[str, Literal["anyone"] | Annotated[tuple[Account, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )

    @property
    def signing(self) -> dict[str, list[str]]:
        """The roles that sign, each with its keys."""
        return {role: list(lines) for role, lines in self.keys.items() if lines != LOGIN}

    @property
    def answering(self) -> dict[str, list[str]]:
        """The accounts of each role, and of `hold`, that not anyone may answer for."""
        return {role: list(names) for role, names in self.accounts.items() if names != ANYONE}

    @model_validator(mode="after")
    def _known_roles(self) -> "Protocol":
        asked = {*self.reviewers, HOLD}
        for name, unknown in (
            ("keys", self.signing.keys() - self.reviewers),
            ("accounts", self.accounts.keys() - asked),
        ):
            if unknown:
                raise ValueError(f"{name}.{min(unknown)}: the plan has no such role among its reviewers")
        if self.accounts and (missing := asked - self.accounts.keys()):
            raise ValueError(f"accounts.{min(missing)}: say who may answer, a list of accounts or `{ANYONE}`")
        for role, names in self.answering.items():
            if ANYONE in names:
                raise ValueError(f"accounts.{role}: `{ANYONE}` stands alone and not in a list")
        return self


class ChangePlan(Section):
    """The whole plan; see change_plan.yaml for the meaning of each entry."""

    modifications: Modifications
    protocol: Protocol
    impact: Text

    def of_finding(self, name: str) -> "ChangePlan":
        """Returns the plan with what it asks of one finding in the place of what it asks of the first."""
        if name not in self.protocol.evaluation.findings:
            return self
        own = {"evaluation": self.protocol.evaluation.of_finding(name)}
        return self.model_copy(update={"protocol": self.protocol.model_copy(update=own)})


def load_plan(path: Path) -> ChangePlan:
    """Reads a plan.

    Raises:
        BadInput: The file is missing, is not YAML, or holds an unknown key or impossible value.
    """
    return read_settings(ChangePlan, path, missing="a change plan says what may change and who decides")


def lax_limits(plan: ChangePlan, floors: Mapping[str, float], margins: Mapping[str, float]) -> Iterator[str]:
    """Says, a sentence each, which floors and margins of a retraining ask less than the plan."""
    for name, floor in plan.protocol.evaluation.floors.items():
        if not floors.get(name, -1) >= floor:
            yield f"the floor of {name} is {floors.get(name, 'not set')}, but the plan asks for {floor:g}"
    for name, margin in plan.protocol.evaluation.margins.items():
        if not margins.get(name, 2) <= margin:
            yield (
                f"the accepted loss of {name} is {margins.get(name, 'not set')}, "
                f"but the plan accepts {margin:g}"
            )


def unplanned_changes(plan: ChangePlan, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Says, a sentence each, which settings differ from the champion's although the plan fixes them."""
    old, new = dict(flat(before)), dict(flat(after))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or key.startswith(_WHERE):
            continue
        if not any(fnmatchcase(key, pattern) for pattern in plan.modifications.settings):
            yield (
                f"the setting {key} was {old.get(key, 'not set')} and is {new.get(key, 'not set')}, "
                "which the plan does not let change"
            )


def flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Gives the settings in nested sections, each with the names of its sections before it: a.b.c."""
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content
