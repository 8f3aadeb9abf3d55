"""DICOM films: header, pixels in any usual transfer syntax, and the tables that make grey levels of them."""

import math
from typing import TYPE_CHECKING

import numpy as np

from openmed.data.elements import read_elements
from openmed.data.grey import check_shape, quiet, to_grey, to_uint8
from openmed.data.isolated import pixels_by_gdcm
from openmed.data.jpeg import jpeg_grey, jpeg_shape
from openmed.errors import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_RLE = "1.2.840.10008.1.2.5"
LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_COMPRESSED = (_RLE, *LOSSY_JPEG, *_JPEG_2000, *(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 81)))
_KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB")  # and YBR_ of several kinds
_NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_J2K_START = b"\xff\x4f\xff\x51"


def is_dicom(data: bytes) -> bool:
    """Tells whether content is a DICOM file."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a single-frame film.

    Rescaling or the modality table, then the first window or table of interest, then the photometric
    interpretation are applied (DICOM PS3.3 C.11, C.7.6.3.1.2). Without a window, the range that the
    stored bits can take becomes 0 to 255.

    Args:
        data: Content of a DICOM file.
        name: What to call it in an error.

    Returns:
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
        The data set, completed; the values that it stores, (H, W) or (H, W, 3) red first; the grey levels.
    """
    with quiet():  # of odd values in elements that are not looked at
        film = checked(data, name)
        pixels = _pixels(film, data, name)
        return film, pixels, _grey(film, pixels, name)


def checked(data: bytes, name: str) -> "Dataset":
    """Reads a DICOM file, refuses by its header what is no film, and decodes nothing.

    Args:
        data: Content of the file.
        name: What to call it in an error.

    Raises:
        BadInput: As `decode_dicom`.
    """
    film = read_elements(data, name)
    _check(film, name)
    return film


def _check(film: "Dataset", name: str) -> None:
    """Refuses by the header what is no film, before any pixel is decoded; completes what may be missing."""
    syntax = str(film.file_meta.get("TransferSyntaxUID", ""))
    if "PixelData" not in film:
        raise BadInput(f"{name} is DICOM without an image")
    if missing := [keyword for keyword in _NEEDED if film.get(keyword) is None]:
        raise BadInput(f"{name} is damaged: it has no {missing[0]}")
    if syntax not in (*_NATIVE, *_COMPRESSED):
        raise BadInput(f"{name} is DICOM in a transfer syntax that is not read: store it uncompressed")
    if int(film.get("NumberOfFrames") or 1) > 1:
        raise BadInput(f"{name} has several frames; a film has one")
    check_shape((int(film.Rows), int(film.Columns)), name)
    _complete(film)
    if syntax == LOSSY_JPEG[1] and int(film.BitsStored) > 8:
        raise BadInput(f"{name} is a lossy JPEG of more than 8 bits: store it in another transfer syntax")
    if not 8 <= int(film.BitsStored) <= int(film.BitsAllocated) <= 16:
        raise BadInput(f"{name} stores {film.BitsStored} of {film.BitsAllocated} bits; films have 8 to 16")
    if int(film.SamplesPerPixel) not in (1, 3):
        raise BadInput(f"{name} has {film.SamplesPerPixel} values a pixel; films have 1 or 3")
    kind = str(film.PhotometricInterpretation)
    if kind not in _KINDS and not kind.startswith("YBR_"):
        raise BadInput(f"{name} has pixels of an unknown kind; films are grey, RGB, YBR or PALETTE COLOR")


def _complete(film: "Dataset") -> None:
    """Fills in what carelessly written files leave out and only one value fits."""
    for keyword, value in (("BitsStored", film.BitsAllocated), ("PixelRepresentation", 0)):
        if film.get(keyword) is None:
            setattr(film, keyword, value)
    if film.get("HighBit") is None:
        film.HighBit = film.BitsStored - 1
    if int(film.SamplesPerPixel) > 1 and film.get("PlanarConfiguration") is None:
        film.PlanarConfiguration = 0


