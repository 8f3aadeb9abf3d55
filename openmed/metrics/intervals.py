"""Confidence intervals of a classifier's metrics, which know that films of a patient resemble each other.

What a gate may judge has an interval in closed form that stays open on a tiny test set, chosen by its error
rates (benchmarks/error_rates.py): shares by Wilson's interval, the AUC by DeLong's on the scale of the
log-odds, both with design effects; two models on the same films by Tango's and by those of their AUCs. The
other metrics are resampled by whole patients.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import (
    METRICS,
    NAN,
    checked_labels,
    checked_scores,
    checked_threshold,
)
from openmed.metrics.clustered import clustered_share, operating_shares
from openmed.metrics.delong import delong_auc, delong_difference
from openmed.metrics.paired_proportions import compare_flags
from openmed.metrics.resampling import Ranking, cohort, multiplicities
from openmed.metrics.score_intervals import Interval

# Above this share of resamples without a value, what is left no longer stands for the test set.
MAX_UNDEFINED_SHARE = 0.05
COMPARED = ("auc", "sensitivity", "specificity")
PROPORTIONS = ("sensitivity", "specificity", "ppv", "npv", "accuracy")


def metric_intervals(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """Gives every metric of `METRICS` its value and an interval.

    The metrics of `judged_intervals` as it does; F1, average precision and Brier score with a percentile
    bootstrap: whole patients are drawn with replacement within their stratum (only films without the
    finding, only films with it, both). Resamples in which a metric is undefined are left out; if they are
    more than 5 %, or the value itself is NaN, the limits are NaN. A bootstrap only knows the errors it has
    seen, so these three must not be judged against a floor.

    The same seed gives the same intervals, whatever the order of the rows.
    """
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, found {replicates}")
    judged = judged_intervals(labels, scores, patients, threshold, confidence)
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    group = cohort(truth, patients)
    ranking = Ranking.of(truth, values, checked_threshold(threshold), group)
    drawn = [ranking.metrics(counts) for counts in multiplicities(group, replicates, seed)]
    resampled = {name: np.concatenate([each[name] for each in drawn]) for name in METRICS}
    return {
        name: judged[name]
        if name in judged
        else percentile_interval(metric(truth, values, threshold), resampled[name], confidence)
        for name, metric in METRICS.items()
    }


def judged_intervals(
    labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, threshold: float, confidence: float = 0.95
) -> dict[str, Interval]:
    """Gives "auc" and every name of `PROPORTIONS`, which a gate may judge, values and intervals."""
    truth, patient = checked_labels(labels), np.asarray(patients)
    values = checked_scores(scores, len(truth))
    flagged, has = values >= checked_threshold(threshold), truth == 1
    return {
        "auc": delong_auc(truth, values, patient, confidence),
        **operating_shares(has, flagged, patient, confidence),
        "ppv": clustered_share(has[flagged], patient[flagged], confidence),
        "npv": clustered_share(~has[~flagged], patient[~flagged], confidence),
        "accuracy": clustered_share(has == flagged, patient, confidence),
    }


def paired_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    patients: ArrayLike,
    threshold_a: float,
    threshold_b: float,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Compares two models on the same films: every metric of `COMPARED` of a minus that of b.

    See `delong_difference` and `compare_flags`. Models that agree on every film differ by 0 within limits
    that say how many films agreed.
    """
    truth = checked_labels(labels)
    first, second = (checked_scores(scores, len(truth)) for scores in (scores_a, scores_b))
    flags = first >= checked_threshold(threshold_a), second >= checked_threshold(threshold_b)
    area = delong_difference(truth, first, second, patients, confidence)
    return {"auc": area, **compare_flags(truth, *flags, patients, confidence)}


def wider(limits: Interval, score: Interval) -> Interval:
    """Joins the limits of a bootstrap with a score interval: on each side the wider, about the same value."""
    # No limits stay no limits.
    if math.isnan(limits.low):
        return limits
    return Interval(limits.value, min(limits.low, score.low), max(limits.high, score.high))


def percentile_interval(value: float, resampled: NDArray, confidence: float) -> Interval:
    """Makes a percentile interval of a value and of what resamples gave, (R,), NaN where it is not defined.

    The limits are NaN when too many resamples have no value, or it is NaN itself.
    """
    undefined = np.isnan(resampled)
    if math.isnan(value) or undefined.mean() > MAX_UNDEFINED_SHARE:
        return Interval(float(value), NAN, NAN)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled[~undefined], (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))
