"""TIFF films by Pillow, and what it does not check: libtiff hides what the libraries below it warn of."""

import io
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.films.grey import ORIENTATION, check_shape, quiet, rightly_turned, scaled
from openmed.films.jpeg import jpeg_grey

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

_COMPRESSION, _JPEG, _DEFLATE, _JPEG_TABLES = 259, 7, (8, 32946), 347
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and lengths
_CHUNK_BYTES = 1 << 20
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


def decode_tiff(data: bytes, name: str) -> tuple[NDArray[np.uint8], int]:
    """Decodes a TIFF as `decode_with_depth`, which gives it a process of its own."""
    from PIL import Image

    # Quiet, for the size is checked here and odd tags are of no interest.
    with quiet(), Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
        check_shape((image.height, image.width), name)
        with suppress(EOFError):  # not n_frames, which reads every page
            image.seek(1)
            raise BadInput(f"{name} has several pages; a film has one")
        tags = cast("TiffImageFile", image).tag_v2
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        _check_parts(data, tags, name)
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)  # what loading has not applied already
        if image.mode.startswith("I;16"):
            film, bits = scaled(np.asarray(image, np.uint16))
            film = 255 - film if inverted else film
        elif image.mode in ("I", "F"):
            raise BadInput(f"{name} stores 32-bit pixels; films have 8 to 16 bits")
        else:
            film, bits = np.asarray(image.convert("RGB").convert("L") if image.mode != "L" else image), 8
    return rightly_turned(film, orientation), bits


def _check_parts(data: bytes, tags: Mapping[int, Any], name: str) -> None:
    """Refuses strips or tiles whose JPEG or deflate stream is not whole."""
    compression = tags.get(_COMPRESSION)
    if compression not in (_JPEG, *_DEFLATE):
        return
    tables = tags.get(_JPEG_TABLES, b"")[:-2]  # without its end mark
    offsets, lengths = (tags[tag] for tag in (_TILES if _TILES[0] in tags else _STRIPS))
    for offset, length in zip(offsets, lengths, strict=True):
        part = data[offset : offset + length]
        if compression == _JPEG:
            jpeg_grey(tables + part[2:] if tables else part, name)
        elif not _inflates(part):
            raise BadInput(f"{name} is not a whole TIFF image")


def _inflates(part: bytes) -> bool:
    """Tells whether a deflate stream is whole and has its checksum; keeps nothing of it."""
    stream = zlib.decompressobj()
    with suppress(zlib.error):
        while part and not stream.eof:
            stream.decompress(part, _CHUNK_BYTES)
            part = stream.unconsumed_tail
    return stream.eof
