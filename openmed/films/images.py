"""Decoding: any supported film file becomes the same standard grey image."""

import io
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.films.budgets import (
    MAX_FILE_BYTES,
    MAX_PNG_CHUNKS,
    MIN_SIDE_PX,
    check_layout,
    read_film_file,
    room_for,
)
from openmed.films.dicom.header import has_preamble, is_dicom
from openmed.films.dicom.pixels import decode_dicom
from openmed.films.grey import FEW_SATURATED, ORIENTATION, check_shape, quiet, rightly_turned, scaled, to_grey
from openmed.films.isolated import decode_isolated
from openmed.films.jpeg import jpeg_grey, jpeg_shape
from openmed.films.withheld import withheld_reason

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm", ".dicom")
"""File names that are taken for films. What a file really is, its content decides."""

_BLANK, _BLANK_STD, _BLANK_PX, _BLANK_LEVELS = "the film is blank", 1.0, 64, 8

_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_film(path: Path) -> NDArray[np.uint8]:
    """Reads a film file: uint8 (H, W), 0 black to 255 white; BadInput where it is no usable image."""
    return decode_film(_content(path), str(path))


def read_squares(
    path: Path, sizes_px: Sequence[int], min_side_px: int = MIN_SIDE_PX
) -> list[NDArray[np.uint8]]:
    """Reads a film file once, for networks of several input sizes; see `usable_squares`."""
    return usable_squares(_content(path), sizes_px, str(path), min_side_px=min_side_px)


