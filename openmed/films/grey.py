"""What all decoders share: limits of a film's size, grey from colour, bits to 0..255, orientation."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.films.budgets import MAX_PIXELS

MIN_SIDE_PX = 16
_CHUNK_VALUES = 1 << 20
ORIENTATION = 0x0112
"""The Exif tag of a film's orientation, 1 (upright) to 8."""
FEW_SATURATED = 0.02
"""Share of a film that a burned-in marker may take."""
_MAX_SIDE_PX = 65_535  # that of JPEG and DICOM
# Exif orientation -> quarter turns to the left, then mirrored left to right.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
_pydicom_log = logging.getLogger("pydicom")
_quiet_lock, _quiet_users, _quiet_state = threading.Lock(), [0], ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings, and pydicom's log, which repeats the values that it finds odd.

    Unlike `warnings.catch_warnings` alone it may overlap in several threads.
    """
    with _quiet_lock:
        if _quiet_users[0] == 0:
            _quiet_state.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _quiet_state.callback(setattr, _pydicom_log, "disabled", _pydicom_log.disabled)
            _pydicom_log.disabled = True
        _quiet_users[0] += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users[0] -= 1
            if _quiet_users[0] == 0:
                _quiet_state.close()


def check_shape(shape: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """Returns (height, width) as a header promises them; BadInput where they are None or no film's."""
    if shape is None:
        raise BadInput(f"{name} is damaged: its header does not tell its size")
    height, width = shape
    if height * width > MAX_PIXELS:
        raise BadInput(f"{name} claims {height * width} pixels; a film has at most {MAX_PIXELS}")
    if max(height, width) > _MAX_SIDE_PX:
        raise BadInput(f"{name} is {width} x {height} pixels; a film has at most {_MAX_SIDE_PX} a side")
    if min(height, width) < MIN_SIDE_PX:
        raise BadInput(f"{name} is {width} x {height} pixels; a film has at least {MIN_SIDE_PX} a side")
    return shape


def to_grey(image: np.ndarray) -> np.ndarray:
    """Returns the luma of an image (H, W), (H, W, 2) grey and alpha, or (H, W, 3 or 4) blue first."""
    if image.ndim == 2:
        return image
    if image.shape[2] == 2:
        return np.ascontiguousarray(image[:, :, 0])
    return cv2.cvtColor(np.ascontiguousarray(image[:, :, :3]), cv2.COLOR_BGR2GRAY)


def to_uint8(values: np.ndarray, low: float, high: float) -> NDArray[np.uint8]:
    """Maps low..high to 0..255, rounded; what lies outside is cut off."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, _CHUNK_VALUES // max(1, values[:1].size))
    for start in range(0, len(values), rows):  # a part at a time: films can be large
        part = values[start : start + rows].astype(np.float32)
        part = (part - np.float32(low)) * np.float32(255 / max(high - low, 1e-9))
        result[start : start + rows] = np.rint(part).clip(0, 255)
    return result


def depth(values: np.ndarray, *, least: int = 8) -> int:
    """Tells how many bits, `least` or more, the values of a film (0 to 65,535) use, whatever its header says.

    They are the fewest that hold all but a few saturated pixels, such as a burned-in marker: up to 2 % of
    the film, or any number of one value, that lie two bits or more above what the film uses.
    """
    brightest = int(values.max())
    bits = brightest.bit_length()
    if bits < least + 2:
        return max(bits, least)
    bound, few = 1 << (bits - 2), FEW_SATURATED * values.size
    sample = values.ravel()[:: max(1, values.size // 65_536)]
    if np.count_nonzero((sample >= bound) & (sample < brightest)) > 2 * FEW_SATURATED * sample.size:
        return bits  # as of nearly all films, told without another look at every pixel
    if few < np.count_nonzero(values >= bound) != np.count_nonzero(values == brightest):
        return bits
    counts = np.bincount(values.ravel().astype(np.uint16), minlength=1 << 16)
    for fewer in range(bits - 2, least - 1, -1):
        used = counts[(1 << fewer >> 1 if fewer > least else 0) : 1 << fewer].sum()
        if used > counts[1 << fewer :].sum() / 4 or fewer == least:
            return fewer if used else bits
    return bits


def rightly_turned(film: NDArray[np.uint8], orientation: int) -> np.ndarray:
    """Applies an Exif orientation, 1 to 8; anything else counts as upright."""
    turns, mirrored = _TURNS.get(orientation, (0, False))
    turned = np.rot90(film, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def scaled(grey: np.ndarray) -> tuple[np.ndarray, int]:
    """Brings grey values of unknown depth to 0..255; see `openmed.films.images.decode_film`."""
    if grey.dtype == np.uint8:
        return grey, 8
    bits = depth(grey)
    return to_uint8(grey, 0, (1 << bits) - 1), bits
