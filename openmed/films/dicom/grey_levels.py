"""From the values that a DICOM film stores to grey levels: tables, windows, colours and polarity."""

import math
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.films.chest import likeness
from openmed.films.grey import FEW_SATURATED, depth, to_grey, to_uint8

if TYPE_CHECKING:
    from pydicom import Dataset

_LEAST_LEVELS = 8
_QUARTER = 64
_LEAST_LIKENESS = 0.15  # the least among 600 films of children
_Default = TypeVar("_Default", float, None)


def grey_levels(film: "Dataset", pixels: np.ndarray, name: str) -> NDArray[np.uint8]:
    """Turns stored values, (H, W) or (H, W, 3) red first, into grey levels, uint8 (H, W), 0 is black."""
    if str(film.PhotometricInterpretation) == "PALETTE COLOR":
        return to_grey(through_palettes(film, pixels)[:, :, ::-1])
    if pixels.ndim == 3:
        return to_grey(to_uint8(pixels, 0, (1 << depth(pixels)) - 1)[:, :, ::-1])
    if int(film.SamplesPerPixel) == 3:
        return pixels  # the luma that a JPEG decoder gave
    grey = _of_interest(film, *after_modality(film, pixels, name), name)
    return 255 - grey if _is_inverted(film, grey) else grey


def _is_inverted(film: "Dataset", grey: np.ndarray) -> bool:
    """Tells whether high values are dark. Where two elements contradict each other, the film decides."""
    inverted = str(film.PhotometricInterpretation) == "MONOCHROME1"
    shape = str(film.get("PresentationLUTShape") or "").strip().upper()
    if shape not in ("IDENTITY", "INVERSE") or (shape == "INVERSE") == inverted:
        return inverted
    upright = likeness(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))["upright"]
    if abs(upright) < _LEAST_LIKENESS:  # no frontal chest: the shape comes last (DICOM PS3.3 C.11.6)
        return shape == "INVERSE"
    return upright < 0


def true_colours(film: "Dataset", planes: np.ndarray) -> np.ndarray:
    """Returns red, green and blue of stored planes (H, W, 3), whatever they are labelled.

    Films are grey or tinted: their colours of YBR hardly vary, and red, green and blue vary alike.
    """
    from pydicom.pixels import convert_color_space

    deepest = max(depth(planes), 8)
    spread = [float(value) for value in planes.reshape(-1, 3).std(0)]
    middle, unit = planes.reshape(-1, 3).mean(0)[1:] / (1 << deepest), 1 << (deepest - 8)
    is_flat = max(spread[1:]) < spread[0] / 4 and bool((abs(middle - 0.5) < 0.15).all())
    is_alike = max(float(cv2.absdiff(planes[..., 0], planes[..., k]).mean()) for k in (1, 2)) <= 2 * unit
    labelled = str(film.PhotometricInterpretation) in ("YBR_FULL", "YBR_FULL_422")
    if is_alike or not (is_flat or labelled):
        return planes
    if deepest > 8:
        planes = to_uint8(planes, 0, (1 << deepest) - 1)
        film.BitsStored, film.HighBit = 8, 7
    return convert_color_space(planes, "YBR_FULL", "RGB")


def through_palettes(film: "Dataset", pixels: np.ndarray) -> NDArray[np.uint8]:
    """Returns the colours that the values of a PALETTE COLOR film stand for: uint8 (H, W, 3), red first."""
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(pixels, film)
    return to_uint8(colours, 0, np.iinfo(colours.dtype).max)


def after_modality(film: "Dataset", pixels: np.ndarray, name: str) -> tuple[np.ndarray, float, float]:
    """Returns the values after the modality table or rescaling, and the ends of their range.

    pydicom's own functions are not used: they take a slope only together with an intercept, mix up
    black and white in a window after a negative slope, and wrap around in tables of 8 bits.
    """
    if film.get("ModalityLUTSequence"):
        return _looked_up(film.ModalityLUTSequence[0], pixels)
    slope, intercept = number_in(film, "RescaleSlope", name, 1), number_in(film, "RescaleIntercept", name, 0)
    ends = [end * slope + intercept for end in _stored_range(pixels)]
    if (slope, intercept) != (1, 0):
        pixels = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return pixels, min(ends), max(ends)


