"""Takes text, thumbnails and all other extras out of JPEG, PNG and TIFF films; the pixels stay.

A PNG or TIFF is written anew from its grey levels. A JPEG cannot be without loss: its scans stay, with what
they need, unless it is built in a way in which something else might be among them; then it becomes a PNG.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from openmed.films.grey import ORIENTATION, rightly_turned, to_grey
from openmed.films.images import JPEG_START, PNG_START, decode_with_depth, orientation_of

_SOS, _EOI, _DQT, _DHT, _DRI, _JFIF, _ADOBE = 0xDA, 0xD9, 0xDB, 0xC4, 0xDD, 0xE0, 0xEE
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_PROGRESSIVE = 0xC2
_EXTRAS = {*range(0xE0, 0xF0), 0xFE}
_RESTARTS = range(0xD0, 0xD8)
# Decoders take colours for RGB, YCbCr or CMYK by these names of the components.
_COMPONENTS = (b"\1", b"\0", b"\1\2\3", b"\0\1\2", b"RGB", b"\1\2\3\4", b"CMYK")
_JFIF_VERSIONS, _MOST_DENSITY = (0x0100, 0x0101, 0x0102), 1200


class _Segment(NamedTuple):
    marker: int
    body: bytes
    scan: bytes = b""


def scrub(content: bytes, name: str = "the film") -> tuple[bytes, str]:
    """Keeps of a film's file what its pixels need, and the orientation.

    Returns:
        The cleaned file and its suffix.

    Raises:
        BadInput: The bytes are not a usable image.
    """
    film, bits = decode_with_depth(content, name)
    if content.startswith(JPEG_START) and (cut := cut_jpeg(content, orientation_of(content))):
        return cut, ".jpg"
    if content.startswith(PNG_START) and bits > 8:
        image = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
        film = rightly_turned(to_grey(image), orientation_of(content))
    return cv2.imencode(".png", film)[1].tobytes(), ".png"


def cut_jpeg(content: bytes, orientation: int = 1) -> bytes:
    """Cuts a JPEG stream to its scans, the tables that they use, its colours and an orientation, 1 to 8.

    Empty for one that is built in an unusual way.
    """
    try:
        segments = list(_segments(content))
        kept = [_written(segment) for segment in _kept(segments)]
    except (IndexError, ValueError, struct.error):
        return b""
    exif = _exif(orientation)
    # The orientation follows the JFIF header, which must come first.
    head = int(bool(kept) and kept[0][1] == _JFIF)
    return b"".join([JPEG_START, *kept[:head], exif, *kept[head:], b"\xff\xd9"])


def _segments(content: bytes) -> Iterator[_Segment]:
    """Yields the segments up to the end of the image; ValueError or IndexError where they do not join."""
    offset = 2
    while (marker := content[offset + 1]) != _EOI or content[offset] != 0xFF:
        if content[offset] != 0xFF:
            raise ValueError("bytes between segments")
        if marker == 0xFF:  # filling
            offset += 1
            continue
        end = offset + 2 + int.from_bytes(content[offset + 2 : offset + 4])
        body = content[offset + 4 : end]
        offset = _end_of_scan(content, end) if marker == _SOS else end
        yield _Segment(marker, body, content[end:offset])


def _end_of_scan(content: bytes, offset: int) -> int:
    while (offset := content.index(b"\xff", offset)) < len(content) - 1:
        follower = content[offset + 1]
        if follower != 0 and follower not in _RESTARTS and follower != 0xFF:
            return offset
        offset += 1 if follower == 0xFF else 2
    raise ValueError("a scan without an end")


def _kept(segments: Sequence[_Segment]) -> Iterator[_Segment]:
    """Yields what the pixels need. Raises ValueError for what cannot be told to be needed."""
    frames = [segment for segment in segments if segment.marker in _FRAMES]
    scans = [at for at, segment in enumerate(segments) if segment.marker == _SOS]
    if len(frames) != 1 or not scans:
        raise ValueError("not one image")
    frame = frames[0].body
    if frame[0] != 8 or len(frame) != 6 + 3 * frame[5] or frame[6::3] not in _COMPONENTS:
        raise ValueError("an unknown kind of image")
    _check_scans([segments[at].body for at in scans], frames[0])
    for at, (marker, body, scan) in enumerate(segments):
        if marker in (_DQT, _DHT):
            later = segments[at + 1 :]
            tables = [
                table for table in _tables(marker, body) if _is_used(marker, table[0], later, frames[0])
            ]
            if tables:
                yield _Segment(marker, b"".join(tables))
        elif marker in (_JFIF, _ADOBE):
            yield from _colours(marker, body)
        elif marker in (*_FRAMES, _SOS) or (marker == _DRI and len(body) == 2):
            yield _Segment(marker, body, scan)
        elif marker not in _EXTRAS:
            raise ValueError("an unknown segment")


def _check_scans(bodies: Sequence[bytes], frame: _Segment) -> None:
    seen = b""
    for body in bodies:
        if len(body) != 4 + 2 * body[0]:
            raise ValueError("an unknown kind of scan")
        seen += body[1 : 1 + 2 * body[0] : 2]
    if frame.marker != _PROGRESSIVE and sorted(seen) != sorted(frame.body[6::3]):
        raise ValueError("a component comes twice or not at all")  # the later one would hide the former


def _tables(marker: int, body: bytes) -> Iterator[bytes]:
    """Yields the tables of a segment, each with the byte that names it."""
    while body:
        length = 1 + 64 * (1 + (body[0] >> 4)) if marker == _DQT else 17 + sum(body[1:17])
        if length > len(body) or (marker == _DHT and len(set(body[17:length])) < length - 17):
            raise ValueError("no table")
        yield body[:length]
        body = body[length:]


def _is_used(marker: int, number: int, later: Sequence[_Segment], frame: _Segment) -> bool:
    """Tells whether a scan uses a table before another takes its place."""
    mask = 15 if marker == _DQT else 255
    for segment in later:
        replaced = (
            [table[0] & mask for table in _tables(marker, segment.body)] if segment.marker == marker else ()
        )
        if number & mask in replaced:
            return False
        if (
            segment.marker == _SOS
            and marker == _DQT
            and number & 15 in {table & 15 for table in frame.body[8::3]}
        ):
            return True
        if segment.marker == _SOS and marker == _DHT and number in _huffman(segment.body, frame):
            return True
    return False


def _huffman(scan: bytes, frame: _Segment) -> set[int]:
    """The Huffman tables that a scan uses: for constant parts (DC) and, 16 added, for the others (AC)."""
    used, (first, _, refinement) = scan[2 : 2 + 2 * scan[0] : 2], scan[-3:]
    constant, others = {table >> 4 for table in used}, {16 | (table & 15) for table in used}
    if frame.marker != _PROGRESSIVE:
        return constant | others
    return others if first else set() if refinement >> 4 else constant


def _colours(marker: int, body: bytes) -> Iterator[_Segment]:
    """What tells the colours of a JPEG, without anything else."""
    if marker == _JFIF and body[:5] == b"JFIF\0" and len(body) >= 14:
        version, units, *density = struct.unpack_from(">HBHH", body, 5)
        usual = (
            version in _JFIF_VERSIONS and units <= 2 and min(density) > 0 and max(density) <= _MOST_DENSITY
        )
        yield _Segment(marker, (body[:12] if usual else b"JFIF\0\1\1\0\0\1\0\1") + b"\0\0")  # no thumbnail
    if marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12 and body[11] <= 2:
        yield _Segment(marker, b"Adobe\0\x64\0\0\0\0" + body[11:12])


def _written(segment: _Segment) -> bytes:
    head = struct.pack(">BBH", 0xFF, segment.marker, len(segment.body) + 2)
    return head + segment.body + segment.scan


def _exif(orientation: int) -> bytes:
    """A segment that holds the film's orientation alone; none for an upright film."""
    if orientation not in range(2, 9):
        return b""
    body = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)
    return _written(_Segment(0xE1, body))
