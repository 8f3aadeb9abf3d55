"""How far two readers of the same films agree."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.clustered import clustered_share
from openmed.metrics.intervals import percentile_interval
from openmed.metrics.resampling import cohort, multiplicities
from openmed.metrics.score_intervals import Interval, critical_value


@dataclass(frozen=True)
class Agreement:
    """Agreement of two labels.

    Attributes:
        films: Films with both labels.
        share: Share of them on which the labels are the same.
        kappa: Cohen's kappa: 1 is full agreement, 0 is what chance would give.
    """

    films: int
    share: Interval
    kappa: Interval

    def to_json(self) -> dict:
        """Returns the plain content, NaN as None."""
        return {"films": self.films, "share": self.share.to_json(), "kappa": self.kappa.to_json()}


def agreement(
    first: ArrayLike,
    second: ArrayLike,
    patients: ArrayLike,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> Agreement:
    """Measures how far two readers agree beyond chance, by their labels (N,), whole numbers from 0.

    Cohen J. A coefficient of agreement for nominal scales. Educ Psychol Meas 1960;20:37-46. Intervals
    resample whole patients; that of the share is at least as wide as Wilson's. Kappa is NaN where both
    readers gave one and the same label to all films: chance then explains everything.

    Raises:
        ValueError: Wrong shapes or values.
    """
    critical_value(confidence)
    one, other = np.asarray(first, np.int64), np.asarray(second, np.int64)
    if one.ndim != 1 or one.shape != other.shape or not one.size or min(one.min(), other.min()) < 0:
        raise ValueError("there must be two labels a film, whole numbers from 0")
    classes = int(max(one.max(), other.max())) + 1
    # One stratum: which labels were given is what varies.
    group = cohort(np.zeros_like(one), patients)
    cells = group.patient_of_film * classes**2 + one * classes + other
    tables = np.bincount(cells, minlength=group.patients * classes**2).reshape(group.patients, -1)
    drawn = [weights @ tables for weights in multiplicities(group, replicates, seed)]
    kappas = _kappa(np.concatenate(drawn), classes)
    (kappa,) = _kappa(tables.sum(axis=0, keepdims=True).astype(np.float64), classes)
    share = clustered_share(one == other, patients, confidence)
    return Agreement(len(one), share, percentile_interval(float(kappa), kappas, confidence))


def _kappa(tables: NDArray[np.float64], classes: int) -> NDArray:
    """Cohen's kappa of tables (R, classes * classes)."""
    counts = tables.reshape(-1, classes, classes)
    films = counts.sum(axis=(1, 2))
    share = np.trace(counts, axis1=1, axis2=2) / films
    chance = (counts.sum(axis=2) * counts.sum(axis=1)).sum(axis=1) / films**2
    # Exactly 1 where every film has one label from both readers.
    certain = chance >= 1 - 1e-12
    kappa = (share - chance) / np.where(certain, 1, 1 - chance)
    return np.where(certain, np.nan, kappa)
