"""Resampling of whole patients, and the metrics of many resamples at once.

A resample is a row of multiplicities: how often each patient was drawn. A metric of a resample is the
metric with these numbers as weights, so nothing is ever sorted twice or copied film by film.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Size of one array of a chunk, of which about eight are alive at a time. Memory hardly matters at this size;
# small arrays stay in the processor's cache and are reused by the allocator, which is 4 times faster.
_CHUNK_BYTES = 512 << 10


@dataclass(frozen=True)
class Cohort:
    """The patients of a test set, by stratum and then by identifier.

    Attributes:
        patient_of_film: (N,) position of each film's patient.
        strata: Number of patients in each stratum; patients of a stratum are neighbours.
    """

    patient_of_film: NDArray[np.intp]
    strata: tuple[int, ...]

    @property
    def patients(self) -> int:
        """Number of patients."""
        return sum(self.strata)


def cohort(labels: NDArray, patients: ArrayLike) -> Cohort:
    """Groups films by patient and patients by label, 0 or 1.

    The strata are: only films without the finding, only films with it, both. Patients are sorted, so
    the order of the rows does not change what a seed draws.
    """
    codes = patient_codes(patients, len(labels))
    films = np.bincount(codes)
    positives = np.bincount(codes, labels)
    stratum = np.where(positives == 0, 0, np.where(positives == films, 1, 2))
    order = np.argsort(stratum, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    return Cohort(position[codes], tuple(int(n) for n in np.bincount(stratum) if n))


def patient_codes(patients: ArrayLike, films: int) -> NDArray[np.intp]:
    """Numbers the patients by identifier, from 0: (films,); ValueError where one is missing."""
    array = np.asarray(patients)
    if array.shape != (films,):
        raise ValueError(f"there are {films} labels but patients of shape {array.shape}; give one a film")
    if array.dtype == object and all(isinstance(name, str) for name in array):
        array = array.astype(str)
    if array.dtype.kind not in "Uiu":
        raise ValueError(
            f"patients must be all text or all whole numbers, none missing, found type {array.dtype}"
        )
    return np.unique(array, return_inverse=True)[1]


def lowest_of_each(values: NDArray, patient: NDArray[np.intp]) -> NDArray[np.float64]:
    """Returns the lowest value of each patient, rising, of values (N,) and codes (N,) from 0."""
    lowest = np.full(int(patient.max(initial=-1)) + 1, np.inf)
    np.minimum.at(lowest, patient, values)
    return np.sort(lowest[np.isfinite(lowest)])


def ratios(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """Returns part / whole, element by element; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def multiplicities(group: Cohort, replicates: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Draws resamples: each stratum's patients with replacement, as many as it has.

    The same seed draws the same resamples; each stratum has a stream of its own.

    Yields:
        (at most replicates, patients) how often each patient was drawn, in chunks of bounded size.
    """
    streams = np.random.default_rng(seed).spawn(len(group.strata))
    rows = max(1, _CHUNK_BYTES // (8 * len(group.patient_of_film)))
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        drawn = [_draw(stream, count, size) for stream, size in zip(streams, group.strata, strict=True)]
        yield np.concatenate(drawn, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Ranking:
    """Films of one model in the order of their scores, ready to be weighted.

    Attributes:
        patient: (N,) patient of each film: first the films without the finding, then those with it,
            each by rising score.
        negatives: Number of films without the finding.
        negatives_below: (P,) for each film with the finding, the films without it that score lower.
        negatives_up_to: (P,) the same, with those of equal score.
        positives_below: (P,) for each film with the finding, the films with it that score lower.
        sums: (5, patients) each patient's true positives, false positives, films with the finding, films
            without it, and sum of squared errors.
    """

    patient: NDArray[np.intp]
    negatives: int
    negatives_below: NDArray[np.intp]
    negatives_up_to: NDArray[np.intp]
    positives_below: NDArray[np.intp]
    sums: NDArray[np.float64]

    @classmethod
    def of(cls, labels: NDArray, scores: NDArray, threshold: float, group: Cohort) -> "Ranking":
        """Sorts the films once; labels and scores must have been checked."""
        order = np.lexsort((scores, labels))
        count = int(np.sum(labels == 0))
        without, having = scores[order[:count]], scores[order[count:]]
        flagged = scores >= threshold
        columns = (labels * flagged, (1 - labels) * flagged, labels, 1 - labels, (scores - labels) ** 2)
        sums = [np.bincount(group.patient_of_film, column, group.patients) for column in columns]
        return cls(
            patient=group.patient_of_film[order],
            negatives=count,
            negatives_below=np.searchsorted(without, having, "left"),
            negatives_up_to=np.searchsorted(without, having, "right"),
            positives_below=np.searchsorted(having, having, "left"),
            sums=np.stack(sums),
        )

    def metrics(self, drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Returns every metric of `METRICS` for each resample of (R, patients) multiplicities.

        name -> (R,), NaN in the resamples in which the metric is not defined.
        """
        tp, fp, positives, negatives, squared = self.sums @ drawn.T
        fn, tn, films = positives - tp, negatives - fp, positives + negatives
        defined = (positives > 0) & (tp + fp > 0)
        values = {
            "accuracy": ratios(tp + tn, films),
            "f1": np.where(defined, ratios(2 * tp, 2 * tp + fp + fn), np.nan),
            "sensitivity": ratios(tp, positives),
            "specificity": ratios(tn, negatives),
            "ppv": ratios(tp, tp + fp),
            "npv": ratios(tn, tn + fn),
            "brier": ratios(squared, films),
        }
        values["auc"], values["average_precision"] = self._ranked(drawn, positives, negatives)
        return values

    def _ranked(self, drawn: NDArray, positives: NDArray, negatives: NDArray) -> tuple[NDArray, NDArray]:
        """AUC and average precision, films of equal score counted as one step."""
        # All positions are in range; "clip" only spares numpy the check, at half the time.
        weights = np.take(drawn, self.patient, axis=1, mode="clip")
        having = weights[:, self.negatives :]
        summed = cumulated(weights[:, : self.negatives])
        below = np.take(summed, self.negatives_below, axis=1, mode="clip")
        up_to = np.take(summed, self.negatives_up_to, axis=1, mode="clip")
        wins = np.einsum("rp,rp->r", having, below) + np.einsum("rp,rp->r", having, up_to)
        auc = ratios(wins, 2 * positives * negatives)

        missed = np.take(cumulated(having), self.positives_below, axis=1, mode="clip")
        true_flags = np.subtract(positives[:, None], missed, out=missed)
        all_flags = np.subtract(negatives[:, None], below, out=below)
        all_flags += true_flags
        # A film nobody drew may leave 0 / 0 here; it weighs nothing, so any divisor will do.
        np.maximum(all_flags, 1, out=all_flags)
        true_flags /= all_flags
        precision = np.einsum("rp,rp->r", having, true_flags)
        return auc, np.where(negatives > 0, ratios(precision, positives), np.nan)


def _draw(stream: np.random.Generator, rows: int, size: int) -> NDArray:
    picks = stream.integers(0, size, size=(rows, size))
    picks += np.arange(rows)[:, None] * size
    return np.bincount(picks.ravel(), minlength=rows * size).reshape(rows, size)


def cumulated(weights: NDArray) -> NDArray[np.float64]:
    """Returns cumulative sums along rows (R, N), with a 0 before them: (R, N + 1)."""
    result = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=result[:, 1:])
    return result
