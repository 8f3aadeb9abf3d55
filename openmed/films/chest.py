"""A drawn frontal chest, and how much a film resembles it."""

import cv2
import numpy as np
from numpy.typing import NDArray

CHEST_PX = 32
SIDES = ("left", "right", "top", "bottom")


def likeness(small: np.ndarray) -> dict[str, float]:
    """Correlates a film, uint8 (32, 32), with a drawn frontal chest, by the ranks of pixels.

    -1 to 1 for upright, 90, 180, 270 (degrees to the left) and each of `SIDES` that is cut off. An inverted
    film has a negative one.
    """
    return dict(zip(_NAMES, _TEMPLATES @ _ranks(small), strict=True))


def _ranks(image: np.ndarray) -> NDArray[np.float32]:
    """Ranks of the pixels, of length 1: their product is Spearman's correlation, deaf to exposure."""
    ranks = np.empty(image.size, np.float32)
    ranks[image.ravel().argsort(kind="stable")] = np.arange(image.size)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


def _chest() -> NDArray[np.float32]:
    """Draws a frontal chest of a few smooth parts, float32 (32, 32); bright is dense."""
    grid = (np.arange(CHEST_PX) + 0.5) / CHEST_PX
    down, across = np.meshgrid(grid, np.abs(2 * grid - 1), indexing="ij")
    spine = 0.65 * np.exp(-((across / 0.6) ** 2)) * (0.6 + 0.6 * down)
    abdomen = 1.6 * _step(down, 0.78, 0.05) * _step(-across, -0.85, 0.07)
    lungs = 1.75 * np.exp(-(((across - 0.57) / 0.15) ** 2) - ((down - 0.7) / 0.2) ** 2)
    air = 1.3 * _step(across, 0.91, 0.06) * (0.5 + 0.5 * down)
    shoulders = 0.15 * np.exp(-(((across - 0.5) / 0.35) ** 2) - ((down - 0.15) / 0.1) ** 2)
    return (spine + abdomen + shoulders - lungs - air).astype(np.float32)


def _step(value: np.ndarray, place: float, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(value - place) / width))


def _templates() -> dict[str, np.ndarray]:
    """The chest upright, turned, and with two fifths cut off at each side."""
    chest, cut = _chest(), round(CHEST_PX * 0.4)
    parts = {"upright": chest} | {str(90 * turns): np.rot90(chest, turns) for turns in (1, 2, 3)}
    halves = (chest[:, cut:], chest[:, :-cut], chest[cut:], chest[:-cut])
    size = (CHEST_PX, CHEST_PX)
    parts |= {side: cv2.resize(half, size) for side, half in zip(SIDES, halves, strict=True)}
    return {name: _ranks(part) for name, part in parts.items()}


_NAMES, _TEMPLATES = tuple(_templates()), np.stack(list(_templates().values()))
