"""The operating point: the threshold above which a film is flagged."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.errors import BadInput
from openmed.metrics.classification import checked_labels, checked_scores
from openmed.metrics.resampling import cohort


@dataclass(frozen=True)
class ControlledThreshold:
    """A threshold with a promise, and the evidence for it.

    Attributes:
        threshold: A film is flagged when its score is at or above it, in [0, 1].
        target_sensitivity: What is promised.
        confidence: How surely.
        patients: Calibration patients with the finding.
        missed: Those of them with a film, among those with the finding, that is not flagged.
        lower_limit: One-sided lower limit of the sensitivity, at or above the target.
    """

    threshold: float
    target_sensitivity: float
    confidence: float
    patients: int
    missed: int
    lower_limit: float

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)


def choose_threshold(labels: ArrayLike, scores: ArrayLike, target_sensitivity: float) -> float:
    """Returns the highest threshold that keeps the sensitivity at or above a target.

    Of all thresholds that flag the same films it is the one half way between the lowest score that must
    be flagged and the next lower score (0 if there is none), so that a last-digit difference between two
    machines does not move a film across it. It is rounded to 32-bit precision, the precision of the
    scores; where two scores are too close for that, it is the flagged score itself.

    Args:
        labels: (N,) 0 or 1, of calibration films: never the films the model is judged on.
        scores: (N,) probabilities of the finding in [0, 1].
        target_sensitivity: In (0, 1].

    Returns:
        The threshold in [0, 1]; a film is flagged when its score is at or above it.

    Raises:
        BadInput: The target is out of range, or no film has the finding.
        ValueError: Wrong shapes or values.
    """
    if not 0 < target_sensitivity <= 1:
        raise BadInput(f"target_sensitivity must be above 0 and at most 1, found {target_sensitivity}")
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    return _half_way(values, _lowest_flagged(values, truth, target_sensitivity))


def controlled_threshold(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    target_sensitivity: float,
    confidence: float = 0.95,
) -> ControlledThreshold:
    """Returns the highest threshold of which the sensitivity is known to reach a target.

    `choose_threshold` reaches the target on the calibration films, so on new films it misses it about every
    second time. Here the one-sided lower limit of Clopper and Pearson (Biometrika 1934;26:404-413) must reach
    it: then, over calibration sets drawn like this one, P(true sensitivity >= target) >= confidence. The
    limit holds although the threshold is chosen by it, because the sensitivity only falls as the threshold
    rises (fixed-sequence testing; Angelopoulos et al., Learn then Test, Ann Appl Stat 2025;19:1641-1662).

    Films of one patient are no independent evidence. So a patient counts once, and as found only when every
    one of their films with the finding is flagged: the guarantee is that a new patient is found so with at
    least the target probability, hence that a film of a patient drawn at random is. It is not one for films
    drawn at random where patients with many films are the harder ones; so that it is no worse there than
    `choose_threshold`, the threshold is never above that one's.

    Args:
        labels: (N,) 0 or 1, of calibration films: never the films the model is judged on.
        scores: (N,) probabilities of the finding in [0, 1].
        patients: (N,) identifiers, text or whole numbers.
        target_sensitivity: In (0, 1).
        confidence: In (0, 1).

    Raises:
        BadInput: A number is out of range, or too few patients have the finding: even if all were found, the
            limit would not reach the target.
        ValueError: Wrong shapes or values.
    """
    needed = patients_needed(target_sensitivity, confidence)
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    lowest = _lowest_of_each(values, truth, cohort(truth, patients).patient_of_film)
    if lowest.size < needed:
        raise BadInput(
            f"a sensitivity of {target_sensitivity:g} can be promised with confidence {confidence:g} only "
            f"from at least {needed} calibration patients with the finding, found {lowest.size} (with "
            f"{int(truth.sum())} films); give more, or lower the target or the confidence"
        )
    missed = np.arange(lowest.size)
    limits = _clopper_pearson_low(lowest.size - missed, lowest.size, confidence)
    allowed = int(np.sum(limits >= target_sensitivity - 1e-9)) - 1
    flagged = min(float(lowest[allowed]), _lowest_flagged(values, truth, target_sensitivity))
    threshold = _half_way(values, flagged)
    below = int(np.sum(lowest < threshold))
    return ControlledThreshold(
        threshold, target_sensitivity, confidence, lowest.size, below, float(limits[below])
    )


def patients_needed(target_sensitivity: float, confidence: float = 0.95) -> int:
    """Returns how many patients with the finding `controlled_threshold` needs at least.

    All n found gives the limit (1 - confidence)^(1/n): 59 patients for 0.95 with 0.95 confidence.

    Raises:
        BadInput: A number is not in (0, 1).
    """
    for name, number in (("target_sensitivity", target_sensitivity), ("confidence", confidence)):
        if not 0 < number < 1:
            raise BadInput(f"{name} must be above 0 and below 1 for a promise, found {number}")
    # A hair less, so that an n that just fits is not lost to rounding.
    return max(1, math.ceil(math.log(1 - confidence) / math.log(target_sensitivity) - 1e-9))


def _lowest_flagged(values: NDArray, truth: NDArray, target_sensitivity: float) -> float:
    having = np.sort(values[truth == 1])[::-1]
    if not having.size:
        raise BadInput(
            f"none of the {len(truth)} calibration films has the finding, so no threshold can be chosen; "
            "give the calibration set films with it"
        )
    # Compared as shares: 0.07 * 100 is 7.000000000000001 and would ask for an eighth film.
    reached = np.arange(1, having.size + 1) / having.size >= target_sensitivity
    return float(having[np.argmax(reached)])


def _lowest_of_each(values: NDArray, truth: NDArray, patient: NDArray) -> NDArray[np.float64]:
    """The lowest score with the finding of each patient who has it, rising."""
    having = truth == 1
    lowest = np.full(int(patient.max()) + 1, np.inf)
    np.minimum.at(lowest, patient[having], values[having])
    return np.sort(lowest[np.isfinite(lowest)])


def _clopper_pearson_low(successes: NDArray, n: int, confidence: float) -> NDArray[np.float64]:
    from scipy.special import betaincinv

    return betaincinv(successes, n - successes + 1, 1 - confidence)


def _half_way(values: NDArray, flagged: float) -> float:
    lower = float(np.max(values[values < flagged], initial=0.0))
    middle = float(np.float32(lower + (flagged - lower) / 2))
    return middle if lower < middle <= flagged else flagged
