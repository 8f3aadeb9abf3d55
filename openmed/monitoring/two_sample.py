"""Distances between two sets of films, for many resamples of patients at once.

Each distance is prepared once and then called with (R, patients) multiplicities, as `resampling` draws them;
films of the two sets stand in one table, told apart by a membership of 0 (reference) or 1 (new).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openmed.metrics.resampling import Cohort, ratios

Distance = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_FOLDS = 5


def share_differences(codes: NDArray, membership: NDArray, group: Cohort) -> Distance:
    """Prepares the difference of the shares of each category, new minus reference: (R, K) in [-1, 1].

    Of the category of each film, (N,), 0 to K - 1, or -1 for films that are not counted. NaN where a resample
    has no film on one side.
    """
    categories = int(codes.max()) + 1
    counted = codes >= 0
    cell = group.patient_of_film * categories + codes
    counts = [
        np.bincount(cell[counted & (membership == side)], minlength=group.patients * categories)
        .reshape(group.patients, categories)
        .astype(np.float64)
        for side in (0, 1)
    ]

    def differences(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        old, new = (drawn @ table for table in counts)
        return ratios(new, new.sum(1, keepdims=True)) - ratios(old, old.sum(1, keepdims=True))

    return differences


def wasserstein(values: NDArray, membership: NDArray, group: Cohort) -> Distance:
    """Prepares the first Wasserstein distance of a measurement: how far it moved, in its own unit.

    It is the area between the two distribution functions (Ramdas et al., On Wasserstein Two-Sample Testing,
    Entropy 2017;19:47).

    Of (N,) values; films where it is NaN are not counted. The distances are (R,), NaN where a resample has no
    film on one side.
    """
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    gaps = np.diff(values[order], append=values[order[-1:]])
    patient, new = group.patient_of_film[order], membership[order] == 1

    def distances(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = np.take(drawn, patient, axis=1, mode="clip")
        totals = np.stack([weights[:, ~new].sum(1), weights[:, new].sum(1)])
        old_weight, new_weight = np.divide(1, totals, out=np.full_like(totals, np.nan), where=totals > 0)
        weights *= np.where(new[None, :], new_weight[:, None], -old_weight[:, None])
        return np.abs(np.cumsum(weights, axis=1, out=weights), out=weights) @ gaps

    return distances


def domain_scores(features: NDArray, membership: NDArray, group: Cohort, seed: int) -> NDArray[np.float64]:
    """Scores how much each film looks like one of the new set, by a model that has not seen its patient.

    The classifier two-sample test of Lopez-Paz and Oquab (Revisiting Classifier Two-Sample Tests, ICLR 2017),
    one of those compared by Rabanser et al. (Failing Loudly, NeurIPS 2019): where no classifier can tell the
    sets apart, the AUC of these scores is near 0.5. A logistic regression is fitted to four fifths of the
    patients at a time and scores the rest.

    Of features (N, K): probabilities (N,) in [0, 1]. The seed changes the folds.
    """
    stream = np.random.default_rng(seed)
    # Each stratum is dealt out on its own, so that every fold has patients of both sets.
    fold = np.concatenate([stream.permutation(size) % _FOLDS for size in group.strata])[group.patient_of_film]
    scores = np.empty(len(features))
    for held_out in range(_FOLDS):
        rest = fold != held_out
        model = make_pipeline(
            StandardScaler(), LogisticRegression(solver="newton-cholesky", class_weight="balanced")
        )
        model.fit(features[rest], membership[rest])
        scores[~rest] = model.predict_proba(features[~rest])[:, 1]
    return scores
