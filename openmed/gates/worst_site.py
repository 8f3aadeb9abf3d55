"""The worst sensitivity and the worst specificity of a model over several sites."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.metrics.classification import checked_labels
from openmed.metrics.clustered import clustered_share
from openmed.metrics.intervals import percentile_interval, wider
from openmed.metrics.resampling import cohort, multiplicities
from openmed.metrics.score_intervals import Interval


@dataclass(frozen=True)
class Worst:
    """The lowest of several shares.

    Attributes:
        site: Position of the site that has it.
        interval: Its value with limits.
    """

    site: int
    interval: Interval


def worst_site(
    labels: ArrayLike,
    flagged: ArrayLike,
    patients: ArrayLike,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> dict[str, Worst]:
    """Finds the lowest sensitivity and the lowest specificity over sites that show the same films.

    The interval is that of the lowest share itself: in each resample of whole patients, drawn as
    `intervals.metric_intervals` draws them, the lowest over all sites is taken anew. Chance makes the lowest
    of many a little lower, so the limits err on the careful side. They are widened to the interval at the
    worst site alone, as a bootstrap cannot see errors that did not happen. NaN without films of a class.

    Raises:
        ValueError: Wrong shapes or values; `flagged` must be (sites, N).
    """
    truth, called = checked_labels(labels), np.asarray(flagged, bool)
    if called.ndim != 2 or called.shape[1] != len(truth) or not len(called):
        raise ValueError(f"flagged must be (sites, {len(truth)}), found {called.shape}")
    group, wanted = cohort(truth, patients), {"sensitivity": truth == 1, "specificity": truth == 0}
    right = called == (truth == 1)
    drawn = np.concatenate(list(multiplicities(group, replicates, seed)))
    return {
        name: _lowest(right, where, group.patient_of_film, drawn, confidence)
        for name, where in wanted.items()
    }


def _lowest(
    right: NDArray[np.bool_],
    where: NDArray[np.bool_],
    patient: NDArray[np.intp],
    drawn: NDArray,
    level: float,
) -> Worst:
    patients, films = drawn.shape[1], int(where.sum())
    if not films:
        return Worst(0, Interval(np.nan, np.nan, np.nan))
    hits = np.stack([np.bincount(patient, where & row, patients) for row in right])
    all_ = np.bincount(patient, where, patients)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = ((drawn @ hits.T) / (drawn @ all_)[:, None]).min(1)
    counts = hits.sum(1)
    site = int(counts.argmin())
    there = clustered_share(right[site][where], patient[where], level)
    return Worst(site, wider(percentile_interval(there.value, resampled, level), there))
