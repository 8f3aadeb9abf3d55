"""What a TIFF film holds beside what Pillow checks: libtiff hides what the libraries below it warn of."""

import zlib
from collections.abc import Mapping
from typing import Any

from openmed.errors import BadInput
from openmed.films.jpeg import jpeg_grey

_COMPRESSION, _JPEG, _DEFLATE, _JPEG_TABLES = 259, 7, (8, 32946), 347
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and lengths
_CHUNK_BYTES = 1 << 20


def check_parts(data: bytes, tags: Mapping[int, Any], name: str) -> None:
    """Decodes the JPEG and deflate streams of a TIFF's strips or tiles, which must be whole.

    Args:
        data: Content of the file.
        tags: Its tags.
        name: What to call it in an error.

    Raises:
        BadInput: One of them is cut or damaged.
    """
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
    try:
        while part and not stream.eof:
            stream.decompress(part, _CHUNK_BYTES)
            part = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof
