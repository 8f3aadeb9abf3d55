"""How a model does on films whose truth nobody knows yet, judged by its own calibrated probabilities.

Confidence-based performance estimation (Bialek, Kuberski, Perrakis and Bifet, Estimating Model Performance
Under Covariate Shift Without Labels, 2024, arXiv:2401.08348): where a probability of 0.8 means that eight in
ten such films have the finding, what is expected of a threshold can be counted without labels. Probabilities
hold at one share of the finding, so the share of the new films is estimated first and the probabilities are
carried over to it (`prior_shift`). It sees films that have become harder to tell; it cannot see that the
finding looks otherwise than it did, and scores that tell nothing look as good as ever. So it can ask for
labels and never decide.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.calibration_error import log_odds
from openmed.metrics.classification import checked_scores, checked_threshold
from openmed.metrics.intervals import Interval, percentile_interval
from openmed.metrics.resampling import cohort, cumulated, multiplicities, ratios
from openmed.monitoring.prior_shift import Known, share_of


def expected_performance(
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    known: Known,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Interval]:
    """Expects sensitivity, specificity and AUC of films without labels, at the share that they have.

    Sensitivity is the share of the expected findings that is flagged, specificity the share of the expected
    films without it that is not; the AUC is that of every film counted twice, as having the finding with
    the weight of its probability at the estimated share and as not having it with the rest. The intervals
    say which films happened to come and which calibration films (patients of both are resampled, the share
    and the calibration found again in each), not whether the looks of the finding still hold. The scores are
    (N,) calibrated probabilities of the finding, in [0, 1], that hold on the known films.

    Returns:
        auc, sensitivity, specificity and share (with the finding) -> interval; NaN where a side is empty.
    """
    values = checked_scores(scores, np.size(scores))
    order = np.argsort(values, kind="stable")
    values, names = values[order], np.asarray(patients)[order]
    group = cohort(np.zeros(len(values), np.int64), names)
    odds, flagged = log_odds(values), values >= checked_threshold(threshold)
    places = [np.searchsorted(values, values, side) for side in ("left", "right")]

    def measured(drawn: NDArray[np.float64], maps: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        films = drawn[:, group.patient_of_film]
        share, posterior = _carried(odds, films, maps)
        having, without = films * posterior, films * (1 - posterior)
        below = cumulated(without)
        won = (having * (below[:, places[0]] + below[:, places[1]])).sum(1) / 2
        return {
            "auc": ratios(won, having.sum(1) * without.sum(1)),
            "sensitivity": ratios(having[:, flagged].sum(1), having.sum(1)),
            "specificity": ratios(without[:, ~flagged].sum(1), without.sum(1)),
            "share": share,
        }

    whole = measured(np.ones((1, group.patients)), np.array([[0.0, 0.0, known.share]]))
    drawn = multiplicities(group, replicates, seed)
    maps = iter(known.maps(replicates, seed + 1))
    parts = [measured(part, np.array([next(maps) for _ in part])) for part in drawn]
    return {
        name: percentile_interval(float(value[0]), np.concatenate([p[name] for p in parts]), confidence)
        for name, value in whole.items()
    }


def posteriors(scores: ArrayLike, known: Known) -> tuple[float, NDArray[np.float64]]:
    """Estimates the share of the finding among films, and their probabilities (N,) at that share."""
    odds = log_odds(checked_scores(scores, np.size(scores)))
    share, posterior = _carried(odds, np.ones((1, len(odds))), np.array([[0.0, 0.0, known.share]]))
    return float(share[0]), posterior[0]


def _carried(odds: NDArray, films: NDArray, maps: NDArray) -> tuple[NDArray, NDArray]:
    """The share of each resample (R,) and the probabilities (R, N) at it."""
    slope, intercept, before = maps.T[:, :, None]
    shifted = odds * np.maximum(1 + slope, 0) + intercept - np.log(before / (1 - before))
    ratios = np.exp(np.clip(shifted, -30, 30))
    share = share_of(ratios, films, before[:, 0])
    at_share = share[:, None] * ratios
    return share, at_share / (at_share + 1 - share[:, None])
