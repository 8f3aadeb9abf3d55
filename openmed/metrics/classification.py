"""How good a classifier of one finding is: point values and curves, on plain arrays.

Shared by all modules of this folder: `labels` is (N,), 1 = the finding and 0 = without it; `scores` is (N,),
the probability of the finding in [0, 1]; a film is flagged when its score is at or above the threshold;
`patients` is (N,) identifiers, text or whole numbers; `confidence` is the coverage of an interval, in (0, 1).
Wrong shapes or values raise ValueError. A value that cannot be computed (one class only, nothing flagged) is
NaN, never 0 or 1: a gate then refuses it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NAN = float("nan")


@dataclass(frozen=True)
class Counts:
    """Films by truth and flag: true positives, false positives, true negatives, false negatives."""

    tp: int
    fp: int
    tn: int
    fn: int


def checked_labels(labels: ArrayLike) -> NDArray[np.int64]:
    """Returns labels as int (N,); ValueError where there are none, or anything but 0 and 1 (missing too)."""
    array = np.asarray(labels)
    _refuse_shape("labels", array)
    wrong = array[~np.isin(array, (0, 1))]
    if wrong.size:
        raise ValueError(f"labels must be 0 or 1, found {wrong[0]}; leave films of unknown label out")
    return array.astype(np.int64)


def checked_scores(scores: ArrayLike, films: int) -> NDArray[np.float64]:
    """Returns scores as float (films,); ValueError where not each film has one, in [0, 1]."""
    array = np.asarray(scores)
    _refuse_shape("scores", array)
    if len(array) != films:
        raise ValueError(f"there are {films} labels but {len(array)} scores; give one score a film")
    array = array.astype(np.float64)
    wrong = array[~((array >= 0) & (array <= 1))]
    if wrong.size:
        raise ValueError(f"scores must be probabilities in [0, 1], found {wrong[0]}")
    return array


def checked_threshold(threshold: float) -> float:
    """Returns the threshold as a float; ValueError where it is NaN or infinite."""
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold must be a finite number, found {threshold}")
    return float(threshold)


def confusion(labels: ArrayLike, flagged: ArrayLike) -> Counts:
    """Counts films by truth and by `flagged`, (N,) boolean (or 0 and 1)."""
    truth = checked_labels(labels).astype(bool)
    flags = np.asarray(flagged)
    if flags.shape != truth.shape:
        raise ValueError(f"there are {len(truth)} labels but flags of shape {flags.shape}")
    flags = checked_labels(flags).astype(bool)
    tp, fp = int(np.sum(truth & flags)), int(np.sum(~truth & flags))
    return Counts(tp=tp, fp=fp, tn=int(np.sum(~truth)) - fp, fn=int(np.sum(truth)) - tp)


def accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Share of films whose flag is right."""
    counts = _counts(labels, scores, threshold)
    return _ratio(counts.tp + counts.tn, counts.tp + counts.fp + counts.tn + counts.fn)


def f1(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Harmonic mean of sensitivity and PPV; NaN where either is not defined."""
    counts = _counts(labels, scores, threshold)
    if counts.tp + counts.fn == 0 or counts.tp + counts.fp == 0:
        return NAN
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def sensitivity(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Share of the films with the finding that are flagged."""
    counts = _counts(labels, scores, threshold)
    return _ratio(counts.tp, counts.tp + counts.fn)


def specificity(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Share of the films without the finding that are not flagged."""
    counts = _counts(labels, scores, threshold)
    return _ratio(counts.tn, counts.tn + counts.fp)


def ppv(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Positive predictive value: share of the flagged films that have the finding."""
    counts = _counts(labels, scores, threshold)
    return _ratio(counts.tp, counts.tp + counts.fp)


def npv(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """Negative predictive value: share of the films not flagged that lack the finding."""
    counts = _counts(labels, scores, threshold)
    return _ratio(counts.tn, counts.tn + counts.fn)


def auc(labels: ArrayLike, scores: ArrayLike, threshold: float = NAN) -> float:
    """Area under the ROC curve: how often a film with the finding outscores one without, ties half.

    The threshold plays no part; it is there so that all metrics are called alike.
    """
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    with_finding, without = values[truth == 1], np.sort(values[truth == 0])
    below = np.searchsorted(without, with_finding, "left")
    up_to = np.searchsorted(without, with_finding, "right")
    return _ratio(float(np.sum(below + up_to)), 2 * len(with_finding) * len(without))


def average_precision(labels: ArrayLike, scores: ArrayLike, threshold: float = NAN) -> float:
    """Precision averaged over the steps of recall (no interpolation), films of equal score as one step."""
    recall, precision, _ = precision_recall_points(labels, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def brier(labels: ArrayLike, scores: ArrayLike, threshold: float = NAN) -> float:
    """Mean squared distance of the probability from the truth; lower is better."""
    truth = checked_labels(labels)
    return float(np.mean((checked_scores(scores, len(truth)) - truth) ** 2))


METRICS: dict[str, Callable[[ArrayLike, ArrayLike, float], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "ppv": ppv,
    "npv": npv,
    "auc": auc,
    "average_precision": average_precision,
    "brier": brier,
}


def roc_curve_points(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Returns false positive rate, true positive rate and threshold, by falling threshold.

    The first point is (0, 0) at threshold infinity. A rate whose class is missing is NaN.
    """
    thresholds, tp, fp = _steps(labels, scores)
    fpr, tpr = (np.append(0, n) / n[-1] if n[-1] else np.full(len(n) + 1, NAN) for n in (fp, tp))
    return fpr, tpr, np.append(np.inf, thresholds)


def precision_recall_points(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Returns recall, precision and threshold, by falling threshold.

    One point for each distinct score; there is no made-up point where nothing is flagged. NaN when
    one of the two classes is missing.
    """
    thresholds, tp, fp = _steps(labels, scores)
    if tp[-1] == 0 or fp[-1] == 0:
        return np.full(len(tp), NAN), np.full(len(tp), NAN), thresholds
    return tp / tp[-1], tp / (tp + fp), thresholds


def reliability_points(
    labels: ArrayLike, scores: ArrayLike, bins: int = 10
) -> tuple[NDArray, NDArray, NDArray]:
    """Returns mean predicted probability, observed share of the finding and number of films by bin.

    Bins are equally wide, [0, 1/bins), ..., [1 - 1/bins, 1]; bins without films are left out.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    bin_of_film = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values, side="right")
    films = np.bincount(bin_of_film, minlength=bins)
    held = films > 0
    predicted = np.bincount(bin_of_film, values, minlength=bins)[held] / films[held]
    observed = np.bincount(bin_of_film, truth, minlength=bins)[held] / films[held]
    return predicted, observed, films[held]


def _refuse_shape(name: str, array: NDArray) -> None:
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be one value a film and not empty, found shape {array.shape}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be numbers, found type {array.dtype}")


def _counts(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Counts:
    truth = checked_labels(labels)
    return confusion(truth, checked_scores(scores, len(truth)) >= checked_threshold(threshold))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN


def _steps(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Distinct scores, falling, with the true and false positives when flagging from each on."""
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.flatnonzero(np.append(np.diff(values) != 0, True))
    tp = np.cumsum(truth)[last]
    return values[last], tp, last + 1 - tp
