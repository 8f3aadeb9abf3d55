"""What one film may take: bytes, pixels, memory and time. Limits of claims alone would not hold.

Every limit stands where a decoder allocates or works, and is counted on what it really reads: the files
below `MAX_FILE_BYTES` while they are read, entries of a zip while they unpack, frames and scans as the
decoder will find them. Decoders whose work no header tells run in a process with limits of its own (see
openmed.films.isolated).
"""

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from openmed.errors import BadInput
from openmed.files import read_regular

MAX_FILE_BYTES = 128 << 20
"""A film of 64 million pixels of 16 bits, uncompressed, with its header."""
MAX_PIXELS = 64_000_000
"""A film of 14 x 17 inch digitised at 50 µm has 61 million."""
MAX_DECODED_BYTES = 256 << 20
"""What the decoder may lay out for the pixels of a film, its channels and coefficients included."""
MAX_JPEG_SCANS = 100
MAX_SCANNED_PIXELS = 500_000_000
"""Pixels times scans of a JPEG: each scan is a pass over the whole film. Usual ones have 1 to 12."""
MAX_PNG_CHUNKS = 100_000
MIN_SIDE_PX = 32
"""Films with a shorter side cannot be used, unless the settings say otherwise."""
_LARGE_PIXELS = 12_000_000
_one_large_film = threading.RLock()


def read_film_file(path: Path) -> bytes:
    """Reads a film's file; OSError where it is none, cannot be read or is larger than `MAX_FILE_BYTES`."""
    return read_regular(path, MAX_FILE_BYTES)


def check_layout(pixels: int, bytes_a_pixel: int, name: str) -> None:
    """Refuses a film whose decoder would lay out more than `MAX_DECODED_BYTES`, with BadInput."""
    if pixels * bytes_a_pixel > MAX_DECODED_BYTES:
        mib = (pixels * bytes_a_pixel >> 20) + 1
        raise BadInput(
            f"{name} would take {mib} MiB to decode; a film takes at most {MAX_DECODED_BYTES >> 20}"
        )


def room_for(pixels: int) -> AbstractContextManager[object]:
    """Lets large films be decoded one at a time; usual ones do not wait for each other."""
    return nullcontext() if pixels < _LARGE_PIXELS else _one_large_film


os.register_at_fork(after_in_child=lambda: globals().update(_one_large_film=threading.RLock()))
