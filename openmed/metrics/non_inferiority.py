"""What a comparison of two models on the same films could show: power of non-inferiority.

As in `power`: films count as independent, and the gate's own bootstrap over patients may ask for more.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

from openmed.errors import BadInput
from openmed.metrics.classification import NAN
from openmed.metrics.paired_proportions import tango_score
from openmed.metrics.power import (
    MOST_FILMS,
    POWER,
    Detectable,
    checked_critical_value,
    rounded,
    such_tests,
)


def non_inferiority(
    margin: float,
    films: int,
    discordance: float,
    *,
    difference: float = 0.0,
    name: str = "sensitivity",
    kind: str = "films with the finding",
    power: float = POWER,
    confidence: float = 0.95,
) -> Detectable:
    """Power to show that a paired proportion is worse by no more than a margin.

    Shown means that Tango's lower limit (Stat Med 1998;17:891-908) is at or above minus the margin. The power
    is exact, summed over the discordant films; the number of films starts from Lu and Bean (Stat Med
    1995;14:1831-1839).

    Args:
        margin: The loss that is accepted, in (0, 1).
        films: Films of the class, judged by both models.
        discordance: Share of them on which just one model is right, in [0, 1].
        difference: True difference, new minus old, within the discordance.
        name: What is compared, for the sentence.
        kind: Which films count, for the sentence.
        power: In [0.5, 1).
        confidence: Of the two-sided interval whose lower limit is judged, in (0, 1).

    Returns:
        `value_needed` is the smallest true difference that would be shown; NaN if none at this discordance.

    Raises:
        BadInput: A number is out of range.
    """
    z = checked_critical_value(films, confidence, margin=margin, power=power)
    if not 0 <= discordance <= 1 or not abs(difference) <= discordance:
        raise BadInput(
            f"the discordance must be between 0 and 1 and not below the difference, found {discordance} and "
            f"{difference}"
        )

    def power_at(n: int, true: float) -> float:
        return _non_inferiority_power(n, discordance, true, margin, z)

    reached = power_at(films, difference)
    value = _smallest(lambda true: power_at(films, true) - power, -min(margin, discordance), discordance)
    enough = None
    if difference > -margin:
        guess = ((z + norm.ppf(power)) / (margin + difference)) ** 2 * (discordance - difference**2)
        if guess < MOST_FILMS:
            enough = _fewest(lambda n: power_at(n, difference) >= power, max(2, math.ceil(guess)))
    sentence = _margin_sentence(name, kind, films, margin, discordance, difference, reached, enough, power)
    return Detectable(films, value, reached, enough, sentence)


def _non_inferiority_power(n: int, discordance: float, true: float, margin: float, z: float) -> float:
    """Sums over the discordant films, but for tails below 1e-12, how often enough are in favour."""
    low, high = (int(binom.ppf(tail, n, discordance)) for tail in (1e-12, 1 - 1e-12))
    total = np.arange(max(low, 0), high + 1)
    share = min(max((discordance + true) / 2 / discordance, 0.0), 1.0) if discordance else 0.5
    enough = _better_needed(total, n, margin, z)
    return float(np.sum(binom.pmf(total, n, discordance) * binom.sf(enough - 1, total, share)))


def _better_needed(total: NDArray[np.int64], n: int, margin: float, z: float) -> NDArray[np.int64]:
    """Of so many discordant films, the fewest on which the new model must be right; total + 1 if none."""
    low, high = np.full_like(total, -1), total + 1
    for _ in range(int(total.max()).bit_length() + 1):
        middle = (low + high) // 2
        tried = np.clip(middle, 0, total)
        shown = (middle >= 0) & (tango_score(tried, total - tried, n, -margin) >= z)
        high = np.where(shown, middle, high)
        low = np.where(shown, low, middle)
    return high


def _smallest(excess: Callable[[float], float], low: float, high: float) -> float:
    """The smallest true difference at which a rising function is not below 0; NaN if there is none."""
    if excess(high) < 0:
        return NAN
    return low if excess(low) >= 0 else float(brentq(excess, low, high, xtol=1e-6))


def _fewest(enough: Callable[[int], bool], guess: int) -> int | None:
    """About the fewest films that are enough: power rises with them, but for small teeth."""
    low, high = 0, guess
    while not enough(high):
        low, high = high, high * 2
        if high > 2 * MOST_FILMS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _margin_sentence(
    name: str,
    kind: str,
    films: int,
    margin: float,
    discordance: float,
    difference: float,
    reached: float,
    enough: int | None,
    power: float,
) -> str:
    truth = (
        "equal"
        if difference == 0
        else f"{'higher' if difference > 0 else 'lower'} (by {abs(difference):.3f})"
    )
    first = (
        f"With {films} {kind}, of which the models disagree on {discordance:.1%}, a truly {truth} {name} "
        f"would be shown to be at most {rounded(margin)} worse in {reached:.0%} of such tests"
    )
    if enough is None:
        return f"{first}; no realistic number of films would be enough for {such_tests(power)}."
    return f"{first}; about {enough} films would be enough for {such_tests(power)}."
