"""How a model does on films whose truth nobody knows yet, judged by its own calibrated probabilities.

Confidence-based performance estimation (Bialek, Kuberski, Perrakis and Bifet, Estimating Model Performance
Under Covariate Shift Without Labels, 2024, arXiv:2401.08348): where a probability of 0.8 means that eight in
ten such films have the finding, what is expected of a threshold can be counted without labels. It sees films
that have become harder to tell; it cannot see that the probabilities themselves no longer hold, as after a
change of what the finding looks like. So it stands beside drift and, once there are labels, the truth.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import checked_scores, checked_threshold
from openmed.metrics.intervals import Interval, percentile_interval
from openmed.metrics.resampling import cohort, multiplicities


def expected_performance(
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """Expects sensitivity, specificity and AUC of films without labels.

    Sensitivity is the share of the expected findings that is flagged, specificity the share of the expected
    films without it that is not; the AUC is that of every film counted twice, as having the finding with
    the weight of its probability and as not having it with the rest. The intervals say which films happened
    to come (whole patients are resampled), not whether the probabilities hold.

    Args:
        scores: (N,) calibrated probabilities of the finding, in [0, 1].
        patients: (N,) identifiers, text or whole numbers.
        threshold: A film is flagged when its score is at or above it.
        replicates: Number of resamples.
        confidence: Coverage of the intervals, in (0, 1).
        seed: The same seed gives the same intervals.

    Returns:
        auc, sensitivity and specificity -> interval; NaN where nothing is expected of one side.

    Raises:
        ValueError: Wrong shapes or values.
    """
    values = checked_scores(scores, np.size(scores))
    order = np.argsort(values, kind="stable")
    sorted_scores, names = values[order], np.asarray(patients)[order]
    group = cohort(np.zeros(len(values), np.int64), names)
    flagged = sorted_scores >= checked_threshold(threshold)
    places = [np.searchsorted(sorted_scores, sorted_scores, side) for side in ("left", "right")]

    def measured(drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        films = drawn[:, group.patient_of_film]
        having, without = films * sorted_scores, films * (1 - sorted_scores)
        below = np.cumsum(without, axis=1)
        below = np.concatenate([np.zeros((len(films), 1)), below], axis=1)
        won = (having * (below[:, places[0]] + below[:, places[1]])).sum(1) / 2
        return {
            "auc": _share(won, having.sum(1) * without.sum(1)),
            "sensitivity": _share(having[:, flagged].sum(1), having.sum(1)),
            "specificity": _share(without[:, ~flagged].sum(1), without.sum(1)),
        }

    whole = measured(np.ones((1, group.patients)))
    parts = [measured(drawn) for drawn in multiplicities(group, replicates, seed)]
    return {
        name: percentile_interval(float(value[0]), np.concatenate([p[name] for p in parts]), confidence)
        for name, value in whole.items()
    }


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
