"""Which films to label next, so that a sensitivity and a specificity become as sure as so many labels can.

Films are put into strata by their scores, and of each stratum so many are drawn by chance that the two
intervals become narrowest (Neyman's allocation; Sarndal, Swensson and Wretman, Model Assisted Survey
Sampling, 1992, section 3.7). A film's turn in its stratum is a permanent random number (Ohlsson, Coordination
of Samples Using Permanent Random Numbers, in Business Survey Methods, 1995): asking again goes on where the
last sample ended, so that a film is in one of several samples with the greatest of its probabilities.
"""

import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput

_STRATA = 10
_FEWEST_OF_STRATUM = 4
# Half of the films are drawn whatever the scores promise: scores that tell nothing must not hide themselves.
_BY_CHANCE = 0.5


def importance(
    posterior: NDArray[np.float64], share: float, threshold: float, scores: NDArray
) -> NDArray[np.float64]:
    """Returns how much each film's label is expected to move the two estimates; 1 on average.

    Of the probability of the finding at the films' own share of it, (N,), and of the scores, (N,).
    """
    flagged = scores >= threshold
    parts = []
    for belongs, right in ((posterior, flagged), (1 - posterior, ~flagged)):
        whole = belongs.sum()
        expected = (belongs @ right) / whole if whole else 0.0
        parts.append(belongs * (right - expected) ** 2 / max(whole, 1e-9) ** 2)
    sizes = np.sqrt(sum(parts))
    mean = sizes.mean()
    return (1 - _BY_CHANCE) * sizes / mean + _BY_CHANCE if mean else np.ones(len(scores))


def strata(scores: NDArray, sizes: NDArray, films: int) -> NDArray[np.intp]:
    """Cuts films into strata by score, each of the same sum of sizes, so that each gets as many films."""
    count = max(1, min(_STRATA, films // _FEWEST_OF_STRATUM))
    order = np.argsort(scores, kind="stable")
    passed = np.cumsum(sizes[order]) - sizes[order] / 2
    number = np.empty(len(scores), np.intp)
    number[order] = np.minimum((passed / sizes.sum() * count).astype(np.intp), count - 1)
    return number


def draw(
    stratum: NDArray[np.intp], turns: NDArray[np.float64], known: NDArray[np.bool_], films: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Draws films to label: in each stratum those with the lowest turns that have no label yet.

    Of the number of each film's stratum, (N,), its permanent random number in [0, 1), (N,), and the films
    that need no asking, (N,), because they have a label or were asked for.

    Returns:
        (N,) the films of the sample, those known among them; and (N,) with what probability each film of the
        frame is in it: 0 in a stratum in which nothing was drawn.

    Raises:
        BadInput: Fewer films are left.
    """
    left = int((~known).sum())
    if films > left:
        raise BadInput(
            f"only {left} of the latest films have neither a label nor were asked for: ask for those"
        )
    wanted = _allocated(np.bincount(stratum[~known], minlength=stratum.max() + 1), films)
    sample, probability = np.zeros(len(turns), bool), np.zeros(len(turns))
    for number, count in enumerate(wanted):
        own = np.flatnonzero(stratum == number)
        own = own[np.argsort(turns[own], kind="stable")]
        reached = np.cumsum(~known[own]) >= count
        size = int(reached.argmax()) + 1 if count and reached.any() else 0
        sample[own[:size]] = True
        probability[own] = size / len(own) if len(own) else 0.0
    return sample, probability


def _allocated(room: NDArray[np.intp], films: int) -> NDArray[np.intp]:
    """Deals films out evenly, to those strata that have room."""
    given = np.zeros(len(room), np.intp)
    while (missing := films - int(given.sum())) > 0:
        open_ = np.flatnonzero(given < room)
        share, rest = divmod(missing, len(open_))
        more = np.full(len(open_), share)
        # The rest goes to the highest scores, where the finding is.
        more[len(open_) - rest :] += 1
        given[open_] = np.minimum(room[open_], given[open_] + more)
    return given
