"""DICOM films: pixels in any usual transfer syntax become grey levels.

Headers are often wrong. Where the pixels or the codestream tell otherwise, they are believed.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.films.dicom.grey_levels import grey_levels, true_colours
from openmed.films.dicom.header import JPEG_2000, LOSSY_JPEG, NATIVE, RLE, checked, streams
from openmed.films.grey import depth, quiet
from openmed.films.isolated import decode_isolated
from openmed.films.jpeg import jpeg_frame, jpeg_grey

if TYPE_CHECKING:
    from pydicom import Dataset


def decode_dicom(data: bytes, name: str) -> tuple[NDArray[np.uint8], int]:
    """Decodes a single-frame film.

    Rescaling or the modality table, then the first window or table of interest, then the photometric
    interpretation are applied (DICOM PS3.3 C.11, C.7.6.3.1.2). Without a window that shows the film, the
    range of the bits that its values use becomes 0 to 255.
    uint8 (H, W), 0 black to 255 white, and the bits a pixel was stored with.

    Raises:
        BadInput: It holds no film, several frames, or more than a film can have.
        Exception: Whatever pydicom and its decoders raise on damaged content.
    """
    film, _, grey = stored_and_grey(data, name)
    return grey, int(film.BitsStored)


def stored_and_grey(data: bytes, name: str) -> tuple["Dataset", np.ndarray, np.ndarray]:
    """Decodes a film as `decode_dicom` does and returns all that it came from.

    Returns:
        The data set, completed and corrected by its pixels; the values that it stores, (H, W), or (H, W, 3)
        red first; the grey levels. A lossy JPEG in colour has its luma for values.
    """
    with quiet():  # of odd values in elements that are not looked at
        film = checked(data, name)
        pixels = _pixels(film, data, name)
        if pixels.shape[:2] != (film.Rows, film.Columns):
            raise BadInput(f"{name} is damaged: its image has another size than its header says")
        return film, pixels, grey_levels(film, pixels, name)


def _pixels(film: "Dataset", data: bytes, name: str) -> np.ndarray:
    """Returns the stored values, (H, W) or (H, W, 3) red first, by the sturdiest decoder for their kind."""
    from pydicom.pixels import pixel_array

    syntax = str(film.file_meta.TransferSyntaxUID)
    if syntax in LOSSY_JPEG:
        frame = jpeg_frame(stream := streams(film)[0])
        if frame and frame[1] > 8:
            raise BadInput(f"{name} is a lossy JPEG of more than 8 bits: store it in another transfer syntax")
        return jpeg_grey(stream, name)
    if syntax in NATIVE:
        pixels = pixel_array(film, correct_unused_bits=False, raw=True)
    else:
        decoder = "pylibjpeg" if syntax in JPEG_2000 else "rle" if syntax == RLE else "gdcm"
        pixels, _ = decode_isolated(decoder, data, name)
    if pixels.ndim == 3:
        return true_colours(film, pixels)
    deeper = int(pixels.max()).bit_length() > int(film.BitsStored)
    if syntax not in JPEG_2000 or (deeper and 8 * pixels.itemsize == film.BitsAllocated):
        return _used_bits(film, pixels)
    film.BitsStored = max(int(film.BitsStored), int(pixels.max()).bit_length())
    return pixels


def _used_bits(film: "Dataset", pixels: np.ndarray) -> np.ndarray:
    """Takes away what lies above or below the stored bits, such as old overlays.

    Values that need more bits than the header says stay whole, and the header is corrected.
    """
    allocated, stored, high = int(film.BitsAllocated), int(film.BitsStored), int(film.HighBit)
    if stored == allocated or not stored - 1 <= high < allocated:
        return pixels
    # Shifting up and down again drops the bits above and, for signed values, extends the sign.
    used = (pixels << (allocated - 1 - high)).astype(pixels.dtype) >> (allocated - stored)
    if high > stored - 1 or pixels.dtype.kind == "i" or not int(pixels.max()) >> stored:
        return used
    # Without their upper bits such values leap from white to black; overlays make leaps themselves.
    if _roughness(used) <= _roughness(pixels):
        return used
    film.BitsStored = depth(pixels)
    film.HighBit = film.BitsStored - 1
    return pixels


def _roughness(pixels: np.ndarray) -> float:
    return float(np.abs(np.diff(pixels.astype(np.int32), axis=1)).mean())
