"""Entries of a zip archive, unpacked piece by piece."""

import bz2
import copy
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO

# What zipfile and its decompressors raise on damaged archives (RuntimeError: an unknown method).
ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, RuntimeError),
)
_PACKED_BYTES = 1 << 16
_LEAST_DICTIONARY_BYTES, _MOST_DICTIONARY_BYTES = 1 << 12, 64 << 20


def open_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> "ByteStream":
    """Opens an entry for reading; a read never unpacks more than it is asked for.

    OSError or one of `ARCHIVE_ERRORS`, also while reading, where it is not what its record says.
    """
    return _Unpacker(archive, entry) if entry.compress_type in _DECOMPRESSORS else archive.open(entry)


class _Unpacker(AbstractContextManager):
    """Unpacks as much as is asked for. zipfile unpacks all that it has read, gigabytes of some kilobytes."""

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
        as_stored = copy.copy(entry)
        as_stored.compress_type, as_stored.file_size = zipfile.ZIP_STORED, entry.compress_size
        del as_stored.CRC  # that of the unpacked content
        self._entry, self._packed = entry, archive.open(as_stored)
        self._left, self._checksum = entry.file_size, 0
        self._decompressor = _DECOMPRESSORS[entry.compress_type](self._packed)

    def read(self, most_bytes: int) -> bytes:
        """Returns at most so many bytes, none at the end of the content."""
        content = b""
        while self._left and not content:
            packed = self._packed.read(_PACKED_BYTES) if self._decompressor.needs_input else b""
            if self._decompressor.eof or (self._decompressor.needs_input and not packed):
                raise EOFError("it ends too early")
            content = self._decompressor.decompress(packed, min(most_bytes, self._left))
        self._left -= len(content)
        self._checksum = zlib.crc32(content, self._checksum)
        if not self._left and self._checksum != self._entry.CRC:
            raise zipfile.BadZipFile("Bad CRC-32")
        return content

    def __exit__(self, *_error: object) -> None:
        self._packed.close()


ByteStream = IO[bytes] | _Unpacker
"""What gives a film's bytes piece by piece, as a context."""


class _Inflater:
    """zlib with the methods of the other decompressors."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflater.unconsumed_tail

    def decompress(self, packed: bytes, most_bytes: int) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + packed, most_bytes)


def _lzma_decompressor(packed: IO[bytes]) -> lzma.LZMADecompressor:
    """Reads the properties before an LZMA stream in a zip (APPNOTE 5.8.8): their size, then five bytes."""
    head = packed.read(9)
    code, dictionary_bytes = struct.unpack_from("<BI", head, 4)
    if head[2:4] != b"\5\0" or code >= 9 * 5 * 5 or dictionary_bytes > _MOST_DICTIONARY_BYTES:
        raise zipfile.BadZipFile("Bad LZMA properties")
    filters = {"id": lzma.FILTER_LZMA1, "lc": code % 9, "lp": code // 9 % 5, "pb": code // 45}
    filters["dict_size"] = max(_LEAST_DICTIONARY_BYTES, dictionary_bytes)
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[filters])


_DECOMPRESSORS: dict[int, Callable[[IO[bytes]], _Inflater | bz2.BZ2Decompressor | lzma.LZMADecompressor]] = {
    zipfile.ZIP_DEFLATED: lambda packed: _Inflater(),
    zipfile.ZIP_BZIP2: lambda packed: bz2.BZ2Decompressor(),
    zipfile.ZIP_LZMA: _lzma_decompressor,
}
