"""What a test set could show, and what it could not: power, in numbers and in one sentence.

A verdict of too little evidence is only fair with its measure: which true value this many films would have
been enough for, and how many films it takes. Nothing here depends on what was measured, which would only say
the verdict again (Hoenig and Heisey, Am Stat 2001;55:19-24). Films are taken as independent; with several
films of a patient the power is lower.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtr, ndtri

from openmed.errors import BadInput
from openmed.metrics.classification import NAN
from openmed.metrics.score_intervals import Interval, auc_variance, critical_value

POWER = 0.8
MOST_FILMS = 100_000
"""More films than this are not searched for: the answer is then that no test will show it."""


@dataclass(frozen=True)
class Detectable:
    """What a test set could have shown.

    Attributes:
        films: Films it has: of the class in question, or of both for an AUC.
        value_needed: The smallest true value that the test shows with the power; NaN if none.
        power: Power at the planned value, in [0, 1]; NaN where none was planned.
        films_needed: Films with which the planned value is shown with the wished power; None if none are.
        sentence: The same for a clinician.
    """

    films: int
    value_needed: float
    power: float
    films_needed: int | None
    sentence: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values, NaN as None."""
        needed = None if math.isnan(self.value_needed) else self.value_needed
        power = None if math.isnan(self.power) else self.power
        return {**asdict(self), "value_needed": needed, "power": power}


def proportion_floor(
    floor: float,
    films: int,
    expected: float | None = None,
    *,
    name: str = "sensitivity",
    kind: str = "films with the finding",
    power: float = POWER,
    confidence: float = 0.95,
) -> Detectable:
    """Power to show that a proportion reaches a floor: that Wilson's lower limit is at or above it.

    Exact binomial power. It rises with the number of films in saw teeth (Chernick and Liu, Am Stat
    2002;56:149-155), so the number needed is the one from which on it stays at or above the wished one.

    The floor, in (0, 1), is of so many films of the class; `expected` is the true value that was planned for,
    in [0, 1], `power` in [0.5, 1), `confidence`, in (0, 1), that of the two-sided interval. The sentence says
    by `name` what is measured and by `kind` which films count.

    Raises:
        BadInput: A number is out of range.
    """
    from scipy.stats import binom

    z = _critical_value(films, confidence, floor, power, expected)
    needed = int(_successes_needed(films, floor, z))
    possible = needed <= films
    value = float(betaincinv(needed, films - needed + 1, power)) if possible else NAN
    reached, enough = NAN, None
    if expected is not None:
        reached = float(binom.sf(needed - 1, films, expected)) if possible else 0.0
        enough = _films_for_proportion(floor, expected, power, z) if expected > floor else None
    return _detectable(
        f"{films} {kind}", name, floor, power, expected, Detectable(films, value, reached, enough)
    )


def auc_floor(
    floor: float,
    positives: int,
    negatives: int,
    expected: float | None = None,
    *,
    power: float = POWER,
    confidence: float = 0.95,
) -> Detectable:
    """Power to show that the AUC reaches a floor: that Newcombe's lower limit is at or above it.

    That limit is the more careful one near 1, so the films that it needs are rather too many than too few. By
    the normal approximation with the variance of Hanley and McNeil (Radiology 1982;143:29-36), taken at
    the floor for the limit and at the true value for the power. `films_needed` keeps the classes' ratio.
    Arguments and errors as in `proportion_floor`, of at least one film of each class.
    """
    z = _critical_value(min(positives, negatives), confidence, floor, power, expected)
    films, beyond = positives + negatives, ndtri(power)

    def surplus(true: float, scale: float) -> float:
        """What is left above the AUC that must be measured, in a test `scale` times as large."""
        sizes = positives * scale, negatives * scale
        measured = floor + z * math.sqrt(auc_variance(floor, *sizes))
        return true - measured - beyond * math.sqrt(auc_variance(true, *sizes))

    must = floor + z * math.sqrt(auc_variance(floor, positives, negatives))
    value = float(brentq(surplus, floor, 1.0, args=(1.0,))) if must < 1 else NAN
    reached, enough = NAN, None
    if expected is not None:
        # A perfect or always wrong model does not vary; the tiny number only keeps the division in hand.
        spread = math.sqrt(auc_variance(expected, positives, negatives)) + 1e-12
        reached = float(ndtr((expected - must) / spread)) if must < 1 else 0.0
        enough = _films_for_auc(partial(surplus, expected), films) if expected > floor else None
    test = f"{films} films ({positives} with the finding)"
    return _detectable(test, "AUC", floor, power, expected, Detectable(films, value, reached, enough))


