"""A bank of simulated sites: films as other machines, hands and archives would have given them.

A network that is fed by one hospital can be wrong everywhere else while its own test films say nothing of it
(Zech et al., PLoS Medicine 2018). Each site takes uint8 (N, S, S) and returns as many, film by film and
without chance, so a result can be had again.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import cv2
import numpy as np

from openmed.perturbations.hidden_parts import Films

_COARSE_SHARE = 0.4
_TILES, _CLIP_LIMIT = (8, 8), 2.0
_EDGE_GAIN, _EDGE_WIDTH = 1.5, 0.02


def with_gamma(film: Films, gamma: float) -> Films:
    """Raises grey levels in 0..1 to a power, as another response curve would."""
    levels = np.arange(256) / 255
    return cv2.LUT(film, _rounded(255 * levels**gamma))


def stretched(film: Films, across: float, down: float) -> Films:
    """Enlarges what the film shows by two factors about its middle; the border is repeated."""
    size = len(film)
    middle = (size - 1) / 2
    matrix = np.array([[across, 0, middle * (1 - across)], [0, down, middle * (1 - down)]], np.float64)
    return cv2.warpAffine(film, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)


def turned(film: Films, degrees: float) -> Films:
    """Turns about the middle, counter-clockwise; the border is repeated."""
    size = len(film)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(film, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)


def coarse(film: Films, share: float) -> Films:
    """Keeps a share of the resolution only."""
    size = len(film)
    small = max(1, round(share * size))
    shrunk = cv2.resize(film, (small, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (size, size), interpolation=cv2.INTER_LINEAR)


def locally_equalised(film: Films) -> Films:
    """Equalises contrast tile by tile, as many archives do (CLAHE; Pizer et al., 1987)."""
    return cv2.createCLAHE(_CLIP_LIMIT, _TILES).apply(film)


def flattened(film: Films, factor: float) -> Films:
    """Shrinks contrast about the film's own mean."""
    mean = film.mean()
    return _rounded((film - mean) * factor + mean)


def noisy(film: Films, deviation: float) -> Films:
    """Adds normal noise, the same for every film, of a share of the grey range."""
    return _rounded(film + 255 * deviation * _noise(len(film)))


def edge_enhanced(film: Films, gain: float, width: float) -> Films:
    """Adds a multiple of what a Gaussian of a share of the side takes away, as vendors' processing does."""
    smooth = cv2.GaussianBlur(film.astype(np.float32), (0, 0), width * len(film))
    return _rounded(film + gain * (film - smooth))


def _each(change: Callable[..., Films], *arguments: float) -> Callable[[Films], Films]:
    return partial(_apply, change, arguments)


def _apply(change: Callable[..., Films], arguments: tuple[float, ...], films: Films) -> Films:
    return np.stack([change(film, *arguments) for film in films]) if len(films) else films.copy()


SITES: dict[str, Callable[[Films], Films]] = {
    "gamma 0.6": _each(with_gamma, 0.6),
    "gamma 1.7": _each(with_gamma, 1.7),
    "zoomed out": _each(stretched, 0.8, 0.8),
    "zoomed in": _each(stretched, 1.25, 1.25),
    "wide": _each(stretched, 1.15, 1.0),
    "tall": _each(stretched, 1.0, 1.15),
    "turned": _each(turned, 7.0),
    "coarse": _each(coarse, _COARSE_SHARE),
    "locally equalised": _each(locally_equalised),
    "edge enhanced": _each(edge_enhanced, _EDGE_GAIN, _EDGE_WIDTH),
    "flat": _each(flattened, 0.6),
    "noisy": _each(noisy, 0.05),
}
"""Name of a site -> its films, of the films as they are."""


@lru_cache(maxsize=4)
def _noise(size_px: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size_px, size_px))


def _rounded(films: np.ndarray) -> Films:
    return np.clip(np.rint(films), 0, 255).astype(np.uint8)
