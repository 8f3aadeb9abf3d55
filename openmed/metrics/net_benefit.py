"""Decision curves: whether acting on the model does more good than flagging every film, or none.

Vickers AJ, Elkin EB. Decision curve analysis: a novel method for evaluating prediction models. Med Decis
Making 2006;26:565-574. The threshold probability is where a clinician would waver: one who is ready for nine
needless work-ups to find one patient wavers at 0.1. The net benefit is in found patients per film: those
found, less the false alarms at the rate of exchange that the threshold probability states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.errors import BadInput
from openmed.metrics.classification import NAN, checked_labels, checked_scores, checked_threshold
from openmed.metrics.resampling import Cohort, cohort, multiplicities
from openmed.metrics.score_intervals import Interval, critical_value


@dataclass(frozen=True)
class NetBenefit:
    """One point of a decision curve; flagging no film has a net benefit of 0.

    Attributes:
        threshold_probability: Where a clinician would waver, in (0, 1).
        model: Net benefit of acting on the model, at most the prevalence.
        treat_all: Net benefit of flagging every film.
        gain: The model less the better of flagging every film and none, with its limits.
    """

    threshold_probability: float
    model: float
    treat_all: float
    gain: Interval

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values, NaN as None."""
        numbers = Interval(self.model, self.treat_all, NAN).to_json()
        return {
            "threshold_probability": self.threshold_probability,
            "model": numbers["value"],
            "treat_all": numbers["low"],
            "treat_none": 0.0,
            "gain": self.gain.to_json(),
        }


def decision_curve(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    threshold_probabilities: Sequence[float],
    *,
    threshold: float | None = None,
    prevalence: float | None = None,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> list[NetBenefit]:
    """Gives the net benefit at each threshold probability, with a paired patient-clustered bootstrap.

    The model, and the better of flagging all and none, are measured on the same resamples, drawn as
    `intervals.bootstrap` draws them with this seed. Limits are percentiles, and know only errors that were
    seen: a gain must not be judged alone.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) calibrated probabilities of the finding in [0, 1].
        patients: (N,) identifiers, text or whole numbers.
        threshold_probabilities: Each in (0, 1).
        threshold: The model's frozen operating point, to judge the decision it really makes; None flags at
            each threshold probability itself, which is the decision curve.
        prevalence: In (0, 1), where the films of a clinic are to be stood for; None takes that of each
            resample.
        replicates: Number of resamples.
        confidence: Coverage of the interval, in (0, 1).
        seed: The same seed gives the same intervals.

    Returns:
        One point for each threshold probability; NaN where a class is missing.

    Raises:
        BadInput: A threshold probability or the prevalence is not in (0, 1).
        ValueError: Wrong shapes or values.
    """
    critical_value(confidence)
    _refuse_shares(threshold_probabilities, prevalence)
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    chances = np.array(threshold_probabilities, dtype=np.float64)
    cuts = chances if threshold is None else np.full(len(chances), checked_threshold(threshold))
    group = cohort(truth, patients)
    sums = _sums(truth, values, cuts, group)
    model, treat_all = _benefits(sums.sum(axis=1, keepdims=True), chances, prevalence)
    gains = []
    for drawn in multiplicities(group, replicates, seed):
        resampled, everyone = _benefits(sums @ drawn.T, chances, prevalence)
        gains.append(resampled - np.maximum(everyone, 0))
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = np.quantile(np.concatenate(gains, axis=1), tails, axis=1)
    gain = model[:, 0] - np.maximum(treat_all[:, 0], 0)
    return [
        NetBenefit(
            float(chances[k]),
            float(model[k, 0]),
            float(treat_all[k, 0]),
            Interval(float(gain[k]), float(low[k]), float(high[k])),
        )
        for k in range(len(chances))
    ]


def _refuse_shares(threshold_probabilities: Sequence[float], prevalence: float | None) -> None:
    for name, numbers in (("threshold probability", threshold_probabilities), ("prevalence", [prevalence])):
        for number in numbers:
            if number is not None and not 0 < number < 1:
                raise BadInput(f"a {name} must be above 0 and below 1, found {number}")


def _sums(truth: NDArray, values: NDArray, cuts: NDArray, group: Cohort) -> NDArray[np.float64]:
    """By patient: films with the finding, films without, then true and false positives at each cut."""
    flags = [values >= cut for cut in cuts]
    columns = [truth, 1 - truth, *(truth * flag for flag in flags), *((1 - truth) * flag for flag in flags)]
    return np.stack([np.bincount(group.patient_of_film, column, group.patients) for column in columns])


def _benefits(sums: NDArray, chances: NDArray, prevalence: float | None) -> tuple[NDArray, NDArray]:
    """Net benefit of the model and of flagging every film, each (thresholds, resamples)."""
    positives, negatives = sums[:2]
    true, false = np.split(sums[2:], 2)
    share = positives / (positives + negatives) if prevalence is None else np.full(len(positives), prevalence)
    odds = (chances / (1 - chances))[:, None]
    with np.errstate(invalid="ignore"):  # no film of a class: 0 / 0, which is NaN as it should be
        found, alarms = true / positives * share, false / negatives * (1 - share)
    everyone = share - (1 - share) * odds
    return found - alarms * odds, np.where(np.isnan(found + alarms), np.nan, everyone)
