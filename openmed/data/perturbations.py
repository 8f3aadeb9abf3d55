"""Films as another machine, hand or archive would have given them, and films with a part hidden.

All take uint8 (N, S, S) and return as many; none has a random part, so a result can be had again.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Films = NDArray[np.uint8]

_BORDER_SHARE = 0.1
_GREY = 127
# Both lungs of a frontal film, in film widths: centre across and down, half axes. Generous, so that what is
# left of them tells nothing.
_LUNGS = ((0.30, 0.47, 0.22, 0.37), (0.70, 0.47, 0.22, 0.37))


def brighter(films: Films, share: float) -> Films:
    """Adds a share of the full range (negative darkens), as another exposure would."""
    return _clipped(films + share * 255.0)


def contrasted(films: Films, factor: float) -> Films:
    """Stretches each film about its own mean by a factor."""
    mean = films.mean(axis=(1, 2), keepdims=True)
    return _clipped((films - mean) * factor + mean)


def compressed(films: Films, quality: int) -> Films:
    """Stores each film as JPEG of a quality (1 to 100) and reads it again."""
    stored = (cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for film in films)
    return _stacked([cv2.imdecode(each, cv2.IMREAD_GRAYSCALE) for each in stored], films)


def rotated(films: Films, degrees: float) -> Films:
    """Turns each film about its centre, counter-clockwise; the border is repeated."""
    size = films.shape[1]
    turn = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, 1.0)
    turned = [cv2.warpAffine(f, turn, (size, size), borderMode=cv2.BORDER_REPLICATE) for f in films]
    return _stacked(turned, films)


def without_border(films: Films) -> Films:
    """Greys out the outer tenth on every side, where markers and letters stand."""
    size = films.shape[1]
    edge = max(1, round(_BORDER_SHARE * size))
    inside = np.zeros((size, size), bool)
    inside[edge : size - edge, edge : size - edge] = True
    return _filled(films, ~inside)


def without_lungs(films: Films) -> Films:
    """Greys out both lungs, where the finding is, at their usual place."""
    return _filled(films, lung_mask(films.shape[1]))


def lung_mask(size_px: int) -> NDArray[np.bool_]:
    """Where both lungs of a frontal film usually lie, bool (S, S): two ellipses, on the generous side."""
    down, across = (np.mgrid[:size_px, :size_px] + 0.5) / size_px
    lungs = np.zeros((size_px, size_px), bool)
    for x, y, half_width, half_height in _LUNGS:
        lungs |= ((across - x) / half_width) ** 2 + ((down - y) / half_height) ** 2 <= 1
    return lungs


ROBUSTNESS: dict[str, Callable[[Films], Films]] = {
    "brighter": lambda films: brighter(films, 0.1),
    "darker": lambda films: brighter(films, -0.1),
    "flatter": lambda films: contrasted(films, 0.8),
    "compressed": lambda films: compressed(films, 50),
    "turned": lambda films: rotated(films, 5),
}
"""Changes that must not matter: within what good films differ by."""

HIDDEN: dict[str, Callable[[Films], Films]] = {"border hidden": without_border, "lungs hidden": without_lungs}
"""Parts that tell whether a model looks where the finding is."""


def _filled(films: Films, where: NDArray[np.bool_]) -> Films:
    # The same grey in every film: a film's own mean would still tell of what is hidden.
    return np.where(where, np.uint8(_GREY), films)


def _clipped(films: NDArray[np.float64]) -> Films:
    return np.clip(np.round(films), 0, 255).astype(np.uint8)


def _stacked(films: list[NDArray], like: Films) -> Films:
    return np.stack(films) if films else like.copy()
