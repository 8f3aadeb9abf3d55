"""Two models on the same films: difference of sensitivity or specificity in closed form.

Only the films on which the two disagree tell them apart. Films of one patient resemble each other: the counts
are divided by the design effect of the disagreements (see `clustered`).
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from openmed.metrics.classification import NAN, checked_labels
from openmed.metrics.clustered import design_effect
from openmed.metrics.resampling import patient_codes
from openmed.metrics.score_intervals import Interval, critical_value


def compare_flags(
    labels: ArrayLike,
    flagged_a: ArrayLike,
    flagged_b: ArrayLike,
    patients: ArrayLike | None = None,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Gives "sensitivity" and "specificity" of model a minus those of b, with Tango's limits.

    Of `flagged_a` and `flagged_b`, (N,) boolean (or 0 and 1). Without `patients` every film counts as one.
    NaN where the class is missing.
    """
    truth = checked_labels(labels)
    first, second = checked_labels(flagged_a), checked_labels(flagged_b)
    if first.shape != truth.shape or second.shape != truth.shape:
        raise ValueError(f"there are {len(truth)} labels but {len(first)} and {len(second)} flags")
    patient = patient_codes(np.arange(len(truth)) if patients is None else patients, len(truth))
    result = {}
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        of_class = truth == side
        apart = (first[of_class] == side).astype(int) - (second[of_class] == side)
        only_a, only_b, films = int(np.sum(apart == 1)), int(np.sum(apart == -1)), int(np.sum(of_class))
        effect = design_effect(apart - apart.mean(), patient[of_class], apart != 0) if films else 1.0
        result[name] = tango(only_a / effect, only_b / effect, films / effect, confidence)
    return result


def tango(only_first: float, only_second: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of the difference of two proportions on the same n films; NaN when n is 0.

    Tango T. Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design. Stat Med 1998;17:891-908. The limits are the differences d at which the score test just rejects,
    with the discordant share fitted under d. It keeps a width when the models never disagree: then the limits
    are z^2 / (n + z^2) either side of 0.

    Of the films on which only the first, or only the second, is right; all three may be effective numbers,
    which need not be whole.

    Returns:
        First minus second, with limits in [-1, 1].

    Raises:
        ValueError: Impossible counts, or the confidence is not in (0, 1).
    """
    z = critical_value(confidence)
    # Effective numbers are rounded.
    if only_first < 0 or only_second < 0 or only_first + only_second > n * (1 + 1e-9):
        raise ValueError(f"counts {only_first} and {only_second} of {n} films are impossible")
    if n == 0:
        return Interval(NAN, NAN, NAN)
    difference = (only_first - only_second) / n
    return Interval(difference, -_upper(only_second, only_first, n, z), _upper(only_first, only_second, n, z))


def _upper(b: float, c: float, n: float, z: float) -> float:
    if b == n:
        return 1.0
    if b == c == 0:
        return z * z / (n + z * z)
    if c == n:
        return (z * z - n) / (z * z + n)

    def excess(difference: float) -> float:
        variance = n * _variance(b, c, n, difference)
        return n * difference - (b - c) - z * math.sqrt(variance)

    return float(brentq(excess, (b - c) / n, 1.0, xtol=1e-14))


def _variance(b: float, c: float, n: float, difference: float) -> float:
    """Variance of the observed difference, times n, with the share of c fitted under the true one."""
    linear = (2 * n - (b - c)) * difference - (b + c)
    constant = c * (difference * (1 - difference))
    share = (math.sqrt(max(linear * linear + 8 * n * constant, 0.0)) - linear) / (4 * n)
    return max(2 * share + difference * (1 - difference), 0.0)
