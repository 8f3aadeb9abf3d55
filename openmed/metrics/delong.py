"""DeLong's variance of the AUC: an interval in closed form, and the paired test of two models.

The AUC is the mean, over the films of one class, of the share of the other class they outrank (their
placement). Its variance is that of the placements (DeLong, DeLong and Clarke-Pearson, Biometrics
1988;44:837-845), found by midranks in the time of a sort (Sun and Xu, IEEE Signal Process Lett
2014;21:1389-1393). Films of one patient resemble each other: placements are summed by patient first
(Obuchowski, Biometrics 1997;53:567-578), which is DeLong's own variance where every patient has one film.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import norm, rankdata

from openmed.metrics.classification import NAN, checked_labels, checked_scores
from openmed.metrics.resampling import cohort
from openmed.metrics.score_intervals import Interval, critical_value


@dataclass(frozen=True)
class AucDifference:
    """Two models on the same films.

    Attributes:
        first: AUC of the first model.
        second: AUC of the second model.
        difference: First minus second, with its confidence limits.
        p_value: Two-sided, of no difference.
    """

    first: float
    second: float
    difference: Interval
    p_value: float


def delong_auc(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike | None = None,
    confidence: float = 0.95,
    *,
    logit: bool = False,
) -> Interval:
    """Gives the AUC with DeLong's interval, cut off at 0 and 1.

    The plain interval is the value plus or minus z standard errors, as the R package pROC gives it. Near 1 it
    is too short: of normal scores with a true AUC of 0.98 in 40 + 40 films it covered 84 %, in 390 + 234
    films 92 %. On the scale of the log-odds (Pepe, The Statistical Evaluation of Medical Tests, 2003,
    chapter 5) it covered 93 and 95 %, so that is the one to show. Neither has a width when the classes are
    separated perfectly, so no gate may judge by them: `score_intervals.newcombe_auc` stays open there.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) probabilities of the finding in [0, 1].
        patients: (N,) identifiers, text or whole numbers; None counts every film as a patient.
        confidence: Coverage of the interval, in (0, 1).
        logit: Take the interval on the scale of the log-odds.

    Returns:
        The interval; NaN without one class, no limits with a single patient in one.

    Raises:
        ValueError: Wrong shapes or values.
    """
    z = critical_value(confidence)
    truth = checked_labels(labels)
    wins = _wins(truth, checked_scores(scores, len(truth)))
    area, variance = _moments(truth, wins, patients)
    half = z * np.sqrt(variance)
    if logit and 0 < area < 1:
        middle, wide = np.log(area / (1 - area)), half / (area * (1 - area))
        return Interval(area, float(expit(middle - wide)), float(expit(middle + wide)))
    # Not max and min: they would turn NaN into a limit.
    return Interval(area, float(np.clip(area - half, 0, 1)), float(np.clip(area + half, 0, 1)))


def delong_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    patients: ArrayLike | None = None,
    confidence: float = 0.95,
) -> AucDifference:
    """Compares the AUCs of two models on the same films: DeLong's test for correlated curves.

    Models that rank every film alike differ by 0 within [0, 0], p = 1. Where the difference is not 0 and yet
    every film says the same (some tiny sets), nothing is known of its uncertainty: no limits, p is NaN.

    Args:
        labels: (N,) 0 or 1.
        scores_a: (N,) probabilities of the finding by the first model.
        scores_b: (N,) the same by the second model.
        patients: (N,) identifiers, text or whole numbers; None counts every film as a patient.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: Wrong shapes or values.
    """
    z = critical_value(confidence)
    truth = checked_labels(labels)
    first, second = (_wins(truth, checked_scores(scores, len(truth))) for scores in (scores_a, scores_b))
    # The variance of a difference is that of the differences: no covariance matrix is needed.
    value, variance = _moments(truth, first - second, patients)
    error = float(np.sqrt(variance))
    if error == 0 and value != 0:
        error = NAN
    p_value = 1.0 if error == 0 else float(2 * norm.sf(abs(value) / error))
    areas = (_moments(truth, wins, None)[0] for wins in (first, second))
    return AucDifference(*areas, Interval(value, value - z * error, value + z * error), p_value)


def _wins(truth: NDArray, scores: NDArray) -> NDArray[np.float64]:
    """Each film's films of the other class on the right side of it, ties half: exact half numbers."""
    wins = rankdata(scores)
    for side in (0, 1):
        wins[truth == side] -= rankdata(scores[truth == side])
    without = truth == 0
    wins[without] = np.sum(truth) - wins[without]
    return wins


def _moments(truth: NDArray, wins: NDArray, patients: ArrayLike | None) -> tuple[float, float]:
    """The AUC, or difference of two, and its variance, clustered by patient."""
    having, without = int(np.sum(truth)), int(np.sum(1 - truth))
    if not having or not without:
        return NAN, NAN
    group = cohort(truth, np.arange(len(truth)) if patients is None else patients)
    area = float(np.sum(wins[truth == 1])) / (having * without)
    sides = []
    for side, others in ((1, without), (0, having)):
        mine = truth == side
        films = np.bincount(group.patient_of_film[mine], minlength=group.patients)
        sums = np.bincount(group.patient_of_film[mine], wins[mine], group.patients)
        # In counts, not shares: equal placements then leave exactly 0.
        sides.append((sums - films * (np.sum(sums) / np.sum(films)), films, others))
    (positive, *_), (negative, *_) = sides
    variance = 2 * _scaled(positive @ negative, group.patients)
    for deviation, films, _ in sides:
        variance += _scaled(deviation @ deviation, int(np.sum(films > 0)))
    # Covariances can outweigh in a handful of patients; no variance is below 0.
    return area, max(variance, 0.0) / (having * without) ** 2


def _scaled(products: float, patients: int) -> float:
    return float(products) * patients / (patients - 1) if patients > 1 else NAN
