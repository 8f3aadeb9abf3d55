"""Confidence intervals: a bootstrap over whole patients that a tiny test set cannot fool.

Films of one patient resemble each other, so patients are resampled, not films. A bootstrap only knows
the errors it has seen: with no error at all it says [1, 1], however few the films. So the metrics that a
gate may judge get the wider, on each side, of the bootstrap and of a score interval that stays open.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import (
    METRICS,
    NAN,
    Counts,
    checked_labels,
    checked_scores,
    checked_threshold,
    confusion,
)
from openmed.metrics.resampling import Ranking, cohort, multiplicities
from openmed.metrics.score_intervals import Interval, critical_value, newcombe_auc, wilson

# Above this share of resamples without a value, what is left no longer stands for the test set.
MAX_UNDEFINED_SHARE = 0.05
COMPARED = ("auc", "sensitivity", "specificity")
PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv", "accuracy")


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """Gives every metric its value and a patient-clustered percentile bootstrap interval.

    Whole patients are drawn with replacement within their stratum (only films without the finding, only
    films with it, both). Resamples in which a metric is undefined are left out; if they are more than 5 %,
    or the value itself is NaN, the limits are NaN.

    The proportions (sensitivity, specificity, PPV, NPV, accuracy) are widened to their Wilson interval
    and the AUC to Newcombe's: when every patient gives the same outcome, e.g. 20 of 20 right, the
    bootstrap collapses to [1, 1] and a tiny test set would pass any floor. Both count films, not
    patients, because the bootstrap already carries the clustering wherever errors were seen; with many
    films of very few patients and no error they are therefore still optimistic. F1, average precision and
    Brier score are not widened and must not be judged against a floor.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) probabilities of the finding in [0, 1].
        patients: (N,) identifiers, text or whole numbers.
        threshold: A film is flagged when its score is at or above it.
        replicates: Number of resamples.
        confidence: Coverage of the interval, in (0, 1).
        seed: The same seed gives the same intervals, whatever the order of the rows.

    Returns:
        name -> interval, for every name of `METRICS`.

    Raises:
        ValueError: Wrong shapes or values.
    """
    _refuse_settings(replicates, confidence)
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    group = cohort(truth, patients)
    ranking = Ranking.of(truth, values, checked_threshold(threshold), group)
    resampled = _joined(ranking.metrics(drawn) for drawn in multiplicities(group, replicates, seed))
    counts = confusion(truth, values >= threshold)
    result = {}
    for name, metric in METRICS.items():
        value = metric(truth, values, threshold)
        limits = percentile_interval(value, resampled[name], confidence)
        result[name] = wider(limits, _score_interval(name, value, counts, confidence))
    return result


def paired_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    patients: ArrayLike,
    threshold_a: float,
    threshold_b: float,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """Compares two models on the same films: AUC, sensitivity and specificity of a minus those of b.

    Both are measured on the same resamples of patients, drawn as `bootstrap` draws them with this seed.
    Two models that agree on every film differ by 0 within [0, 0], so a comparison never stands alone:
    the floors on a's own intervals keep a test set that is too small from letting it through.

    Args:
        labels: (N,) 0 or 1.
        scores_a: (N,) probabilities of the finding by the first model.
        scores_b: (N,) the same by the second model.
        patients: (N,) identifiers, text or whole numbers.
        threshold_a: Operating point of the first model.
        threshold_b: Operating point of the second model.
        replicates: Number of resamples.
        confidence: Coverage of the interval, in (0, 1).
        seed: The same seed gives the same intervals.

    Returns:
        name -> interval of a - b, for every name of `COMPARED`.

    Raises:
        ValueError: Wrong shapes or values.
    """
    _refuse_settings(replicates, confidence)
    truth = checked_labels(labels)
    first, second = (checked_scores(scores, len(truth)) for scores in (scores_a, scores_b))
    thresholds = checked_threshold(threshold_a), checked_threshold(threshold_b)
    group = cohort(truth, patients)
    a = Ranking.of(truth, first, thresholds[0], group)
    b = Ranking.of(truth, second, thresholds[1], group)
    pairs = ((a.metrics(drawn), b.metrics(drawn)) for drawn in multiplicities(group, replicates, seed))
    resampled = _joined({name: of_a[name] - of_b[name] for name in COMPARED} for of_a, of_b in pairs)
    result = {}
    for name in COMPARED:
        value = METRICS[name](truth, first, thresholds[0]) - METRICS[name](truth, second, thresholds[1])
        result[name] = percentile_interval(value, resampled[name], confidence)
    return result


def clustered_share(
    outcomes: ArrayLike,
    patients: ArrayLike,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> Interval:
    """Gives a share of films, e.g. of those referred, with an interval that knows of patients.

    The wider, on each side, of the percentile bootstrap over whole patients and of Wilson's interval over
    films, as `bootstrap` does for the metrics.

    Args:
        outcomes: (N,) boolean (or 0 and 1), the films that count; none gives NaN.
        patients: (N,) identifiers, text or whole numbers.
        replicates: Number of resamples.
        confidence: Coverage of the interval, in (0, 1).
        seed: The same seed gives the same interval.

    Raises:
        ValueError: Wrong shapes or values.
    """
    _refuse_settings(replicates, confidence)
    if not np.size(outcomes):
        return Interval(NAN, NAN, NAN)
    truth = checked_labels(outcomes)
    # One stratum: here the outcome is what varies, and must not be fixed by the draw.
    group = cohort(np.zeros_like(truth), patients)
    sums = np.stack([np.bincount(group.patient_of_film, weights) for weights in (truth, np.ones(len(truth)))])
    shares = [np.divide(*(sums @ drawn.T)) for drawn in multiplicities(group, replicates, seed)]
    score = wilson(int(truth.sum()), len(truth), confidence)
    return wider(percentile_interval(score.value, np.concatenate(shares), confidence), score)


def _score_interval(name: str, value: float, counts: Counts, confidence: float) -> Interval:
    tp, fp, tn, fn = counts.tp, counts.fp, counts.tn, counts.fn
    if name == "auc":
        return newcombe_auc(value, tp + fn, tn + fp, confidence)
    if name not in PROPORTIONS:
        return Interval(value, NAN, NAN)
    right, n = {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
        "accuracy": (tp + tn, tp + fp + tn + fn),
    }[name]
    return wilson(right, n, confidence)


def wider(limits: Interval, score: Interval) -> Interval:
    """Joins the limits of a bootstrap with a score interval: on each side the wider, about the same value."""
    # No limits stay no limits; and fmin passes over the metrics that have no score interval.
    if math.isnan(limits.low):
        return limits
    return Interval(
        limits.value, float(np.fmin(limits.low, score.low)), float(np.fmax(limits.high, score.high))
    )


def percentile_interval(value: float, resampled: NDArray, confidence: float) -> Interval:
    """Makes a percentile interval of what resamples gave.

    Args:
        value: What the films themselves gave.
        resampled: (R,) the same of each resample, NaN where it is not defined.
        confidence: Coverage, in (0, 1).

    Returns:
        The value with limits; NaN limits when too many resamples have no value, or it is NaN itself.
    """
    undefined = np.isnan(resampled)
    if math.isnan(value) or undefined.mean() > MAX_UNDEFINED_SHARE:
        return Interval(float(value), NAN, NAN)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled[~undefined], (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))


def _joined(chunks: Iterable[dict[str, NDArray]]) -> dict[str, NDArray]:
    parts = list(chunks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _refuse_settings(replicates: int, confidence: float) -> None:
    critical_value(confidence)
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, found {replicates}")