def _stored_range(pixels: np.ndarray) -> tuple[int, int]:
    """The ends of the range of the bits that values use, whatever BitsStored says."""
    if pixels.dtype.kind == "u" or pixels.min() >= 0:
        return 0, (1 << depth(pixels)) - 1
    end = 1 << max(7, depth(np.where(pixels < 0, ~pixels, pixels), least=7))
    return -end, end - 1


def _of_interest(
    film: "Dataset", values: np.ndarray, low: float, high: float, name: str
) -> NDArray[np.uint8]:
    """Applies the first table or window of interest (DICOM PS3.3 C.11.2) and returns 0 to 255.

    A table or window that shows next to nothing of the film is not of this film, and passed over.
    """
    shown = _through_table_or_window(film, values, name)
    if shown is not None and _shows_a_film(shown):
        return shown
    whole = to_uint8(values, low, high)
    return whole if shown is None or _shows_a_film(whole) else shown


def _through_table_or_window(film: "Dataset", values: np.ndarray, name: str) -> np.ndarray | None:
    if film.get("VOILUTSequence"):
        return to_uint8(*_looked_up(film.VOILUTSequence[0], values))
    center, width = (number_in(film, keyword, name, None) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width <= 0:
        return None
    kind = str(film.get("VOILUTFunction") or "LINEAR").upper()
    if kind == "SIGMOID":
        slopes = -4 * (values.astype(np.float32) - np.float32(center)) / np.float32(width)
        return to_uint8(1 / (1 + np.exp(slopes.clip(-80, 80))), 0, 1)
    if kind not in ("LINEAR", "LINEAR_EXACT"):
        raise BadInput(f"{name} has a window of an unknown kind; LINEAR, LINEAR_EXACT and SIGMOID are known")
    if kind == "LINEAR" and width > 1:  # the formula for whole numbers has no grey in a window of one
        center, width = center - 0.5, width - 1
    return to_uint8(values, center - width / 2, center + width / 2)


def _shows_a_film(grey: np.ndarray) -> bool:
    """Tells whether grey levels are many, and neither all dark nor all bright, a few pixels apart."""
    step = max(1, min(grey.shape) // 512)
    counts = np.bincount(grey[::step, ::step].ravel(), minlength=256)
    shares = np.cumsum(counts) / counts.sum()
    low, high = np.searchsorted(shares, (FEW_SATURATED, 1 - FEW_SATURATED))
    levels = np.count_nonzero(counts)
    return bool(levels >= _LEAST_LEVELS and low < 255 - _QUARTER and high > _QUARTER)


def _looked_up(table: "Dataset", values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Looks values up in a table (DICOM PS3.3 C.11.1.1); what lies beside it takes its ends."""
    entries, first, _ = table_in(table, values)
    places = np.rint(values).astype(np.int64) - first
    bits = max(8, int(entries.max()).bit_length())  # which the descriptor is often wrong about
    return entries[places.clip(0, len(entries) - 1)], 0, (1 << bits) - 1


def table_in(table: "Dataset", values: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Reads a table: entries, uint16, the value that the first is for, bits that an entry is said to have."""
    count, first, bits = (int(part) for part in table.LUTDescriptor)
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << 16  # a negative number, stored as one without a sign
    entries, count = table.LUTData, count or 1 << 16
    if not isinstance(entries, bytes):
        entries = np.atleast_1d(np.asarray(entries, np.uint16))
        if bits <= 8 and len(entries) < count <= 2 * len(entries):
            entries = entries.astype("<u2").tobytes()  # two to a word
    if isinstance(entries, bytes):
        words = ">u2" if table.original_encoding[1] is False else "<u2"
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * count else words)
    return entries.astype(np.uint16)[:count], first, bits


def number_in(film: "Dataset", keyword: str, name: str, default: _Default) -> float | _Default:
    """The first value of an element, `default` when it is missing or empty."""
    value = film.get(keyword)
    if value is not None and not isinstance(value, (str, float, int)):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return default
    if not math.isfinite(float(value)):
        raise BadInput(f"{name} is damaged: its {keyword} is no number")
    return float(value)
