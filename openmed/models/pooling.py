"""Pooling of feature maps to a few numbers that keep where on the film, roughly, a channel answers."""

import numpy as np
import torch
from torch import Tensor

BANDS = 4
"""Bands down the film and across it."""
_FLOOR = 1e-3


def profile(maps: Tensor) -> Tensor:
    """Means of each channel over bands down and across the film, and the logarithm of its spread.

    The means tell a turned film from an upright one; the spread tells textures apart.

    Of maps (N, C, h, w), any size: float32 (N, 9 C), four bands down of each channel, four across, one
    spread.
    """
    maps = maps.float()
    down = maps.mean(3) @ _bands(int(maps.shape[2])).to(maps.device)
    across = maps.mean(2) @ _bands(int(maps.shape[3])).to(maps.device)
    spread = torch.log(maps.flatten(2).std(2, correction=0) + _FLOOR)
    return torch.cat([down.flatten(1), across.flatten(1), spread], 1)


def _bands(cells: int) -> Tensor:
    """Weights (cells, 4) of means over bands of equal width; a cell on an edge counts in both by parts."""
    edges = np.arange(cells + 1)[:, None] / cells * BANDS
    low, high = np.maximum(edges[:-1], np.arange(BANDS)), np.minimum(edges[1:], np.arange(BANDS) + 1)
    return torch.from_numpy(np.maximum(high - low, 0).astype(np.float32))