def films_for_margin(
    difference: Interval, margin: float, films: int, *, power: float = POWER, confidence: float = 0.95
) -> int | None:
    """Films with which a truly equal model would be shown to lose no more than a margin.

    By the normal approximation, from the width of the lower limit on this many films; what was measured plays
    no part. None where no realistic number would do, or the interval has no limits.

    Raises:
        BadInput: A number is out of range; the margin, the loss that is accepted, is in (0, 1).
    """
    z = _critical_value(films, confidence, margin, power, limit="margin")
    width = (difference.value - difference.low) * (1 + float(ndtri(power)) / z)
    if math.isnan(width):
        return None
    needed = math.ceil(films * (width / margin) ** 2)
    return needed if needed <= MOST_FILMS else None


def _critical_value(
    films: int,
    confidence: float,
    bound: float,
    power: float,
    expected: float | None = None,
    limit: str = "floor",
) -> float:
    """Returns z of the confidence, after a look at the other numbers."""
    for name, share in ((limit, bound), ("power", power), ("expected", expected)):
        if share is not None and not (0 <= share <= 1 if name == "expected" else 0 < share < 1):
            raise BadInput(f"for the power of a test {name} must be between 0 and 1, found {share}")
    if power < 0.5:
        raise BadInput(f"a test with a power below one half shows nothing, found {power}; take 0.8")
    if films < 1:
        raise BadInput(f"for the power of a test there must be at least one film of each kind, found {films}")
    return critical_value(confidence)


def _rounded(share: float) -> str:
    """A share with two decimals, or three where the third is not 0."""
    text = f"{share:.3f}"
    return text[:-1] if text.endswith("0") else text


def _successes_needed(films: ArrayLike, floor: float, z: float) -> NDArray[np.int64]:
    """The fewest successes with Wilson's lower limit at or above the floor; above `films` if none."""
    # The limit is where the score test at the floor just rejects, so no search is needed.
    bound = np.multiply(films, floor) + z * np.sqrt(np.multiply(films, floor * (1 - floor)))
    return np.ceil(bound - 1e-9).astype(np.int64)


def _films_for_proportion(floor: float, expected: float, power: float, z: float) -> int | None:
    """The number of films from which on the power stays at or above the wished one."""
    from scipy.stats import binom  # takes most of a second to load

    spread = z * math.sqrt(floor * (1 - floor)) + ndtri(power) * math.sqrt(expected * (1 - expected))
    guess = max(20.0, (spread / (expected - floor)) ** 2, z * z * floor / (1 - floor))
    if guess > MOST_FILMS:
        return None
    films = np.arange(1, 3 * math.ceil(guess) + 50)
    needed = _successes_needed(films, floor, z)
    short = np.flatnonzero(binom.sf(needed - 1, films, expected) < power)
    return int(films[short[-1]]) + 1 if short.size else 1


def _films_for_auc(surplus: Callable[[float], float], films: int) -> int | None:
    """The number of films whose surplus is 0, a rising function of how many times as many there are."""
    fewest, most = 2 / films, max(MOST_FILMS / films, 1.0)
    if surplus(most) <= 0:
        return None
    scale = fewest
    if surplus(fewest) < 0:
        scale = math.exp(brentq(lambda log: surplus(math.exp(log)), math.log(fewest), math.log(most)))
    return math.ceil(films * scale - 1e-9)


def _detectable(
    test: str, name: str, floor: float, power: float, expected: float | None, detectable: Detectable
) -> Detectable:
    """Puts it into a sentence."""
    first = f"With {test}, not even a perfect {name} would show {_rounded(floor)}"
    if not math.isnan(detectable.value_needed):
        # Rounded up: the number that is named must be enough.
        least = _rounded(math.ceil(detectable.value_needed * 1000 - 1e-6) / 1000)
        share = Fraction(power).limit_denominator(20)
        first = (
            f"With {test}, a true {name} of at least {least} would be needed to show {_rounded(floor)} in "
            f"{share.numerator} of {share.denominator} such tests"
        )
    if expected is not None:
        films = (
            f"about {detectable.films_needed}" if detectable.films_needed else "no realistic number of films"
        )
        first += f"; for a true {name} of {_rounded(expected)} {films} would do"
    return replace(detectable, sentence=f"{first}.")
