"""Takes text, thumbnails and all other extras out of JPEG, PNG and TIFF files; the pixels stay."""

import io
import struct
import zlib
from collections.abc import Iterator

import cv2

from openmed.data.images import decode_film
from openmed.errors import BadInput

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sBIT"}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}
_EXTRAS = {*range(0xE0, 0xF0), 0xFE}
_JFIF, _ADOBE = 0xE0, 0xEE
_ORIENTATION = 0x0112


def scrub(content: bytes) -> tuple[bytes, str]:
    """Keeps of a film's file what its pixels need, and the orientation.

    Args:
        content: Bytes of a JPEG, PNG or TIFF file, whole or damaged.

    Returns:
        The cleaned file, and the suffix it needs when its format was changed (TIFF becomes PNG). Empty
        for content of any other kind. A damaged file stays damaged.
    """
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content), ""
    if content.startswith(_PNG):
        return _png(content), ""
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(content), ".png"
    return b"", ""


def _jpeg(content: bytes) -> bytes:
    exif = _orientation_exif(content)
    extra = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif if exif else b""
    parts = list(_jpeg_parts(content))
    # The orientation follows the JFIF header, which must come first.
    head = 1 + (len(parts) > 1 and parts[1][1] == _JFIF)
    return b"".join([*parts[:head], extra, *parts[head:]])


def _jpeg_parts(content: bytes) -> Iterator[bytes]:
    """Yields the start mark, the segments that pixels need, and the scans."""
    yield content[:2]
    place = 2
    while place + 2 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker in (_EOI, _SOI):
            yield b"\xff\xd9"
            return  # what follows the end is no part of the film
        else:
            end = place + 2 + max(2, int.from_bytes(content[place + 2 : place + 4], "big"))
            if marker == _SOS:
                end = _end_of_scan(content, end)
            yield from _kept_segment(marker, content[place:end])
            place = end


def _kept_segment(marker: int, segment: bytes) -> Iterator[bytes]:
    if marker == _JFIF and segment[4:9] == b"JFIF\0" and len(segment) >= 16:
        yield segment[:2] + b"\0\x10" + segment[4:16] + b"\0\0"  # without its thumbnail
    elif marker not in _EXTRAS or (marker == _ADOBE and segment[4:9] == b"Adobe"):
        yield segment


def _end_of_scan(content: bytes, place: int) -> int:
    while 0 <= (place := content.find(b"\xff", place)) < len(content) - 1:
        follower = content[place + 1]
        if follower != 0 and follower not in _ALONE and follower != 0xFF:
            return place
        place += 1 if follower == 0xFF else 2
    return len(content)


def _png(content: bytes) -> bytes:
    parts, place = [_PNG], len(_PNG)
    exif = _orientation_exif(content)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT" and exif:
            parts.append(_chunk(b"eXIf", exif))
            exif = b""
        if kind in _PNG_KEPT:
            parts.append(content[place : place + 12 + length])
        place += 12 + length
        if kind == b"IEND":
            break
    return b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def _tiff(content: bytes) -> bytes:
    """Stores the pixels as PNG: tags of a TIFF may lie anywhere in the file."""
    try:
        film = decode_film(content)
    except BadInput:
        return b""
    return cv2.imencode(".png", film)[1].tobytes()


def _orientation_exif(content: bytes) -> bytes:
    """Returns Exif data that holds the film's orientation alone; empty for an upright film."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on damaged files, which decoding refuses later
        return b""
    if orientation not in range(2, 9):
        return b""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)
