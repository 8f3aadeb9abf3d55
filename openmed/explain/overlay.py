"""A film with its heat map laid over it, for a reader's eyes."""

import cv2
import numpy as np
from numpy.typing import NDArray

# The hottest place still lets this share of the film through.
_FILM_SHARE_AT_HOTTEST = 0.4


def overlay(film: NDArray[np.uint8], heat: np.ndarray) -> NDArray[np.uint8]:
    """Lays heat over a film; the colder a place, the more of the plain film is seen.

    Of a grey film, uint8 (H, W), and heat (h, w) in 0..1, enlarged bilinearly: uint8 (H, W, 3), RGB.

    Raises:
        ValueError: The film or the heat has another shape, type or range.
    """
    if film.dtype != np.uint8 or film.ndim != 2:
        raise ValueError(f"the film must be uint8 (H, W), not {film.dtype} {film.shape}")
    # `not (...)` also refuses NaN.
    if heat.ndim != 2 or not (heat.min() >= 0 and heat.max() <= 1):
        raise ValueError(f"the heat must be (h, w) within 0..1, not {heat.shape}")
    height, width = film.shape
    heat = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = heat[..., None] * (1 - _FILM_SHARE_AT_HOTTEST)
    mixed = film[..., None] * (1 - opacity) + cv2.cvtColor(colours, cv2.COLOR_BGR2RGB) * opacity
    return np.rint(mixed).astype(np.uint8)


def encode_jpeg(rgb: np.ndarray, quality: int = 85) -> bytes:
    """Encodes a picture, uint8 (H, W, 3), as JPEG of quality 0..100, with no metadata about the film."""
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise ValueError(f"a picture of shape {rgb.shape} cannot be written as JPEG")
    return encoded.tobytes()


def fitted(film: NDArray[np.uint8], most_px: int) -> NDArray[np.uint8]:
    """Scales a film, uint8 (H, W), so that its longer side has that many pixels; its shape stays."""
    scale = most_px / max(film.shape)
    size = (max(1, round(film.shape[1] * scale)), max(1, round(film.shape[0] * scale)))
    return cv2.resize(film, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
