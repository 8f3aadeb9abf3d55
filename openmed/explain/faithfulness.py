"""Whether a heat map points at what the model used: deletion and insertion against a control.

After Petsiuk, Das & Saenko (RISE, 2018, arXiv:1806.07421). The control is the same map shifted to other
places: as smooth and as large, but blind to what is there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmed.explain.hiding import (
    FEWEST_FILMS,
    blurred,
    check_pairs,
    heat_ranks,
    hottest,
    log_odds,
    p_value_of,
    shifted,
)
from openmed.models.base import BaseModel

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class DeletionDrop:
    """Result of the deletion test over some films.

    Attributes:
        map_drop: Mean fall of the class's log-odds when the hottest part is hidden.
        random_drop: The same for the same shape at random places. NaN, as `map_drop`, without films.
        films: Number of films.
        p_value: One-sided Wilcoxon signed-rank test of the paired falls; NaN where not tested.
        trusted: Whether hiding the hottest part costs confidence, and more than chance at 5 %.
        reason: One sentence that says why it is trusted or not.
    """

    map_drop: float
    random_drop: float
    films: int
    p_value: float
    trusted: bool
    reason: str


@dataclass(frozen=True)
class Curves:
    """Log-odds of the class while films are hidden and uncovered step by step.

    Attributes:
        shares: Parts of the film's area, (K,), from 0 to 1.
        deletion: Log-odds (N, K) with that share hidden, the hottest cells first.
        random_deletion: The same with the shapes shifted to random places, anew at each step.
        insertion: Log-odds (N, K) of the blurred film with that share shown, the hottest cells first.
        random_insertion: The same at random places.
    """

    shares: np.ndarray
    deletion: np.ndarray
    random_deletion: np.ndarray
    insertion: np.ndarray
    random_insertion: np.ndarray

    def area(self, curve: np.ndarray) -> np.ndarray:
        """Area (N,) under a curve (N, K): the mean log-odds on the way, by the trapezoidal rule."""
        return np.trapezoid(curve, self.shares, axis=1)


def deletion_drop(
    model: BaseModel,
    films: NDArray[np.uint8],
    heat: np.ndarray,
    class_index: int,
    share: float = 0.2,
    seed: int = 0,
    places: int = 4,
) -> DeletionDrop:
    """Hides the hottest part of each film and compares with hiding as much elsewhere.

    Hidden pixels are replaced by the heavily blurred film. The control is the same mask, shifted
    cyclically at random to as many `places` a film. Of films uint8 (N, S, S), S being the model's input size,
    that the model calls `class_index`, whose log-odds are watched, and as many maps, float (N, h, w).
    `share` is the part of each film's area that is hidden, above 0 and below 1.

    Raises:
        ValueError: Films and maps do not pair up, or `share` is out of range.
    """
    check_pairs(films, heat)
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, not {share}")
    if len(films) == 0:
        return _judge(np.zeros(0), np.zeros(0))
    rng = np.random.default_rng(seed)
    replacement = blurred(films)
    masks = hottest(heat_ranks(heat, films.shape[1], rng), share)

    def log_odds_without(hidden: np.ndarray) -> np.ndarray:
        return log_odds(model.predict(np.where(hidden, replacement, films))[:, class_index])

    whole = log_odds(model.predict(films)[:, class_index])
    elsewhere = [log_odds_without(shifted(masks, rng)) for _ in range(places)]
    return _judge(whole - log_odds_without(masks), whole - np.mean(elsewhere, axis=0))


def perturbation_curves(
    model: BaseModel,
    films: NDArray[np.uint8],
    heat: np.ndarray,
    class_index: int,
    seed: int = 0,
    steps: int = 8,
) -> Curves:
    """Hides films and uncovers blurred ones step by step, the hottest cells first.

    A map that points at the evidence loses the class early in deletion and finds it early in insertion.

    Films, maps and errors are those of `deletion_drop`. The curves have `steps` + 1 shares; those of map and
    control begin and end alike.
    """
    check_pairs(films, heat)
    rng = np.random.default_rng(seed)
    replacement = blurred(films)
    ranks = heat_ranks(heat, films.shape[1], rng)
    shares = np.arange(steps + 1) / steps

    def showing(shown: np.ndarray) -> np.ndarray:
        return log_odds(model.predict(np.where(shown, films, replacement))[:, class_index])

    whole, bare = showing(np.ones_like(films, bool)), showing(np.zeros_like(films, bool))
    rows = []
    for share in shares[1:-1]:
        mask = hottest(ranks, share)
        # A new place at each step says as much of chance as several curves at one place each.
        elsewhere = shifted(mask, rng)
        rows.append([showing(~mask), showing(~elsewhere), showing(mask), showing(elsewhere)])
    inner = np.array(rows).transpose(1, 2, 0)
    deletion, random_deletion = (np.column_stack([whole, one, bare]) for one in inner[:2])
    insertion, random_insertion = (np.column_stack([bare, one, whole]) for one in inner[2:])
    return Curves(shares, deletion, random_deletion, insertion, random_insertion)


def _judge(map_drops: np.ndarray, random_drops: np.ndarray) -> DeletionDrop:
    films = len(map_drops)
    p_value = p_value_of(map_drops - random_drops)
    falls = films > 0 and map_drops.mean() > 0
    trusted = falls and p_value < SIGNIFICANCE
    if films < FEWEST_FILMS:
        reason = f"{films} films are too few to judge the map: at least {FEWEST_FILMS} are needed"
    elif not falls:
        reason = "hiding the hottest part costs no confidence"
    elif trusted:
        reason = f"hiding the hottest part costs more confidence than chance (p = {p_value:.2g})"
    else:
        reason = "hiding the hottest part costs no more confidence than hiding as much elsewhere"
    return DeletionDrop(
        map_drop=float(map_drops.mean()) if films else float("nan"),
        random_drop=float(random_drops.mean()) if films else float("nan"),
        films=films,
        p_value=p_value,
        trusted=bool(trusted),
        reason=reason,
    )
