"""Intervals in closed form that stay open at the ends: for proportions and for the AUC."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from openmed.metrics.classification import NAN


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits; NaN where there is none."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Returns value, low and high as plain numbers, NaN as None."""
        return {name: float(item) if math.isfinite(item) else None for name, item in vars(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, float | None]) -> "Interval":
        """Reads what `to_json` wrote, None as NaN."""
        values = (content[name] for name in ("value", "low", "high"))
        return cls(*(NAN if value is None else float(value) for value in values))


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; NaN when n is 0.

    Wilson EB. Probable inference, the law of succession, and statistical inference. J Am Stat Assoc
    1927;22:209-212. Both may be effective numbers, which need not be whole.

    Raises:
        ValueError: `successes` is not in [0, n], or the confidence not in (0, 1).
    """
    z = critical_value(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n}, found {successes}")
    if n == 0:
        return Interval(NAN, NAN, NAN)
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # Rounding must not keep 0 or 1 out of an interval that ends there.
    low = 0.0 if successes == 0 else middle - half
    return Interval(share, low, 1.0 if successes == n else middle + half)


def newcombe_auc(auc: float, positives: float, negatives: float, confidence: float = 0.95) -> Interval:
    """Score interval of an AUC, open also at an AUC of 1; NaN without a value or without one class.

    Method 5 of Newcombe RG. Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic. Part 2: asymptotic methods and evaluation. Stat Med 2006;25:559-573. It solves
    |auc - t| = z sqrt(V(t)) for t with the variance of Hanley and McNeil (Radiology 1982;143:29-36),
    both class sizes in it replaced by their mean. As with Wilson's interval, the variance is taken at the
    limit and not at the estimate, so two perfectly separated classes still give a limit below 1 (0.899
    for 20 and 20 films), where DeLong's and Hanley and McNeil's own intervals have no width. Newcombe
    found its coverage good down to small and unequal classes, which is why it was chosen. The numbers
    of films with and without the finding may be effective ones, not whole.

    Raises:
        ValueError: The AUC is not in [0, 1], or the confidence not in (0, 1).
    """
    z = critical_value(confidence)
    if math.isnan(auc) or positives <= 0 or negatives <= 0:
        return Interval(NAN, NAN, NAN)
    if not 0 <= auc <= 1:
        raise ValueError(f"the AUC must be in [0, 1], found {auc}")
    low = _newcombe_low(auc, positives, negatives, z)
    # The variance is the same at t and 1 - t, so the upper limit mirrors the lower.
    return Interval(auc, low, 1 - _newcombe_low(1 - auc, positives, negatives, z))


def auc_variance(auc: float, positives: float, negatives: float) -> float:
    """Variance of a measured AUC whose true value is `auc`, as `newcombe_auc` takes it.

    Hanley and McNeil (Radiology 1982;143:29-36), both class sizes in its shape replaced by their mean.
    """
    return auc * (1 - auc) * _shape(auc, positives, negatives) / (positives * negatives)


def critical_value(confidence: float) -> float:
    """Returns z with `confidence` of the standard normal within -z and z; ValueError outside of (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, found {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _newcombe_low(auc: float, positives: float, negatives: float, z: float) -> float:
    from scipy.optimize import brentq

    if auc == 0:
        return 0.0

    def excess(t: float) -> float:
        # Squared and divided by (1 - t) where auc is 1, so that t = 1 itself is no root.
        variance = z * z * t * _shape(t, positives, negatives) / (positives * negatives)
        return (1 - t) - variance if auc == 1 else (auc - t) ** 2 - variance * (1 - t)

    return float(brentq(excess, 0.0, auc, xtol=1e-14))


def _shape(t: float, positives: float, negatives: float) -> float:
    return 1 + ((positives + negatives) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
