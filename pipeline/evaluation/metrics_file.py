"""What metrics.json holds: the numbers that evaluate measures and that gates, pages and documents read.

Every field is written; a file of an earlier version may lack some, which then have their defaults. A number
that could not be computed is NaN here and null in the file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import inf
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from openmed.files import read_json
from openmed.metrics.clinical_utility import AtPrevalence
from openmed.metrics.score_intervals import NAN, Interval

NOT_MEASURED = Interval(NAN, NAN, NAN)


@dataclass(frozen=True)
class ValidationFilms:
    """Number of validation films, and the AUC on them (0..1)."""

    n: int = 0
    auc: float = NAN


@dataclass(frozen=True)
class CalibrationFilms:
    """Shares (0..1) at the frozen threshold; specificity_at_target: if only they had to reach the target."""

    n: int = 0
    sensitivity: float = NAN
    specificity: float = NAN
    specificity_at_target: float = NAN


@dataclass(frozen=True)
class TestFilms:
    """Test films, patients, films with the finding, confusion at the threshold, and each metric (0..1)."""

    n: int = 0
    patients: int = 0
    positives: int = 0
    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    accuracy: Interval = NOT_MEASURED
    f1: Interval = NOT_MEASURED
    sensitivity: Interval = NOT_MEASURED
    specificity: Interval = NOT_MEASURED
    ppv: Interval = NOT_MEASURED
    npv: Interval = NOT_MEASURED
    auc: Interval = NOT_MEASURED
    average_precision: Interval = NOT_MEASURED
    brier: Interval = NOT_MEASURED


@dataclass(frozen=True)
class Reliability:
    """How, and on how many films, probabilities were calibrated; `calibration_summary` of each step."""

    method: str = "none"
    films: int = 0
    softmax: Mapping[str, float] = field(default_factory=dict)
    prior_corrected: Mapping[str, float] = field(default_factory=dict)
    calibrated: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class HiddenPart:
    """AUC of films of which a part is hidden; what that costs in AUC and at the threshold (worse: > 0)."""

    films: int = 0
    auc: float = NAN
    auc_low: float = NAN
    # Not finite in files of before, which have no limits.
    auc_high: float = inf
    loss: Interval = NOT_MEASURED
    sensitivity: Interval = NOT_MEASURED
    specificity: Interval = NOT_MEASURED


@dataclass(frozen=True)
class WorstShare(Interval):
    """The lowest share over sites, whole patients resampled, and the name of the site that has it."""

    site: str


@dataclass(frozen=True)
class Site:
    """What films show as one simulated site would have given them."""

    auc: float
    sensitivity: Interval
    specificity: Interval


@dataclass(frozen=True)
class AtSites:
    """How many films were changed; worst: sensitivity and specificity; sites: what each site shows."""

    films: int = 0
    worst: Mapping[str, WorstShare] = field(default_factory=dict)
    sites: Mapping[str, Site] = field(default_factory=dict)


@dataclass(frozen=True)
class FindingMetrics:
    """What is known of a finding against all other classes.

    Attributes:
        positive: The finding.
        threshold: From which probability on a film is flagged (0..1).
        target_sensitivity: What the threshold was chosen for (0..1).
        prevalence: Share of films with the finding, in words -> what to expect there.
        stress: Part that is hidden -> what that does.
        sites: validation and test -> what the films show at simulated sites.
    """

    positive: str
    threshold: float
    target_sensitivity: float = NAN
    validation: ValidationFilms = ValidationFilms()
    calibration: CalibrationFilms = CalibrationFilms()
    test: TestFilms = TestFilms()
    prevalence: Mapping[str, AtPrevalence] = field(default_factory=dict)
    reliability: Reliability = Reliability()
    stress: Mapping[str, HiddenPart] = field(default_factory=dict)
    sites: Mapping[str, AtSites] = field(default_factory=dict)


@dataclass(frozen=True)
class Abstained:
    """How often films are referred since no class stands out; see `abstention.AbstentionCheck`."""

    coverage: Mapping[str, Interval]
    referred: Interval
    accuracy_of_decided: Interval
    target: float


@dataclass(frozen=True)
class Unlike:
    """Test films beyond the limit (a distance), which lets a share of calibration patients beyond (0..1)."""

    share: float
    limit: float
    calibration_patients: int
    films: int
    referred: Interval


@dataclass(frozen=True)
class Metrics:
    """The content of metrics.json.

    Attributes:
        confusion: Class that films have -> class that they are called -> films; None in files of before.
        called_rightly: The share that is; None in files of before.
        abstention: None where the model abstains from nothing.
        novelty: None where it tells no unlike films.
        data: manifest_sha256 and split_sha256.
        model: weights_sha256.
        findings: finding -> its numbers, the first first.
    """

    architecture: str
    confusion: Mapping[str, Mapping[str, int]] | None = None
    called_rightly: Interval | None = None
    abstention: Abstained | None = None
    novelty: Unlike | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, str] = field(default_factory=dict)
    findings: Mapping[str, FindingMetrics] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Metrics":
        """Reads a file, of an earlier version too; BadInput where it is no JSON."""
        content = read_json(path)
        # The numbers of the first finding stand at the top.
        each = [content, *content.get("findings", {}).values()]
        return _typed(cls, content | {"findings": {own["positive"]: own for own in each}})

    def to_json(self) -> dict[str, Any]:
        """Returns the content of the file."""
        content = asdict(self)
        first, *further = content.pop("findings").items()
        return content | first[1] | ({"findings": dict(further)} if further else {})


def _typed(kind: Any, content: Any) -> Any:
    """Makes a value of a type of what JSON holds of it."""
    if kind is float:
        return NAN if content is None else content
    if isinstance(kind, type) and is_dataclass(kind):
        types = get_type_hints(kind)
        names = [each.name for each in fields(kind) if each.name in content]
        return kind(**{name: _typed(types[name], content[name]) for name in names})
    if get_origin(kind) is Mapping:
        return {key: _typed(get_args(kind)[1], value) for key, value in content.items()}
    if NoneType in get_args(kind):
        return None if content is None else _typed(get_args(kind)[0], content)
    return content
