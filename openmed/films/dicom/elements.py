"""The elements of a DICOM file, read within a budget: pydicom alone believes whatever a file says."""

import io
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_READS = 120_000
_MOST_ELEMENT_BYTES = 1 << 20
_MOST_META_BYTES = 1 << 16
_PREAMBLE_BYTES, DICM = 128, b"DICM"
_META, _IMAGE, _PIXELS = 0x0002, 0x0028, 0x7FE0


class _CountedStream(io.BytesIO):
    """Ends a file of endless tiny elements, each of which takes a read of its own and 500 bytes of memory."""

    def __init__(self, data: bytes, film: str) -> None:
        super().__init__(data)
        self._film, self._reads = film, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise BadInput(f"{self._film} is damaged: it has too many elements")
        return super().read(size)


def read_elements(data: bytes, name: str = "the film", **options: Any) -> "Dataset":
    """Reads a DICOM file as `pydicom.dcmread` does, also one without preamble or file meta information.

    Elements beside the image that are longer than 1 MiB are left out. `options` are those of `dcmread`.

    Raises:
        BadInput: It is deflated (a megabyte can hold gigabytes), has too many elements, or one that
            describes the image is far too long.
        Exception: Whatever pydicom raises on damaged content.
    """
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset

    data = data.removeprefix(DICM)
    if _transfer_syntax(data, name) == _DEFLATED:
        raise BadInput(f"{name} is a deflated DICOM file: store it in another transfer syntax")
    film = dcmread(_CountedStream(data, name), force=True, **options)
    if not hasattr(film, "file_meta"):
        film.file_meta = FileMetaDataset()
    for tag in list(film.keys()):
        # Elements are turned into values, a hundred times their size, when they are asked for.
        if tag.group < _PIXELS and (getattr(film.get_item(tag), "length", 0) or 0) > _MOST_ELEMENT_BYTES:
            if tag.group == _IMAGE:
                raise BadInput(f"{name} is damaged: an element that describes its image is far too long")
            del film[tag]
    return film


def _transfer_syntax(data: bytes, name: str) -> str:
    """Returns what pydicom will take for the transfer syntax, empty for none, before it acts upon it."""
    from pydicom.filereader import read_dataset

    stream = _CountedStream(data, name)
    if data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + len(DICM)] == DICM:
        stream.seek(_PREAMBLE_BYTES + len(DICM))
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != _META)
    for tag in meta.keys():  # noqa: SIM118, iterating over a dataset makes elements of them
        if (getattr(meta.get_item(tag), "length", 0) or 0) > _MOST_META_BYTES and tag.elem <= 0x0010:
            raise BadInput(f"{name} is damaged: its file header is far too long")
    try:
        return str(meta.get("TransferSyntaxUID") or "")
    except NotImplementedError:  # pydicom would read it anew as if it had no types
        raise BadInput(f"{name} is damaged: its file header has elements of an unknown type") from None