def _pixels(film: "Dataset", data: bytes, name: str) -> np.ndarray:
    """Returns the stored values, (H, W) or (H, W, 3) red first, by the sturdiest decoder for their kind."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array

    syntax = str(film.file_meta.TransferSyntaxUID)
    if syntax in (*_NATIVE, _RLE):
        return _used_bits(film, pixel_array(film, correct_unused_bits=False))
    stream = get_frame(film.PixelData, 0, number_of_frames=1)
    _check_stream(stream, film, name)
    if syntax in LOSSY_JPEG and int(film.BitsAllocated) == 8:
        return jpeg_grey(stream, name)
    if syntax in _JPEG_2000:
        return pixel_array(film, decoding_plugin="pylibjpeg")
    return _used_bits(film, pixels_by_gdcm(data, name))


def _check_stream(stream: bytes, film: "Dataset", name: str) -> None:
    """The stream inside must have the size that the header promised: decoders allocate by the stream."""
    start = stream.find(_J2K_START, 0, 1024)
    if start >= 0:
        width, height, left, top = (
            int.from_bytes(stream[start + at : start + at + 4]) for at in (8, 12, 16, 20)
        )
        shape: tuple[int, int] | None = (height - top, width - left)
    else:
        shape = jpeg_shape(stream)
    if shape != (int(film.Rows), int(film.Columns)):
        raise BadInput(f"{name} is damaged: its image has another size than its header says")


def _used_bits(film: "Dataset", pixels: np.ndarray) -> np.ndarray:
    """Takes away what lies above or below the stored bits, such as old overlays."""
    allocated, stored, high = int(film.BitsAllocated), int(film.BitsStored), int(film.HighBit)
    if pixels.ndim == 3 or (stored == allocated) or not stored - 1 <= high < allocated:
        return pixels
    # Shifting up and down again drops the bits above and, for signed values, extends the sign.
    return (pixels << (allocated - 1 - high)).astype(pixels.dtype) >> (allocated - stored)


def _grey(film: "Dataset", pixels: np.ndarray, name: str) -> np.ndarray:
    kind = str(film.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return to_grey(through_palettes(film, pixels)[:, :, ::-1])
    if pixels.ndim == 3:
        # pydicom has turned YBR into RGB by now.
        return to_grey(to_uint8(pixels, 0, (1 << int(film.BitsStored)) - 1)[:, :, ::-1])
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        return pixels  # the luma that a JPEG decoder gave
    grey = _of_interest(film, *after_modality(film, pixels, name), name)
    return 255 - grey if kind == "MONOCHROME1" else grey


def through_palettes(film: "Dataset", pixels: np.ndarray) -> np.ndarray:
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
    bits, slope = int(film.BitsStored), number_in(film, "RescaleSlope", name, 1)
    intercept = number_in(film, "RescaleIntercept", name, 0)
    first = -(1 << (bits - 1)) if film.PixelRepresentation else 0
    ends = first * slope + intercept, (first + (1 << bits) - 1) * slope + intercept
    if (slope, intercept) != (1, 0):
        pixels = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return pixels, min(ends), max(ends)


def _of_interest(film: "Dataset", values: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    """Applies the first table or window of interest (DICOM PS3.3 C.11.2) and returns 0 to 255."""
    if film.get("VOILUTSequence"):
        return to_uint8(*_looked_up(film.VOILUTSequence[0], values))
    center, width = (number_in(film, keyword, name, None) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return to_uint8(values, low, high)
    kind = str(film.get("VOILUTFunction") or "LINEAR").upper()
    if width <= 0 or (kind == "LINEAR" and width < 1):
        raise BadInput(f"{name} has a window without a width: correct it or take it away")
    if kind == "SIGMOID":
        slopes = -4 * (values.astype(np.float32) - np.float32(center)) / np.float32(width)
        return to_uint8(1 / (1 + np.exp(slopes.clip(-80, 80))), 0, 1)
    if kind == "LINEAR":
        center, width = center - 0.5, width - 1
    elif kind != "LINEAR_EXACT":
        raise BadInput(f"{name} has a window of an unknown kind; LINEAR, LINEAR_EXACT and SIGMOID are known")
    return to_uint8(values, center - width / 2, center + width / 2)


def _looked_up(table: "Dataset", values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Looks values up in a table (DICOM PS3.3 C.11.1.1); what lies beside it takes its ends."""
    entries, first, bits = table_in(table)
    places = np.rint(values).astype(np.int64) - first
    return entries[places.clip(0, len(entries) - 1)], 0, (1 << bits) - 1


def table_in(table: "Dataset") -> tuple[np.ndarray, int, int]:
    """Returns the entries of a table, uint16, the value that the first is for, and the bits of an entry."""
    count, first, bits = (int(part) for part in table.LUTDescriptor)
    entries = table.LUTData
    if isinstance(entries, bytes):
        words = ">u2" if table.original_encoding[1] is False else "<u2"
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * (count or 1 << 16) else words)
    return np.atleast_1d(np.asarray(entries, np.uint16))[: count or 1 << 16], first, bits


def number_in(film: "Dataset", keyword: str, name: str, default: float | None) -> float | None:
    """The first value of an element, `default` when it is missing or empty."""
    value = film.get(keyword)
    if value is not None and not isinstance(value, (str, float, int)):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return default
    if not math.isfinite(float(value)):
        raise BadInput(f"{name} is damaged: its {keyword} is no number")
    return float(value)
