"""Whether a heat map points at what the model used: the deletion test.

After the deletion metric of Petsiuk, Das & Saenko (RISE, 2018, arXiv:1806.07421), with a control:
hiding the hottest part of a film must cost more confidence than hiding a region of the same shape
and area somewhere else.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from openmed.models.base import BaseModel

_FEWEST_FILMS = 8
_SIGNIFICANCE = 0.05
_MOST_CELLS = 14
"""Cells a side at which heat is ranked: the grid of a 224 px ViT, finer than any of our CNN maps."""


@dataclass(frozen=True)
class Faithfulness:
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


def deletion_drop(
    model: BaseModel,
    films: np.ndarray,
    heat: np.ndarray,
    class_index: int,
    share: float = 0.2,
    seed: int = 0,
    places: int = 4,
) -> Faithfulness:
    """Hides the hottest part of each film and compares with hiding as much elsewhere.

    Hidden pixels are replaced by the heavily blurred film: a black patch would be a thing of its
    own that the model never saw. The control is the same mask, shifted cyclically at random.

    Args:
        model: The model that is explained.
        films: uint8 (N, S, S), S being the model's input size; films that the model calls `class_index`.
        heat: float (N, h, w), one map a film, of any size.
        class_index: Label whose log-odds are watched.
        share: Part of each film's area that is hidden, above 0 and below 1.
        seed: Seed of the random places.
        places: Random places tried for each film.

    Returns:
        The two mean falls and the verdict; fewer than 8 films are never enough to trust a map.

    Raises:
        ValueError: Films and maps do not pair up, or `share` is out of range.
    """
    if heat.ndim != 3 or len(films) != len(heat):
        raise ValueError(f"{len(films)} films need as many maps (N, h, w), not {heat.shape}")
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, not {share}")
    if len(films) == 0:
        return _judge(np.zeros(0), np.zeros(0))
    rng = np.random.default_rng(seed)
    size = films.shape[1]
    blurred = np.stack([cv2.GaussianBlur(film, (0, 0), size / 8) for film in films])
    masks = np.stack([_hottest(one, share, size, rng) for one in heat])

    def log_odds_without(hidden: np.ndarray) -> np.ndarray:
        return _log_odds(model.predict(np.where(hidden, blurred, films))[:, class_index])

    whole = _log_odds(model.predict(films)[:, class_index])
    elsewhere = [log_odds_without(_shifted(masks, rng)) for _ in range(places)]
    return _judge(whole - log_odds_without(masks), whole - np.mean(elsewhere, axis=0))


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds still move where a sure model's probability is stuck at 0.999."""
    inside = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def _hottest(heat: np.ndarray, share: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Mask (S, S) of the hottest cells; equally hot cells are taken in random order."""
    cells = min(size, max(heat.shape), _MOST_CELLS)
    grid = cv2.resize(heat.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA).ravel()
    order = rng.permutation(grid.size)
    order = order[np.argsort(-grid[order], kind="stable")]
    mask = np.zeros(grid.size, np.uint8)
    mask[order[: max(1, round(share * grid.size))]] = 1
    return cv2.resize(mask.reshape(cells, cells), (size, size), interpolation=cv2.INTER_NEAREST) > 0


def _shifted(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = masks.shape[1:]
    # Any place but the mask's own, each equally likely.
    shifts = [divmod(int(shift), width) for shift in rng.integers(1, height * width, len(masks))]
    return np.stack([np.roll(mask, shift, axis=(0, 1)) for mask, shift in zip(masks, shifts, strict=True)])


def _judge(map_drops: np.ndarray, random_drops: np.ndarray) -> Faithfulness:
    films = len(map_drops)
    difference = map_drops - random_drops
    p_value = float("nan")
    if films >= _FEWEST_FILMS and np.any(difference != 0):
        from scipy.stats import wilcoxon  # takes a second to load

        p_value = float(wilcoxon(difference, alternative="greater").pvalue)
    falls = films > 0 and map_drops.mean() > 0
    trusted = falls and p_value < _SIGNIFICANCE
    if films < _FEWEST_FILMS:
        reason = f"{films} films are too few to judge the map: at least {_FEWEST_FILMS} are needed"
    elif not falls:
        reason = "hiding the hottest part costs no confidence"
    elif trusted:
        reason = f"hiding the hottest part costs more confidence than chance (p = {p_value:.2g})"
    else:
        reason = "hiding the hottest part costs no more confidence than hiding as much elsewhere"
    return Faithfulness(
        map_drop=float(map_drops.mean()) if films else float("nan"),
        random_drop=float(random_drops.mean()) if films else float("nan"),
        films=films,
        p_value=p_value,
        trusted=bool(trusted),
        reason=reason,
    )
