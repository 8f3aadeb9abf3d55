"""DICOM films: header, pixels in any usual transfer syntax, and the tables that make grey levels of them."""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from openmed.data.grey import check_shape, jpeg_shape, to_grey, to_uint8
from openmed.errors import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = "1.2.840.10008.1.2.1.99"
_LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
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
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values in elements that are not looked at
        film = dcmread(io.BytesIO(data))
        _check(film, name)
        pixels = _pixels(film, name)
        return _grey(film, pixels), int(film.BitsStored)


def _check(film: "Dataset", name: str) -> None:
    """Refuses by the header what is no film, before any pixel is decoded."""
    if "PixelData" not in film:
        raise BadInput(f"{name} is DICOM without an image")
    if str(film.file_meta.TransferSyntaxUID) == _DEFLATED:
        raise BadInput(f"{name} is a deflated DICOM file: store it in another transfer syntax")
    if int(film.get("NumberOfFrames") or 1) > 1:
        raise BadInput(f"{name} has several frames; a film has one")
    check_shape((int(film.Rows), int(film.Columns)), name)
    if not 8 <= int(film.BitsStored) <= int(film.BitsAllocated) <= 16:
        raise BadInput(f"{name} stores {film.BitsStored} of {film.BitsAllocated} bits; films have 8 to 16")
    if int(film.SamplesPerPixel) not in (1, 3):
        raise BadInput(f"{name} has {film.SamplesPerPixel} values a pixel; films have 1 or 3")


def _pixels(film: "Dataset", name: str) -> np.ndarray:
    """Returns the stored values, (H, W) or (H, W, 3) red first, by the sturdiest decoder for their kind."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array

    syntax = str(film.file_meta.TransferSyntaxUID)
    if syntax in _NATIVE:
        return _used_bits(film, pixel_array(film))
    if not film.file_meta.TransferSyntaxUID.is_RLE:
        _check_stream(get_frame(film.PixelData, 0, number_of_frames=1), film, name)
    if syntax in _LOSSY_JPEG and int(film.BitsAllocated) == 8:
        return pixel_array(film, decoding_plugin="pillow")
    if syntax in _JPEG_2000:
        return pixel_array(film, decoding_plugin="pylibjpeg")
    return _used_bits(film, pixel_array(film))


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


def _grey(film: "Dataset", pixels: np.ndarray) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    kind = str(film.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, film)
        pixels = to_uint8(pixels, 0, np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3:
        # pydicom has turned YBR into RGB by now.
        return to_grey(to_uint8(pixels, 0, (1 << int(film.BitsStored)) - 1)[:, :, ::-1])
    values = apply_voi_lut(apply_modality_lut(pixels, film), film, index=0)
    grey = to_uint8(values, *_range(film))
    return 255 - grey if kind == "MONOCHROME1" else grey


def _range(film: "Dataset") -> tuple[float, float]:
    """The values that become black and white after all tables."""
    if film.get("VOILUTSequence"):
        return 0, (1 << int(film.VOILUTSequence[0].LUTDescriptor[2])) - 1
    if film.get("ModalityLUTSequence"):
        return 0, (1 << int(film.ModalityLUTSequence[0].LUTDescriptor[2])) - 1
    bits = int(film.BitsStored)
    ends = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if film.PixelRepresentation else (0, (1 << bits) - 1)
    slope, intercept = float(film.get("RescaleSlope") or 1), float(film.get("RescaleIntercept") or 0)
    low, high = (end * slope + intercept for end in ends)
    return min(low, high), max(low, high)
