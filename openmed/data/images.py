"""Decoding: any supported film file becomes the same standard grey image."""

import struct
from pathlib import Path

import cv2
import numpy as np

from openmed.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".png")
"""File names that are taken for films."""

_MIN_SIDE_PX = 16
_MAX_PIXELS = 200_000_000
_PNG_START, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}


def read_film(path: Path) -> np.ndarray:
    """Reads a film file.

    Returns:
        uint8 (H, W), 0 black to 255 white.

    Raises:
        BadInput: The file is missing or is not a usable image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    return decode_film(data, str(path))


def decode_film(data: bytes, name: str = "the image") -> np.ndarray:
    """Decodes the bytes of a JPEG or PNG film.

    Colour is averaged to luma and transparency ignored. Films deeper than 8 bits are scaled from
    their own darkest to their own brightest value, because 10 to 14 bits are usually stored in 16
    and would come out black if 16 bits were scaled as a whole.

    Args:
        data: Content of the file.
        name: What to call it in an error.

    Returns:
        uint8 (H, W), 0 black to 255 white.

    Raises:
        BadInput: The bytes are not a usable image.
    """
    film, _ = decode_with_depth(data, name)
    return film


def decode_with_depth(data: bytes, name: str = "the image") -> tuple[np.ndarray, int]:
    """Decodes like `decode_film` and tells the bits a pixel was stored with (8 or 16)."""
    if not data:
        raise BadInput(f"{name} is empty")
    pixels = _promised_pixels(data)
    if pixels is None:
        raise BadInput(f"{name} is not a JPEG or PNG image")
    if pixels > _MAX_PIXELS:
        raise BadInput(f"{name} claims {pixels} pixels; a film has at most {_MAX_PIXELS}")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadInput(f"{name} cannot be decoded: {error.err or 'OpenCV refuses it'}") from None
    if image is None:
        raise BadInput(f"{name} is not a whole JPEG or PNG image")
    if image.dtype not in (np.uint8, np.uint16):
        raise BadInput(f"{name} stores {image.dtype} pixels; films have 8 or 16 bits")
    if min(image.shape[:2]) < _MIN_SIDE_PX:
        width, height = image.shape[1::-1]
        raise BadInput(f"{name} is {width} x {height} pixels; a film has at least {_MIN_SIDE_PX} a side")
    return _to_uint8(_to_grey(image)), image.dtype.itemsize * 8


def resize_film(film: np.ndarray, size_px: int) -> np.ndarray:
    """Stretches a film to a square by area averaging.

    Args:
        film: uint8 (H, W).
        size_px: Side of the result.

    Returns:
        uint8 (size_px, size_px).
    """
    if film.shape == (size_px, size_px):
        return film
    shrinks = min(film.shape) >= size_px
    return cv2.resize(film, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _promised_pixels(data: bytes) -> int | None:
    """Pixels by the header of a JPEG or PNG, None for anything else.

    OpenCV would decode a dozen other formats and allocates what a header asks for.
    """
    if data.startswith(_PNG_START) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width * height
    if not data.startswith(_JPEG_START):
        return None
    place = data.find(b"\xff", 2)
    while 0 <= place < len(data) - 8:
        marker = data[place + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width * height
        if marker == 0xFF:
            step = 1
        else:
            step = 2 if marker in _JPEG_BARE else 2 + int.from_bytes(data[place + 2 : place + 4])
        place = data.find(b"\xff", place + step)
    return None


def _to_grey(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return image
    if image.shape[2] == 2:
        return np.ascontiguousarray(image[:, :, 0])
    return cv2.cvtColor(image[:, :, :3], cv2.COLOR_BGR2GRAY)


def _to_uint8(film: np.ndarray) -> np.ndarray:
    if film.dtype == np.uint8:
        return film
    low, high = int(film.min()), int(film.max())
    return ((film.astype(np.float32) - low) * (255 / max(high - low, 1))).round().astype(np.uint8)


def decode_squares(data: bytes, sizes_px: list[int], name: str = "the image") -> list[np.ndarray]:
    """Decodes a film to squares of several sizes."""
    film = decode_film(data, name)
    return [resize_film(film, size) for size in sizes_px]
