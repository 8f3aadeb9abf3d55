"""The operating point: the threshold above which a film is flagged.

Labels (N,), scores (N,) and patients (N,) are as in `openmed.metrics.classification`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from openmed.errors import BadInput
from openmed.metrics.classification import checked_labels, checked_scores
from openmed.metrics.clustered import design_effect
from openmed.metrics.resampling import lowest_of_each, patient_codes


@dataclass(frozen=True)
class ControlledThreshold:
    """A threshold with a promise, and the evidence for it.

    Attributes:
        threshold: A film is flagged when its score is at or above it, in [0, 1].
        target_sensitivity: What is promised.
        confidence: How surely.
        patients: Calibration patients with the finding.
        missed: Films with the finding that are not flagged; where the promise is made for patients, those
            with such a film.
        lower_limit: One-sided lower limit of the sensitivity, at or above the target.
    """

    threshold: float
    target_sensitivity: float
    confidence: float
    patients: int
    missed: int
    lower_limit: float


def choose_threshold(labels: ArrayLike, scores: ArrayLike, target_sensitivity: float) -> float:
    """Returns the highest threshold that keeps the sensitivity at or above a target.

    Of all thresholds that flag the same films it is the one half way between the lowest score that must
    be flagged and the next lower score (0 if there is none), so that a last-digit difference between two
    machines does not move a film across it. It is rounded to 32-bit precision, the precision of the
    scores; where two scores are too close for that, it is the flagged score itself.

    The films are for calibration: never those that the model is judged on.

    Raises:
        BadInput: The target is not in (0, 1], or no film has the finding.
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
    *,
    of: str = "patients",
) -> ControlledThreshold:
    """Returns the highest threshold of which the sensitivity is known to reach a target.

    `choose_threshold` reaches the target on the calibration films, so on new films it misses it about every
    second time. Here the one-sided lower limit of Clopper and Pearson (Biometrika 1934;26:404-413) must reach
    it: then, over calibration sets drawn like this one, P(true sensitivity >= target) >= confidence. The
    limit holds although the threshold is chosen by it, because the sensitivity only falls as the threshold
    rises (fixed-sequence testing; Angelopoulos et al., Learn then Test, Ann Appl Stat 2025;19:1641-1662).

    Films of one patient are no independent evidence. The promise is made either `of` films, which are then
    divided by their design effect, or `of` patients, of whom each counts once, and as found only when every
    one of their films with the finding is flagged. That is the stronger one: where patients have several
    films, it raises the sensitivity for films far above the target and costs specificity. Neither threshold
    is ever above that of `choose_threshold`.

    Raises:
        BadInput: A number is not in (0, 1), or too few patients have the finding even if all are found.
    """
    needed = patients_needed(target_sensitivity, confidence)
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    having, patient = values[truth == 1], patient_codes(patients, len(truth))[truth == 1]
    if of == "patients":
        lowest = lowest_of_each(having, patient)
        films = np.arange(lowest.size)
    elif of == "films":
        order = np.argsort(having, kind="stable")
        lowest, films = having[order], patient[order]
    else:
        raise ValueError(f"the promise is made for films or for patients, not for {of}")
    limits = list(_limits(films, target_sensitivity, confidence))
    people = len(np.unique(patient))
    if not limits:
        raise BadInput(
            f"a sensitivity of {target_sensitivity:g} can be promised with confidence {confidence:g} only "
            f"from at least {needed} calibration patients with the finding, found {people} (with "
            f"{int(truth.sum())} films); give more, or lower the target or the confidence"
        )
    flagged = min(float(lowest[len(limits) - 1]), _lowest_flagged(values, truth, target_sensitivity))
    threshold = _half_way(values, flagged)
    below = int(np.sum(lowest < threshold))
    return ControlledThreshold(threshold, target_sensitivity, confidence, people, below, limits[below])


def spared_threshold(labels: ArrayLike, scores: ArrayLike, target_specificity: float) -> float:
    """Returns the lowest threshold that keeps the specificity at or above a target.

    Where a sensitivity is promised by a higher threshold, this one finds more and still raises no more false
    alarms than are accepted: what a better model can do goes into sensitivity.

    Half way between the highest score that must stay below it and the next higher one; above 1 where no
    threshold in [0, 1] keeps the target, NaN without a film that lacks the finding.

    Raises:
        BadInput: The target is not in (0, 1).
    """
    if not 0 < target_specificity < 1:
        raise BadInput(f"target_specificity must be above 0 and below 1, found {target_specificity}")
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    without = np.sort(values[truth == 0])
    if not without.size:
        return math.nan
    reached = np.arange(1, without.size + 1) / without.size >= target_specificity
    below = float(without[np.argmax(reached)])
    above = float(np.min(values[values > below], initial=math.nextafter(1.0, 2.0)))
    middle = float(np.float32(below + (above - below) / 2))
    return middle if below < middle <= above else above


def _limits(patient: NDArray, target: float, confidence: float) -> Iterator[float]:
    """Lower limits of the sensitivity with the first none, one, two ... missed, while they reach the target.

    Of the patient of each film with the finding, (N,), the lowest score first.
    """
    films = len(patient)
    for missed in range(films):
        is_missed = np.arange(films) < missed
        effect = design_effect(is_missed - missed / films, patient, is_missed)
        limit = float(betaincinv((films - missed) / effect, missed / effect + 1, 1 - confidence))
        if limit < target - 1e-9:
            return
        yield limit


def transfer_chance(
    flagged_before: ArrayLike, patients_before: ArrayLike, flagged: ArrayLike, patients: ArrayLike
) -> float:
    """Gives the chance that films like those of the choice are flagged as seldom as other films, or seldomer.

    A threshold between two of n scores, with k of them above, flags a new film like them with a probability
    that itself varies as Beta(k, n + 1 - k); so of m new ones a beta-binomial number is flagged (Wilks, Ann
    Math Statist 1941;12:91-96). Counts are divided by the design effects of their patients.

    The flags are bool (N,) and (M,), of the films with the finding on which the threshold was chosen and of
    those that are judged by it. NaN without films on either side.
    """
    before, now = (np.asarray(flags, bool) for flags in (flagged_before, flagged))
    if not before.size or not now.size:
        return float("nan")
    from scipy.stats import betabinom

    sizes = []
    for flags, names in ((before, patients_before), (now, patients)):
        effect = design_effect(flags - flags.mean(), names, flags == (flags.mean() < 0.5))
        sizes.append(len(flags) / effect)
    above = max(float(before.mean()) * sizes[0], 1e-9)
    films = max(1, round(sizes[1]))
    flagged_films = round(float(now.mean()) * films)
    return float(betabinom.cdf(flagged_films, films, above, sizes[0] + 1 - above))


def patients_needed(target_sensitivity: float, confidence: float = 0.95) -> int:
    """Returns how many patients with the finding `controlled_threshold` needs at least; BadInput as there.

    All n found gives the limit (1 - confidence)^(1/n): 59 patients for 0.95 with 0.95 confidence.
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


def _half_way(values: NDArray, flagged: float) -> float:
    lower = float(np.max(values[values < flagged], initial=0.0))
    middle = float(np.float32(lower + (flagged - lower) / 2))
    return middle if lower < middle <= flagged else flagged
