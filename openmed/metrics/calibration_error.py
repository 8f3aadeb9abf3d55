"""How far probabilities may be taken at their word.

Arguments and errors as in `classification`. A value that cannot be computed is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import NAN, brier, checked_labels, checked_scores
from openmed.metrics.resampling import patient_codes
from openmed.metrics.score_intervals import Interval, critical_value

BINS = 10
_LEAST = 1e-7
"""Logarithms are taken of probabilities this far from 0 and 1: float32 knows next to nothing nearer."""


def calibration_summary(labels: ArrayLike, probabilities: ArrayLike, positive: int) -> dict[str, float]:
    """All measures of calibration: the finding against the rest, and the log loss over all classes.

    Of `labels` int (N,) and `probabilities` float (N, classes). 0 is best, but 1 for the slope.
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
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    _, rank, films = np.unique(values, return_inverse=True, return_counts=True)
    observed = (np.bincount(rank, truth) / films)[rank]
    gaps = (values - observed)[np.argsort(values, kind="stable")]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(gaps))


def unbiased_calibration_error(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, confidence: float = 0.95, bins: int = BINS
) -> Interval:
    """Root mean squared distance of predicted probability and observed share, less what chance makes.

    From every bin's squared distance its own variance is taken, so that perfect probabilities give 0 on
    average (Kumar, Liang and Ma, Verified uncertainty calibration, NeurIPS 2019); variances are those of the
    patients' sums. Limits are normal on the squared scale.
    """
    z, truth = critical_value(confidence), checked_labels(labels)
    values = checked_scores(scores, len(truth))
    patient = patient_codes(patients, len(truth))
    error = spread = 0.0
    for part in np.array_split(np.argsort(values, kind="stable"), min(bins, len(truth))):
        gaps = values[part] - truth[part]
        sums = np.bincount(np.unique(patient[part], return_inverse=True)[1], gaps - gaps.mean())
        variance = float(sums @ sums) / len(part) ** 2 * len(sums) / max(len(sums) - 1, 1)
        share, gap = len(part) / len(truth), float(gaps.mean())
        error += share * (gap**2 - variance)
        spread += share**2 * (4 * gap**2 * variance + 2 * variance**2)
    limits = (error, error - z * np.sqrt(spread), error + z * np.sqrt(spread))
    return Interval(*(float(np.sqrt(max(limit, 0.0))) for limit in limits))


def slope_interval(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Gives `calibration_slope` with Wald limits whose variance knows of patients (sandwich).

    Huber's variance of the two coefficients, summed by patient (Liang and Zeger, Biometrika 1986;73:13-22).
    NaN where `calibration_slope` is.
    """
    truth, odds = _checked(labels, scores)
    line = _line(truth, odds)
    if line is None:
        return Interval(NAN, NAN, NAN)
    from scipy.special import expit

    design = np.column_stack([np.ones_like(odds), odds])
    fitted = expit(design @ line)
    bread = np.linalg.inv(design.T @ (design * (fitted * (1 - fitted))[:, None]))
    patient = patient_codes(patients, len(truth))
    sums = np.stack([np.bincount(patient, column * (truth - fitted)) for column in design.T], axis=1)
    meat = sums.T @ sums * len(sums) / max(len(sums) - 1, 1)
    half = critical_value(confidence) * float(np.sqrt((bread @ meat @ bread)[1, 1]))
    return Interval(float(line[1]), float(line[1]) - half, float(line[1]) + half)


def calibration_slope(labels: ArrayLike, scores: ArrayLike) -> float:
    """Slope of a logistic regression of the truth on the log-odds of the score (Cox, Biometrika 1958).

    1 is best; below 1 the probabilities are too extreme, above 1 too timid. NaN where one class is missing or
    the scores separate the classes, as no finite slope fits best then.
    """
    line = _line(*_checked(labels, scores))
    return NAN if line is None else float(line[1])


def _line(truth: NDArray[np.int64], odds: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Intercept and slope of the regression, None where there is none."""
    having, without = odds[truth == 1], odds[truth == 0]
    if not having.size or not without.size:
        return None
    if having.min() >= without.max() or without.min() >= having.max():
        return None
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit(odds[:, None], truth)
    return np.array([model.intercept_[0], model.coef_[0, 0]])


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


def log_odds(probabilities: NDArray[np.float64], least: float = _LEAST) -> NDArray[np.float64]:
    """Log-odds of probabilities, of those nearer than `least` to 0 or 1 as of that: always finite."""
    inside = np.clip(probabilities, least, 1 - least)
    return np.log(inside) - np.log1p(-inside)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth = checked_labels(labels)
    return truth, log_odds(checked_scores(scores, len(truth)))
