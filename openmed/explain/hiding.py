"""Films with their hottest parts hidden: what the deletion and the insertion tests have in common."""

import cv2
import numpy as np
from numpy.typing import NDArray

FEWEST_FILMS = 8
"""Fewer films are never enough to call a difference more than chance."""
_MOST_CELLS = 14
"""Cells a side at which heat is ranked: the grid of a 224 px ViT, finer than any of our CNN maps."""


def check_pairs(films: NDArray[np.uint8], heat: np.ndarray) -> None:
    """Refuses films (N, S, S) and maps (N, h, w) that do not pair up, with ValueError."""
    if heat.ndim != 3 or len(films) != len(heat):
        raise ValueError(f"{len(films)} films need as many maps (N, h, w), not {heat.shape}")


def blurred(films: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What hidden pixels of films, uint8 (N, S, S), are replaced by: an eighth of the side is one smudge.

    A black patch would be a thing of its own that no model saw.
    """
    return np.stack([cv2.GaussianBlur(film, (0, 0), films.shape[1] / 8) for film in films])


def cells_of(heat: np.ndarray, size: int) -> NDArray[np.float32]:
    """Heat (N, h, w) in the cells that are ranked: float32 (N, c, c), at most 14 a side."""
    cells = min(size, max(heat.shape[1:]), _MOST_CELLS)
    small = [cv2.resize(one.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA) for one in heat]
    return np.stack(small)


def heat_ranks(heat: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ranks of all pixels, cell by cell, 0 being the hottest; equally hot cells come in random order.

    Of heat (N, h, w), any size, and the side of the films: int (N, S, S), 0 to cells - 1.
    """
    ranks = [_ranks_of_one(cells, rng) for cells in cells_of(heat, size)]
    enlarged = [cv2.resize(one, (size, size), interpolation=cv2.INTER_NEAREST) for one in ranks]
    return np.stack(enlarged).astype(int)


def hottest(ranks: np.ndarray, share: float) -> NDArray[np.bool_]:
    """Mask, bool (N, S, S), of the hottest cells: that share of all, one at least."""
    return ranks < max(1, round(share * (ranks.max() + 1)))


def shifted(masks: np.ndarray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The control: the same shapes elsewhere, each mask shifted cyclically to any place but its own."""
    height, width = masks.shape[1:]
    shifts = [divmod(int(shift), width) for shift in rng.integers(1, height * width, len(masks))]
    return np.stack([np.roll(mask, shift, axis=(0, 1)) for mask, shift in zip(masks, shifts, strict=True)])


def log_odds(probabilities: np.ndarray) -> NDArray[np.float64]:
    """Log-odds still move where a sure model's probability is stuck at 0.999."""
    inside = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(inside / (1 - inside))


def p_value_of(differences: np.ndarray) -> float:
    """P-value of a one-sided Wilcoxon signed-rank test that differences (N,) lie above 0.

    NaN for fewer than 8 films and where nothing differs.
    """
    if len(differences) < FEWEST_FILMS or not np.any(differences != 0):
        return float("nan")
    from scipy.stats import wilcoxon  # takes a second to load

    return float(wilcoxon(differences, alternative="greater").pvalue)


def _ranks_of_one(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(cells.size)
    order = order[np.argsort(-cells.ravel()[order], kind="stable")]
    ranks = np.empty(cells.size, np.uint16)
    ranks[order] = np.arange(cells.size)
    return ranks.reshape(cells.shape)
