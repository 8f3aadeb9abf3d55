"""The settings of a judgement, and whether what they promise and ask can be shown on the films there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.metrics.operating_point import patients_needed
from openmed.metrics.score_intervals import wilson

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rules:
    """The settings of a judgement; see params.yaml."""

    target_sensitivity: float
    threshold_confidence: float | None
    threshold_of: str
    target_specificity: float | None
    confidence: float
    replicates: int
    floors: Mapping[str, float]
    seed: int

    @classmethod
    def of(cls, params: Mapping[str, Any], what: str, finding: str | None = None) -> "Rules":
        """Takes them from the content of a params.yaml.

        Args:
            params: The content.
            what: Names it in errors.
            finding: Of which finding; None is the first.

        Raises:
            BadInput: One is missing.
        """
        try:
            # What a further finding does not name it shares with the first.
            own = params["evaluate"] | (params["evaluate"].get("findings", {}).get(finding) or {})
            return cls(
                float(own["target_sensitivity"]),
                None if own["threshold_confidence"] is None else float(own["threshold_confidence"]),
                # Settings of before promised it for patients.
                str(own.get("threshold_of", "patients")),
                None if own.get("target_specificity") is None else float(own["target_specificity"]),
                float(own["confidence"]),
                int(own["replicates"]),
                dict(own["floors"]),
                int(params["run"]["seed"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{what} lacks settings of the judgement: {error}") from None

    @classmethod
    def of_each(cls, params: Mapping[str, Any], what: str) -> "dict[str, Rules]":
        """Takes those of each finding that is looked for, the first first; raises as `of`."""
        try:
            findings = params["task"]["positive"], *params["evaluate"].get("findings", {})
        except (AttributeError, KeyError, TypeError) as error:
            raise BadInput(f"{what} lacks settings of the judgement: {error}") from None
        return {name: cls.of(params, what, name) for name in findings}

    @property
    def resampling(self) -> dict[str, Any]:
        """How patients are resampled, as arguments of the library's functions."""
        return {"replicates": self.replicates, "confidence": self.confidence, "seed": self.seed}


def check_floors(films: "pd.DataFrame", classes: Sequence[str], rules: Mapping[str, Rules]) -> None:
    """Refuses what cannot be kept of a finding; see `check_floors_of`, whose error then names the finding."""
    for name, own in rules.items():
        try:
            check_floors_of(films, classes.index(name), own)
        except BadInput as error:
            raise BadInput(f"{name}: {error}" if len(rules) > 1 else str(error)) from None


def check_floors_of(films: "pd.DataFrame", positive_index: int, rules: Rules) -> None:
    """Refuses a promise and floors that so many calibration and test films cannot fit.

    Args:
        films: One row a film: split, label, patient.
        positive_index: Label of the finding.
        rules: What is promised and what is asked.

    Raises:
        BadInput: Too few calibration patients for the promise; or even a model exactly as planned would
            have a lower limit below its floor on this many test films.
    """
    parts = {name: films[films["split"] == name] for name in ("calibration", "test")}
    having = {name: part[part["label"] == positive_index] for name, part in parts.items()}
    if rules.threshold_confidence is not None:
        needed = patients_needed(rules.target_sensitivity, rules.threshold_confidence)
        if (found := having["calibration"]["patient"].nunique()) < needed:
            raise BadInput(
                f"a sensitivity of {rules.target_sensitivity:g} can be promised with confidence "
                f"{rules.threshold_confidence:g} only from at least {needed} calibration patients with the "
                f"finding, found {found}: give more, or lower evaluate.target_sensitivity or "
                "evaluate.threshold_confidence"
            )
    planned = {"sensitivity": (rules.target_sensitivity, len(having["test"]))}
    if rules.target_specificity is not None:
        planned["specificity"] = rules.target_specificity, len(parts["test"]) - len(having["test"])
    for name, (target, count) in planned.items():
        floor = rules.floors.get(name)
        low = wilson(target * count, count, rules.confidence).low
        if floor is not None and low < floor:
            raise BadInput(
                f"on {count} test films a {name} of exactly evaluate.target_{name} = {target:g} has a lower "
                f"limit of {low:.3f}, below the floor {floor:g}, so nothing as planned could pass: give more "
                "test films, lower the floor or raise the target"
            )
