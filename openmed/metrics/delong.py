"""The AUC and the difference of two AUCs on the same films, with intervals in closed form.

The AUC is the mean, over the films of one class, of the share of the other class they outrank (their
placement). Its variance is that of the placements (DeLong, DeLong and Clarke-Pearson, Biometrics
1988;44:837-845), found by midranks in the time of a sort (Sun and Xu, IEEE Signal Process Lett
2014;21:1389-1393). Films of one patient resemble each other: the variance of each class is multiplied by the
design effect of its placements (see `clustered`).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from openmed.metrics.classification import NAN, checked_labels, checked_scores
from openmed.metrics.clustered import BELIEF, critical_t, design_effect
from openmed.metrics.resampling import patient_codes
from openmed.metrics.score_intervals import Interval, critical_value, newcombe_auc


@dataclass(frozen=True)
class _Moments:
    """Of an AUC, or of a difference of two.

    Attributes:
        value: What was measured; NaN without one class.
        variance: With the design effects.
        telling: Patients with a film that is not like most of them, of the class that has fewer.
        positives: Films with the finding, divided by their design effect.
        negatives: The same without it.
        patients: Of the class that has fewer.
    """

    value: float
    variance: float
    telling: int
    positives: float
    negatives: float
    patients: int


def delong_auc(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """Gives the AUC with an interval on the scale of its log-odds, with Student's t.

    On that scale (Pepe, The Statistical Evaluation of Medical Tests, 2003, chapter 5) it covers near 1, where
    the plain one is too short. The fewer patients have a film on the wrong side, the more it is drawn towards
    Newcombe's interval of the films divided by their design effects, which it is where there is none. Without
    `patients` every film counts as one. NaN without one class.
    """
    critical_value(confidence)
    truth = checked_labels(labels)
    wins = _wins(truth, checked_scores(scores, len(truth)))
    return _interval(_moments(truth, wins, patients), confidence)


def delong_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    patients: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Gives the AUC of the first model minus that of the second, on the same films.

    The limits are put together from those of the two AUCs and their correlation (Zou and Donner, Stat Med
    2008;27:1693-1702), which is that of DeLong's variances. So they are as lopsided as AUCs near 1 are, and
    keep a width where both models rank every film alike. Without `patients` every film counts as one.
    """
    critical_value(confidence)
    truth = checked_labels(labels)
    first, second = (_wins(truth, checked_scores(scores, len(truth))) for scores in (scores_a, scores_b))
    a, b = _moments(truth, first, patients), _moments(truth, second, patients)
    apart = _moments(truth, first - second, patients, usual=0.0)
    product = math.sqrt(a.variance * b.variance)
    together = (a.variance + b.variance - apart.variance) / (2 * product) if product > 0 else 0.0
    correlation = min(max(together, -1.0), 1.0)
    of_a, of_b = _interval(a, confidence), _interval(b, confidence)
    low = _joined(of_a.value - of_a.low, of_b.high - of_b.value, correlation)
    high = _joined(of_a.high - of_a.value, of_b.value - of_b.low, correlation)
    return Interval(apart.value, apart.value - low, apart.value + high)


def _joined(own: float, other: float, correlation: float) -> float:
    """How far a limit of a difference lies from it, from how far those of its two parts do."""
    return math.sqrt(max(own**2 + other**2 - 2 * correlation * own * other, 0.0))


def _interval(moments: _Moments, confidence: float) -> Interval:
    if math.isnan(moments.value):
        return Interval(NAN, NAN, NAN)
    score = newcombe_auc(moments.value, moments.positives, moments.negatives, confidence)
    if not 0 < moments.value < 1 or not moments.variance > 0 or moments.patients < 2:
        return score
    half = critical_t(confidence, moments.patients) * math.sqrt(moments.variance)
    middle, wide = logit(moments.value), half / (moments.value * (1 - moments.value))
    # A variance measured from few films that tell anything is too small: as a design effect is drawn towards
    # its worst case, the limits are drawn towards Newcombe's, which do not need it.
    weight = BELIEF / (BELIEF + moments.telling)
    low, high = (
        float(weight * careful + (1 - weight) * expit(limit))
        for careful, limit in ((score.low, middle - wide), (score.high, middle + wide))
    )
    return Interval(moments.value, low, high)


def _wins(truth: NDArray, scores: NDArray) -> NDArray[np.float64]:
    """Each film's films of the other class on the right side of it, ties half: exact half numbers."""
    wins = _ranks(scores)
    for side in (0, 1):
        wins[truth == side] -= _ranks(scores[truth == side])
    without = truth == 0
    wins[without] = np.sum(truth) - wins[without]
    return wins


def _ranks(scores: NDArray) -> NDArray[np.float64]:
    """Ranks from 1, equal scores each with the mean of theirs."""
    # scipy.stats, which has them too, takes most of a second to load.
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _moments(truth: NDArray, wins: NDArray, patients: ArrayLike | None, usual: float = 1.0) -> _Moments:
    """Of wins, or of the difference of two; `usual` is the placement of a film that tells nothing."""
    having, without = int(np.sum(truth)), int(np.sum(1 - truth))
    if not having or not without:
        return _Moments(NAN, NAN, 0, having, without, 0)
    patient = patient_codes(np.arange(len(truth)) if patients is None else patients, len(truth))
    area = float(np.sum(wins[truth == 1])) / (having * without)
    variance, sizes, fewest, telling = 0.0, [], len(truth), len(truth)
    for side, films, others in ((1, having, without), (0, without, having)):
        mine = truth == side
        placed = wins[mine] / others
        effect = design_effect(placed - area, patient[mine], placed != usual)
        telling = min(telling, len(np.unique(patient[mine][placed != usual])))
        # One film alone has no spread: what is left is not known.
        spread = float(np.sum((placed - area) ** 2)) / (films - 1) if films > 1 else 0.0
        variance += spread / films * effect
        sizes.append(films / effect)
        fewest = min(fewest, len(np.unique(patient[mine])))
    return _Moments(area, variance, telling, sizes[0], sizes[1], fewest)
