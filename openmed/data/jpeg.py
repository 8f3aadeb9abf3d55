"""JPEG streams, of files and inside TIFF and DICOM: what libjpeg only warns of is damage here.

libjpeg fills the missing half of a film with grey, warns, and ends well. Pillow and OpenCV pass over the
warning; simplejpeg, which holds the same library, can take it for an error.
"""

import numpy as np

from openmed.errors import BadInput

_FRAMES = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}  # the last is JPEG-LS
_BARE = {0x01, *range(0xD0, 0xD9)}


def jpeg_grey(stream: bytes, name: str) -> np.ndarray:
    """Decodes a JPEG stream of 8 bits to its luma, whatever its components are.

    Args:
        stream: From its start mark on; what follows its end is ignored.
        name: What to call it in an error.

    Returns:
        uint8 (H, W).

    Raises:
        BadInput: It is cut, damaged or of another kind.
    """
    from simplejpeg import decode_jpeg

    try:
        return decode_jpeg(stream, "GRAY", strict=True)[:, :, 0]
    except ValueError:
        raise BadInput(f"{name} is not a whole JPEG image") from None


def jpeg_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Reads the frame header of a JPEG or JPEG-LS stream.

    Returns:
        Marker (0xC0 baseline, 0xC3 lossless, 0xF7 JPEG-LS, ...), bits a value, height, width; None
        when there is none.
    """
    place = data.find(b"\xff", 2)
    while 0 <= place < len(data) - 8:
        marker = data[place + 1]
        if marker in _FRAMES:
            height, width = (int.from_bytes(data[place + at : place + at + 2]) for at in (5, 7))
            return marker, data[place + 4], height, width
        if marker in _BARE or marker == 0xFF:
            step = 2 if marker in _BARE else 1
        else:
            step = 2 + int.from_bytes(data[place + 2 : place + 4])
        place = data.find(b"\xff", place + step)
    return None


def jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Returns (height, width) by the header of a JPEG or JPEG-LS stream, None when it does not tell."""
    frame = jpeg_frame(data)
    return frame and frame[2:]
