"""RLE of DICOM (PS3.5 annex G), decoded strictly: a damaged segment comes out too long or too short.

pydicom completes nothing either, but only warns of what is too long.
"""

import struct

import numpy as np
from numpy.typing import NDArray

_MOST_PADDING = 2


def decode_rle(stream: bytes, shape: tuple[int, int], samples: int, dtype: np.dtype) -> np.ndarray:
    """Decodes a frame of `samples` values (1 or 3) of 8 or 16 bits a pixel: (H, W) or (H, W, 3) of the dtype.

    ValueError where it is damaged, struct.error where it has no header.
    """
    count, *starts = struct.unpack_from("<16L", stream)
    if count != samples * dtype.itemsize:
        raise ValueError(f"{count} segments")
    ends = [*starts[1:count], len(stream)]
    size = shape[0] * shape[1]
    # Segments go from the first value of a pixel to the last, and in each from the upper byte to the lower.
    values = np.empty((size, samples, dtype.itemsize), np.uint8)
    for number, (start, end) in enumerate(zip(starts, ends, strict=False)):
        values[:, number // dtype.itemsize, number % dtype.itemsize] = _segment(stream[start:end], size)
    whole = values.view(dtype.newbyteorder(">")).astype(dtype).reshape(*shape, samples)
    return whole[:, :, 0] if samples == 1 else whole


def _segment(packed: bytes, size: int) -> NDArray[np.uint8]:
    """Unpacks runs (257 - n times the next byte) and literals (the next n + 1 bytes) into uint8 (size,)."""
    unpacked, offset = bytearray(), 0
    while offset < len(packed) and len(unpacked) <= size + _MOST_PADDING:
        length = packed[offset]
        if length > 128:
            unpacked += packed[offset + 1 : offset + 2] * (257 - length)
            offset += 2
        else:
            literals = length + 1 if length < 128 else 0
            unpacked += packed[offset + 1 : offset + 1 + literals]
            offset += 1 + literals
    if not size <= len(unpacked) <= size + _MOST_PADDING:
        raise ValueError(f"{len(unpacked)} values for {size} pixels")
    return np.frombuffer(unpacked, np.uint8)[:size]
