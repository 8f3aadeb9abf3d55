"""Performance on films with labels that were drawn with known probabilities, at any confidence.

Each film stands for as many as the inverse of the probability it was drawn with (Hajek's ratio; Sarndal,
Swensson and Wretman, Model Assisted Survey Sampling, 1992, section 5.7). The variance is that of sums over
patients, so that films of one patient and uneven weights are worth as much as they tell. Limits are in closed
form: those of a resample end at its last replicate, while watching that keeps one error rate over many looks
asks for confidences of 0.9999.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import NAN, checked_labels, checked_scores
from openmed.metrics.score_intervals import Interval, critical_value, newcombe_auc


@dataclass(frozen=True)
class Estimate:
    """One number with what its limits need.

    Attributes:
        value: In [0, 1]; NaN where it is not defined.
        variance: Of the value, summed over patients; 0 where every patient gave the same.
        sizes: Effective number of films of each class that it rests on (one class for a proportion): films
            where their variance is seen, patients where it is not.
        patients: Number of patients that it rests on.
    """

    value: float
    variance: float
    sizes: tuple[float, ...]
    patients: int

    def interval(self, confidence: float) -> Interval:
        """Korn and Graubard's interval (Survey Methodology 1998;24:193-201) of a proportion.

        The AUC has the wider, on each side, of the limits on the log-odds scale and of Newcombe's.
        """
        if math.isnan(self.value) or self.patients < 2:
            return Interval(self.value, NAN, NAN)
        if len(self.sizes) == 1:
            return _exact(self.value, self.sizes[0], confidence, self.patients - 1)
        score = newcombe_auc(self.value, self.sizes[0], self.sizes[1], confidence)
        spread = self.value * (1 - self.value)
        if not self.variance or not spread:
            return score
        from scipy.stats import t

        quantile = float(t.ppf((1 + confidence) / 2, self.patients - 1))
        middle = math.log(self.value / (1 - self.value))
        half = quantile * math.sqrt(self.variance) / spread
        low, high = (1 / (1 + math.exp(-(middle + side * half))) for side in (-1, 1))
        return Interval(self.value, min(low, score.low), max(high, score.high))


def performance(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    probabilities: ArrayLike | None = None,
) -> dict[str, Estimate]:
    """Estimates AUC, sensitivity and specificity of the films that others were drawn from.

    `probabilities` are (N,) with which each film was drawn, in (0, 1]; None: all with the same.

    Raises:
        ValueError: Wrong shapes or values.
    """
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    drawn = np.ones(len(truth)) if probabilities is None else np.asarray(probabilities, float)
    if drawn.shape != truth.shape or not ((drawn > 0) & (drawn <= 1)).all():
        raise ValueError("each film needs the probability it was drawn with, above 0 and at most 1")
    weights, names = 1 / drawn, np.unique(np.asarray(patients), return_inverse=True)[1]
    flagged = values >= threshold
    return {
        "auc": _auc(truth == 1, values, weights, names),
        "sensitivity": proportion(flagged[truth == 1], weights[truth == 1], names[truth == 1]),
        "specificity": proportion(~flagged[truth == 0], weights[truth == 0], names[truth == 0]),
    }


def proportion(outcomes: NDArray, weights: NDArray, patients: NDArray) -> Estimate:
    """Estimates a weighted share of films; (N,) booleans, weights above 0, whole numbers of patients."""
    if not len(outcomes):
        return Estimate(NAN, NAN, (0.0,), 0)
    total, right = weights.sum(), np.asarray(outcomes, float)
    value = float(np.clip(weights @ right / total, 0, 1))
    count = len(np.unique(patients))
    if right.min() == right.max():
        return Estimate(value, 0.0, (_worth(np.bincount(patients, weights)),), count)
    variance = _variance(np.bincount(patients, weights * (right - value)) / total, count)
    # Films of one patient are never worth more than as many films of different patients.
    size = min(_worth(weights), value * (1 - value) / variance if variance else math.inf)
    return Estimate(value, variance, (size,), count)


def difference(first: Estimate, second: Estimate, confidence: float) -> Interval:
    """Difference of two independent estimates, first minus second, from the limits of each.

    Newcombe's hybrid score method (Stat Med 1998;17:873-890, method 10; Zou and Donner, Stat Med
    2008;27:1693-1702, for other numbers than proportions).
    """
    a, b = first.interval(confidence), second.interval(confidence)
    value = a.value - b.value
    return Interval(
        value,
        value - math.hypot(a.value - a.low, b.high - b.value),
        value + math.hypot(a.high - a.value, b.value - b.low),
    )


def _auc(having: NDArray, scores: NDArray, weights: NDArray, patients: NDArray) -> Estimate:
    """Obuchowski's AUC of clustered films (Biometrics 1997;53:567-578), weighted."""
    sides = [(scores[side], weights[side], patients[side]) for side in (having, ~having)]
    if not having.any() or having.all():
        return Estimate(NAN, NAN, (0.0, 0.0), 0)
    wins = [_beaten(own[0], other[0], other[1]) for own, other in (sides, sides[::-1])]
    totals = [own[1].sum() for own in sides]
    value = float(np.clip(sides[0][1] @ wins[0] / totals[0], 0, 1))
    size, influence = patients.max() + 1, np.zeros(patients.max() + 1)
    # A film without the finding does well by losing.
    for side, total, won, mean, sign in zip(sides, totals, wins, (value, 1 - value), (1, -1), strict=True):
        influence = influence + sign * np.bincount(side[2], side[1] * (won - mean), size) / total
    variance = _variance(influence, len(np.unique(patients)))
    counted = [_worth(w if variance else np.bincount(names, w)) for _, w, names in sides]
    return Estimate(value, variance, tuple(counted), min(len(np.unique(names)) for _, _, names in sides))


def _beaten(own: NDArray, other: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """The weighted share of the other films that score lower than each film; ties count half."""
    order = np.argsort(other, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    places = [np.searchsorted(other[order], own, side) for side in ("left", "right")]
    return (below[places[0]] + below[places[1]]) / (2 * below[-1])


def _variance(sums: NDArray[np.float64], patients: int) -> float:
    return float((sums**2).sum() * patients / max(1, patients - 1))


def _worth(weights: NDArray) -> float:
    """As how many equal ones unequal weights count (Kish, Survey Sampling, 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _exact(share: float, size: float, confidence: float, freedom: int) -> Interval:
    """Clopper and Pearson's interval at an effective number of films (Korn and Graubard).

    Wilson's lets a share near 1 be called too low twice as often as it says at such confidences.
    """
    from scipy.stats import beta, t

    tail = (1 - confidence) / 2
    size *= (critical_value(confidence) / float(t.ppf(1 - tail, freedom))) ** 2
    right = share * size
    low = 0.0 if right <= 0 else float(beta.ppf(tail, right, size - right + 1))
    high = 1.0 if right >= size else float(beta.ppf(1 - tail, right + 1, size - right))
    return Interval(share, low, high)
