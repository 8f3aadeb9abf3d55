"""How far probabilities may be taken at their word.

Shared, as in `classification`: `labels` is (N,), 1 = the finding and 0 = without it; `scores` is (N,), the
probability of the finding in [0, 1]. A value that cannot be computed is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import NAN, brier, checked_labels, checked_scores

BINS = 10
_LEAST = 1e-7
"""Logarithms are taken of probabilities this far from 0 and 1: float32 knows next to nothing nearer."""


def calibration_summary(labels: ArrayLike, probabilities: ArrayLike, positive: int) -> dict[str, float]:
    """All measures of calibration: the finding against the rest, and the log loss over all classes.

    Args:
        labels: int (N,), the class of each film.
        probabilities: float (N, classes).
        positive: The class that is the finding.

    Returns:
        brier, log_loss, ece, slope and intercept; 0 is best, but 1 for the slope.
    """
    has = (np.asarray(labels) == positive).astype(int)
    scores = np.asarray(probabilities)[:, positive]
    return {
        "brier": brier(has, scores),
        "log_loss": log_loss(labels, probabilities),
        "ece": expected_calibration_error(has, scores),
        "slope": calibration_slope(has, scores),
        "intercept": calibration_intercept(has, scores),
    }


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean negative logarithm of the probability of the true class, of labels (N,) and (N, classes)."""
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    return float(-np.mean(np.log(np.clip(values[np.arange(len(truth)), truth], _LEAST, 1))))


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = BINS) -> float:
    """Mean distance of predicted probability and observed share over bins of equally many films.

    The plain estimate with equal-mass bins (Nguyen and O'Connor, EMNLP 2015): the films are ordered by their
    score and cut into bins whose sizes differ by one film at most; a bin weighs as many films as it holds.
    Films of equal score each count as their common share, so their order plays no part. It is biased upwards:
    even perfect probabilities give about 0.8 times sqrt(p (1 - p) / films in a bin).

    Raises:
        ValueError: Fewer than one bin, or wrong labels or scores.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    _, place, films = np.unique(values, return_inverse=True, return_counts=True)
    observed = (np.bincount(place, truth) / films)[place]
    gaps = (values - observed)[np.argsort(values, kind="stable")]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(gaps))


def calibration_slope(labels: ArrayLike, scores: ArrayLike) -> float:
    """Slope of a logistic regression of the truth on the log-odds of the score (Cox, Biometrika 1958).

    1 is best; below 1 the probabilities are too extreme, above 1 too timid. NaN where one class is missing or
    the scores separate the classes, as no finite slope fits best then.
    """
    truth, odds = _checked(labels, scores)
    having, without = odds[truth == 1], odds[truth == 0]
    if not having.size or not without.size:
        return NAN
    if having.min() >= without.max() or without.min() >= having.max():
        return NAN
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)
    return float(model.fit(odds[:, None], truth).coef_[0, 0])


def calibration_intercept(labels: ArrayLike, scores: ArrayLike) -> float:
    """Calibration in the large: what must be added to all log-odds for the mean to be the observed share.

    0 is best; below 0 the finding is predicted too often (Van Calster et al., BMC Medicine 2019;17:230). NaN
    where one class is missing.
    """
    truth, odds = _checked(labels, scores)
    if truth.min() == truth.max():
        return NAN
    from scipy.optimize import brentq
    from scipy.special import expit

    far = float(np.abs(odds).max()) + np.log(len(truth)) + 1
    return float(brentq(lambda shift: np.mean(expit(odds + shift)) - truth.mean(), -far, far, xtol=1e-12))


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth = checked_labels(labels)
    values = np.clip(checked_scores(scores, len(truth)), _LEAST, 1 - _LEAST)
    return truth, np.log(values) - np.log1p(-values)
