"""JPEG streams, of files and inside TIFF and DICOM: what libjpeg only warns of is damage here.

libjpeg fills the missing half of a film with grey, warns, and ends well. Pillow and OpenCV pass over the
warning; simplejpeg, which holds the same library, can take it for an error.
"""

import re
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.films.budgets import MAX_JPEG_SCANS, MAX_SCANNED_PIXELS, check_layout

_FRAMES = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}  # the last is JPEG-LS
_PROGRESSIVE, _SCAN, _START_OF_SCAN, _USUAL_SCANS = 0xC2, 0xDA, b"\xff\xda", 16
_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.S)


def jpeg_grey(stream: bytes, name: str) -> NDArray[np.uint8]:
    """Decodes a JPEG stream of 8 bits to its luma, uint8 (H, W), whatever its components are.

    BadInput where it is cut, damaged or of another kind, or takes more work than a film may.
    """
    from simplejpeg import decode_jpeg

    _check_work(stream, name)
    with suppress(ValueError, IndexError):
        grey = decode_jpeg(stream, "GRAY", strict=True)[:, :, 0]
        if _has_all_scans(stream):
            return grey
    raise BadInput(f"{name} is not a whole JPEG image")


def _check_work(stream: bytes, name: str) -> None:
    """Refuses by the frame that libjpeg will find, and the passes over it: each scan is one."""
    frame = jpeg_frame(stream)
    if frame is None:
        raise BadInput(f"{name} is not a whole JPEG image")
    pixels, scans = frame[2] * frame[3], stream.count(_START_OF_SCAN)
    if scans > _USUAL_SCANS:  # perhaps in a thumbnail or behind the end
        scans = sum(marker == _SCAN for marker, _ in _segments(stream))
    if scans > MAX_JPEG_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
        raise BadInput(f"{name} has {scans} scans, more than a film of its size can have")
    channels = next(body[5] for marker, body in _segments(stream) if marker in _FRAMES and len(body) > 5)
    # What comes in several scans is kept whole until the last of them: two bytes a channel.
    check_layout(pixels, 1 if scans < 2 else 2 * channels, name)


def _has_all_scans(stream: bytes) -> bool:
    """Tells whether the scans of a progressive JPEG refine its luma to the last bit.

    Where a stream is cut between two scans, libjpeg does not even warn: the film is only coarser.
    """
    luma, missing_bits = -1, [1] * 64
    for marker, body in _segments(stream):
        if marker in _FRAMES:
            if marker != _PROGRESSIVE:
                return True
            luma = body[6]
        elif marker == _SCAN and luma in body[1 : 1 + 2 * body[0] : 2]:
            first, last, bits = body[-3:]
            missing_bits[first : last + 1] = [bits & 15] * (last + 1 - first)
    return not any(missing_bits)


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields marker and content of each segment, without the coded pixels behind it, up to the end mark."""
    offset = 2
    while (mark := _SEGMENT.search(stream, offset)) and mark[1] != b"\xd9":
        offset = mark.end() + int.from_bytes(stream[mark.end() : mark.end() + 2])
        yield mark[1][0], stream[mark.end() + 2 : offset]


def jpeg_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Reads the frame header of a JPEG or JPEG-LS stream, None when there is none.

    Marker (0xC0 baseline, 0xC3 lossless, 0xF7 JPEG-LS, ...), bits a value, height and width.
    """
    for marker, body in _segments(data):
        if marker in _FRAMES and len(body) > 5:
            return marker, body[0], int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
        if marker == _SCAN:
            break
    return None


def jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Returns (height, width) by the header of a JPEG or JPEG-LS stream, None when it does not tell."""
    frame = jpeg_frame(data)
    return frame and frame[2:]
