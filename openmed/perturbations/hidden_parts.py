"""Films with a part hidden, which tells whether a model looks where the finding is.

All take uint8 (N, S, S) and return as many; none has a random part, so a result can be had again.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Films = NDArray[np.uint8]

_BORDER_SHARE = 0.1
_GREY = 127
# Both lungs of a frontal film, in film widths: centre across and down, half axes. Generous, so that what is
# left of them tells nothing.
_LUNGS = ((0.30, 0.47, 0.22, 0.37), (0.70, 0.47, 0.22, 0.37))


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


HIDDEN: dict[str, Callable[[Films], Films]] = {"border hidden": without_border, "lungs hidden": without_lungs}


def _filled(films: Films, where: NDArray[np.bool_]) -> Films:
    # The same grey in every film: a film's own mean would still tell of what is hidden.
    return np.where(where, np.uint8(_GREY), films)
