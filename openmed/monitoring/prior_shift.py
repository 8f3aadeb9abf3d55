"""How frequent a finding has become, estimated from calibrated probabilities of films without labels.

Where only the share of the finding changes and its looks do not (label shift), the probabilities say how much
likelier each film is with the finding than without it, and the share that makes all films likeliest is found
from these ratios: the maximum that the EM of Saerens, Latinne and Decaestecker (Neural Computation
2002;14:21-41) climbs to. The likelihood is concave, so it is found here by bisection of its slope.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.calibration_error import log_odds
from openmed.metrics.classification import checked_labels, checked_scores
from openmed.metrics.resampling import cohort, multiplicities

PRIOR_FILMS = 5
_STEPS, _NEWTON_STEPS = 32, 12


@dataclass(frozen=True)
class Known:
    """Films with labels that probabilities were calibrated on: where they hold, and how surely.

    Attributes:
        labels: (N,) 0 or 1.
        scores: (N,) probabilities of the finding in [0, 1].
        patients: (N,) identifiers, text or whole numbers.

    Raises:
        ValueError: Wrong shapes or values, or films of one class only.
    """

    labels: ArrayLike
    scores: ArrayLike
    patients: ArrayLike

    def __post_init__(self) -> None:
        labels = checked_labels(self.labels)
        checked_scores(self.scores, len(labels))
        if len(np.unique(labels)) < 2:
            raise ValueError("probabilities that hold for one class only say nothing of another share")

    @property
    def share(self) -> float:
        """Share of the films with the finding."""
        return float(np.mean(checked_labels(self.labels)))

    def maps(self, replicates: int, seed: int) -> NDArray[np.float64]:
        """Draws what other calibration films could have given.

        Patients are resampled, those of each class apart (their share cancels out of the ratios), and a
        logistic map of the log-odds is fitted to each resample, to Platt's smoothed targets, so that a
        resample in which the classes lie apart has one too.

        Returns:
            (replicates, 3): what each resample adds to the log-odds, per unit of them and at 0, and the share
            of the finding in it.
        """
        labels = checked_labels(self.labels)
        odds = log_odds(checked_scores(self.scores, len(labels)))
        group = cohort(labels, self.patients)
        whole = _logistic_maps(odds, labels, np.ones((1, len(labels))))
        maps = []
        for drawn in multiplicities(group, replicates, seed):
            films = drawn[:, group.patient_of_film]
            share = (films @ labels) / films.sum(1)
            maps.append(np.column_stack([_logistic_maps(odds, labels, films) - whole, share]))
        return np.concatenate(maps)


def share_of(
    ratios: NDArray[np.float64], weights: NDArray[np.float64], before: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Finds the share of the finding that makes films likeliest.

    The share of before counts as `PRIOR_FILMS` films of which so many had the finding: where the scores tell
    little of the share, it stays near that.

    Of `ratios`, (N,) or (R, N), how much likelier each film is with the finding than without it, above 0;
    `weights` (R, N), how often it counts; `before` (R,), the share where the probabilities hold, in (0, 1).
    """
    low, high = np.zeros(len(weights)), np.ones(len(weights))
    gains = ratios - 1
    for _ in range(_STEPS):
        middle = (low + high) / 2
        slope = (weights * gains / (1 + middle[:, None] * gains)).sum(1)
        slope += PRIOR_FILMS * (before / middle - (1 - before) / (1 - middle))
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return (low + high) / 2


def _logistic_maps(odds: NDArray, labels: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """(R, 2) slope and intercept of the logistic regression of each row of weights (R, N)."""
    spread = float(odds.std()) or 1.0
    units, having = odds / spread, weights @ labels
    without = weights.sum(1) - having
    targets = np.where(
        labels[None, :] == 1, ((having + 1) / (having + 2))[:, None], (1 / (without + 2))[:, None]
    )
    slope, intercept = np.full(len(weights), spread), np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        fitted = 1 / (1 + np.exp(-np.clip(slope[:, None] * units + intercept[:, None], -30, 30)))
        excess, bend = weights * (targets - fitted), weights * fitted * (1 - fitted)
        # A little more than nothing, so that a resample whose films are all at one place has an answer.
        a, b, c = (bend * units**2).sum(1) + 1e-6, (bend * units).sum(1), bend.sum(1) + 1e-6
        first, second = (excess * units).sum(1), excess.sum(1)
        determinant = a * c - b * b
        slope = slope + np.clip((c * first - b * second) / determinant, -2, 2)
        intercept = intercept + np.clip((a * second - b * first) / determinant, -2, 2)
    return np.column_stack([slope / spread, intercept])