def _content(path: Path) -> bytes:
    try:
        return read_film_file(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None


def decode_film(data: bytes, name: str = "the image") -> NDArray[np.uint8]:
    """Decodes the bytes of a JPEG, PNG, TIFF or DICOM film.

    The same film comes out the same however it was stored: colour becomes luma, transparency is
    ignored, the recorded orientation is applied, and the range of the stored bits becomes 0 to 255.
    DICOM says what that range is. PNG and TIFF with 16 bits usually do not: there it is that of the
    fewest bits, 8 or more, that hold the brightest pixel, because films of 10 to 14 bits stored in 16
    would come out black otherwise.
    uint8 (H, W), 0 black to 255 white.

    Raises:
        BadInput: The bytes are not a usable image.
    """
    return decode_with_depth(data, name)[0]


def decode_with_depth(data: bytes, name: str = "the image") -> tuple[NDArray[np.uint8], int]:
    """Decodes like `decode_film` and tells the bits that a pixel was stored with (8 to 16)."""
    if not data:
        raise BadInput(f"{name} is empty")
    if len(data) > MAX_FILE_BYTES:
        raise BadInput(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB; no film is")
    if reason := withheld_reason(data):
        raise BadInput(f"{name} {reason}")
    decode = _decoder(data)
    if decode is None:
        raise BadInput(f"{name} is not a JPEG, PNG, TIFF or DICOM image")
    try:
        return decode(data, name)
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # decoders raise dozens of kinds, and all of them mean this; see the fuzz test
        raise BadInput(f"{name} cannot be decoded: it is damaged ({type(error).__name__})") from None


def decode_squares(data: bytes, sizes_px: Sequence[int], name: str = "the image") -> list[NDArray[np.uint8]]:
    """Decodes a film once and stretches it to squares, as networks see it: uint8 (size, size) for each size.

    JPEG decoders can reduce while they decode, which is faster. It is not used: their cruder average
    moved probabilities by up to 0.06 against the same film stored in another format.
    """
    film = decode_film(data, name)
    return [resize_film(film, size) for size in sizes_px]


def usable_squares(
    data: bytes, sizes_px: Sequence[int], name: str = "the image", *, min_side_px: int = MIN_SIDE_PX
) -> list[NDArray[np.uint8]]:
    """Decodes as `decode_squares`; BadInput where the validate stage would quarantine the film."""
    film = decode_film(data, name)
    check_usable(film, name, min_side_px)
    return [resize_film(film, size) for size in sizes_px]


def check_usable(film: NDArray[np.uint8], name: str = "the image", min_side_px: int = MIN_SIDE_PX) -> None:
    """Refuses a decoded film, uint8 (H, W), that is too small or blank, with BadInput."""
    height, width = film.shape
    std = float(cv2.meanStdDev(film)[1].item())
    if reason := unusable_reason(width, height, std, min_side_px) or blank_reason(film):
        raise BadInput(f"{name} cannot be used: {reason}")


def unusable_reason(width: int, height: int, std: float, min_side_px: int = MIN_SIDE_PX) -> str:
    """Says why a decoded film cannot be used, by its sides in pixels and the deviation of its grey levels."""
    if min(width, height) < min_side_px:
        return f"only {width} x {height} pixels"
    return _BLANK if std < _BLANK_STD else ""


def blank_reason(film: NDArray[np.uint8]) -> str:
    """Says that a film shows nothing: black, white or noise, with or without a small marker; else empty.

    Its copy of 64 x 64 pixels, a few dark and bright ones apart, then has fewer than 8 grey levels; the
    flattest of 5,216 films of children has 79.
    """
    step = max(1, min(film.shape) // 512)  # averaging over all pixels would take as long as decoding
    small = resize_film(film[::step, ::step], _BLANK_PX)
    low, high = np.quantile(small, (FEW_SATURATED, 1 - FEW_SATURATED))
    return _BLANK if high - low < _BLANK_LEVELS else ""


def resize_film(film: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Stretches a film, uint8 (H, W), to a square of `size_px` by area averaging."""
    if film.shape == (size_px, size_px):
        return film
    shrinks = min(film.shape) >= size_px
    return cv2.resize(film, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _decoder(data: bytes) -> Callable[[bytes, str], tuple[NDArray[np.uint8], int]] | None:
    """Chooses by content; the decoders would take a dozen other formats too."""
    if has_preamble(data):  # which may look like another format
        return decode_dicom
    if data.startswith(JPEG_START):
        return _decode_jpeg
    if data.startswith(PNG_START):
        return _decode_png
    if data[:4] in _TIFF_STARTS:
        return partial(decode_isolated, "tiff")
    return decode_dicom if is_dicom(data) else None


def _decode_jpeg(data: bytes, name: str) -> tuple[NDArray[np.uint8], int]:
    with room_for(math.prod(check_shape(jpeg_shape(data), name))):
        return rightly_turned(jpeg_grey(data, name), orientation_of(data)), 8


def _decode_png(data: bytes, name: str) -> tuple[NDArray[np.uint8], int]:
    width, height = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
    check_shape((height, width), name)
    chunks, orientation = _png_chunks(data, name), orientation_of(data)
    kinds = {kind for kind, _ in chunks}
    if b"acTL" in kinds:
        raise BadInput(f"{name} has several frames; a film has one")
    if [kind for kind, _ in chunks[:1]] != [b"IHDR"] or b"IEND" not in kinds:
        raise BadInput(f"{name} is not a whole PNG image")
    depth_bits, colour = data[24:26]
    channels = 1 if colour == 0 and b"tRNS" not in kinds else 4
    check_layout(width * height, channels * (2 if depth_bits > 8 else 1), name)
    if not kinds <= _PNG_KEPT:  # libpng unpacks a thousand texts of 8 MB
        data = b"".join([PNG_START, *(chunk for kind, chunk in chunks if kind in _PNG_KEPT)])
    with room_for(width * height):
        image = None
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            raise BadInput(f"{name} is not a whole PNG image")
        if image.dtype not in (np.uint8, np.uint16):
            raise BadInput(f"{name} stores {image.dtype} pixels; films have 8 to 16 bits")
        return scaled(rightly_turned(to_grey(image), orientation))


def _png_chunks(data: bytes, name: str) -> list[tuple[bytes, memoryview]]:
    """Lists kind and bytes of the whole chunks up to the first damaged one.

    OpenCV allocates what a chunk claims, gigabytes of it, and passes over wrong checksums beside the pixels.
    """
    chunks: list[tuple[bytes, memoryview]] = []
    offset, content = len(PNG_START), memoryview(data)
    while offset + 12 <= len(data) and (not chunks or chunks[-1][0] != b"IEND"):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        if data[end : end + 4] != zlib.crc32(content[offset + 4 : end]).to_bytes(4):
            break
        chunks.append((kind, content[offset : end + 4]))
        if len(chunks) > MAX_PNG_CHUNKS:
            raise BadInput(f"{name} has more than {MAX_PNG_CHUNKS} chunks; no film has")
        offset = end + 4
    return chunks


def orientation_of(data: bytes) -> int:
    """The Exif orientation of a JPEG or PNG, 1 (upright) to 8."""
    if b"Exif\0\0" not in data[:70_000] and b"eXIf" not in data[:70_000]:
        return 1
    from PIL import Image

    with quiet(), Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        return image.getexif().get(ORIENTATION, 1)
