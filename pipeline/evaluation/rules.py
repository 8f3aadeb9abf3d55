"""The settings of a judgement, and whether what they promise and ask can be shown on the films there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.fitted.operating_point import patients_needed
from openmed.metrics.intervals import judged_intervals
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
        """Takes those of a finding, None for the first, from the content of a params.yaml; `what` names it.

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
                {name: float(floor) for name, floor in own["floors"].items()},
                int(params["run"]["seed"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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
    """Refuses a promise and floors that so many calibration and test films cannot fit.

    Films are one row each: split, label, patient.

    Raises:
        BadInput: Too few calibration patients for the promise; or a model exactly as planned, or one without
            a mistake, would have a lower limit below a floor on this many test films.
    """
    for name, own in rules.items():
        label = classes.index(name)
        _check_promise(films[(films["split"] == "calibration") & (films["label"] == label)], name, own)
        test = films[films["split"] == "test"]
        _check_planned(test["label"] == label, name, own)
        _check_faultless(test["label"] == label, test["patient"], name, own)


def _check_promise(having: "pd.DataFrame", name: str, rules: Rules) -> None:
    if rules.threshold_confidence is None:
        return
    needed = patients_needed(rules.target_sensitivity, rules.threshold_confidence)
    if (count := having["patient"].nunique()) < needed:
        raise BadInput(
            f"{name}: a sensitivity of {rules.target_sensitivity:g} can be promised with confidence "
            f"{rules.threshold_confidence:g} only from at least {needed} calibration patients with {name}, "
            f"found {count}: give more, or lower evaluate.target_sensitivity or evaluate.threshold_confidence"
        )


def _check_planned(has: "pd.Series", name: str, rules: Rules) -> None:
    planned = {"sensitivity": (rules.target_sensitivity, int(has.sum()), "with")}
    if rules.target_specificity is not None:
        planned["specificity"] = rules.target_specificity, int((~has).sum()), "without"
    for metric, (target, count, which) in planned.items():
        floor = rules.floors.get(metric)
        low = wilson(target * count, count, rules.confidence).low
        if floor is not None and low < floor:
            raise BadInput(
                f"{name}: on {count} test films {which} {name} a {metric} of exactly "
                f"evaluate.target_{metric} = {target:g} has a lower limit of {low:.3f}, below the floor "
                f"{floor:g}, so nothing as planned could pass: give more test films, lower the floor or "
                "raise the target"
            )


def _check_faultless(has: "pd.Series", patients: "pd.Series", name: str, rules: Rules) -> None:
    best = judged_intervals(has.astype(int), has.astype(float), patients, 0.5, rules.confidence)
    for metric, floor in rules.floors.items():
        # NaN, as of a split that lacks a side, reaches no floor either.
        if metric in best and not best[metric].low >= floor:
            raise BadInput(
                f"{name}: on {int(has.sum())} test films with {name} and {int((~has).sum())} without even a "
                f"model without a mistake has a lower limit of its {metric} of {best[metric].low:.3f}, below "
                f"the floor {floor:g}: give more test films or lower evaluate.floors.{metric}"
            )
