"""What a DICOM file says of its film, read tolerantly and held against its content before it is decoded."""

from typing import TYPE_CHECKING

from openmed.errors import BadInput
from openmed.films.dicom.elements import DICM, read_elements
from openmed.films.grey import check_shape
from openmed.films.jpeg import jpeg_frame, jpeg_shape

if TYPE_CHECKING:
    from pydicom import Dataset

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
RLE = "1.2.840.10008.1.2.5"
LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
START_BYTES = 132
"""Of a file that tell whether it is DICOM."""
_LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_COMPRESSED = (RLE, *LOSSY_JPEG, *JPEG_2000, *_LOSSLESS_JPEG, *_JPEG_LS)
_ITEM = b"\xfe\xff\x00\xe0"
_J2K_START, _JP2_START = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
_FRAMES = {0xC0: LOSSY_JPEG, 0xC1: LOSSY_JPEG, 0xC2: LOSSY_JPEG, 0xC3: _LOSSLESS_JPEG, 0xF7: _JPEG_LS}
_KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB")  # and YBR_ of several kinds
_NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_FIRST_GROUPS = (b"\x02\0", b"\x08\0", b"\0\x08")
_FIRST_TYPES = (b"UL", b"OB", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"SQ")
_NEXT_GROUPS = (b"\x02\0", b"\x08\0", b"\x10\0")


def is_dicom(data: bytes) -> bool:
    """Tells by a file's first `START_BYTES` whether it is DICOM, with or without preamble or meta header."""
    if has_preamble(data) or data[:4] == DICM:
        return True
    if data[:2] not in _FIRST_GROUPS:
        return False
    if data[4:6] in _FIRST_TYPES:
        return True
    length = int.from_bytes(data[4:8], "little")  # of implicit VR
    return length < 100 and data[8 + length : 10 + length] in _NEXT_GROUPS


def has_preamble(data: bytes) -> bool:
    """Tells whether content is a DICOM file by its mark."""
    return data[128:132] == DICM


def checked(data: bytes, name: str) -> "Dataset":
    """Reads a DICOM file, refuses by its header what is no film, and decodes nothing.

    Returns:
        The data set; what may be missing is completed, and its transfer syntax is that of its content.

    Raises:
        BadInput: As `openmed.films.dicom.pixels.decode_dicom`.
    """
    from pydicom.uid import UID

    film = read_elements(data, name)
    film.file_meta.TransferSyntaxUID = UID(_syntax(film))
    _check(film, name)
    return film


def _syntax(film: "Dataset") -> str:
    """The transfer syntax by the content, where the stated one is missing or does not fit it."""
    stated = str(film.file_meta.get("TransferSyntaxUID") or "")
    if (stated and stated not in (*NATIVE, *_COMPRESSED)) or "PixelData" not in film:
        return stated
    if stated in NATIVE and not film["PixelData"].is_undefined_length:
        return stated
    content = film.PixelData
    if content[:4] != _ITEM:
        implicit, little = film.original_encoding
        return NATIVE[0] if implicit else NATIVE[1] if little is not False else NATIVE[2]
    family = _family(streams(film)[0])
    return stated if stated in family or not family else family[0]


def _family(stream: bytes) -> tuple[str, ...]:
    """The transfer syntaxes that a codestream can belong to; none for one that is not known."""
    if stream.startswith((_J2K_START, _JP2_START)):
        return JPEG_2000
    if stream.startswith(b"\xff\xd8"):
        frame = jpeg_frame(stream)
        return _FRAMES.get(frame[0], ()) if frame else ()
    return (RLE,) if 0 < int.from_bytes(stream[:4], "little") <= 15 else ()


def streams(film: "Dataset") -> list[bytes]:
    """The codestreams of compressed pixels, one a frame, whatever NumberOfFrames says."""
    from pydicom.encaps import generate_fragments

    _offsets, *fragments = generate_fragments(film.PixelData)
    family = _family(fragments[0]) if fragments else ()
    frames: list[list[bytes]] = []
    for fragment in fragments:
        if not frames or (family and _family(fragment) == family):
            frames.append([])
        frames[-1].append(fragment)
    return [b"".join(frame) for frame in frames] or [b""]


def _check(film: "Dataset", name: str) -> None:
    """Refuses by the header what is no film, before any pixel is decoded; completes what may be missing."""
    syntax = str(film.file_meta.TransferSyntaxUID)
    if "PixelData" not in film:
        raise BadInput(f"{name} is DICOM without an image")
    if missing := [keyword for keyword in _NEEDED if film.get(keyword) is None]:
        raise BadInput(f"{name} is damaged: it has no {missing[0]}")
    if syntax not in (*NATIVE, *_COMPRESSED):
        raise BadInput(f"{name} is DICOM in a transfer syntax that is not read: store it uncompressed")
    if int(film.get("NumberOfFrames") or 1) > 1:
        raise BadInput(f"{name} has several frames; a film has one")
    check_shape((int(film.Rows), int(film.Columns)), name)
    _complete(film)
    if syntax == LOSSY_JPEG[1] and int(film.BitsStored) > 8:
        raise BadInput(f"{name} is a lossy JPEG of more than 8 bits: store it in another transfer syntax")
    if not 8 <= int(film.BitsStored) <= int(film.BitsAllocated) <= 16:
        raise BadInput(f"{name} stores {film.BitsStored} of {film.BitsAllocated} bits; films have 8 to 16")
    if int(film.SamplesPerPixel) not in (1, 3):
        raise BadInput(f"{name} has {film.SamplesPerPixel} values a pixel; films have 1 or 3")
    kind = str(film.PhotometricInterpretation)
    if kind not in _KINDS and not kind.startswith("YBR_"):
        raise BadInput(f"{name} has pixels of an unknown kind; films are grey, RGB, YBR or PALETTE COLOR")
    if syntax in NATIVE:
        _check_length(film, name)
    else:
        _check_stream(film, name)


def _complete(film: "Dataset") -> None:
    """Fills in what carelessly written files leave out and only one value fits."""
    for keyword, value in (("BitsStored", film.BitsAllocated), ("PixelRepresentation", 0)):
        if film.get(keyword) is None:
            setattr(film, keyword, value)
    if film.get("HighBit") is None:
        film.HighBit = film.BitsStored - 1
    if int(film.SamplesPerPixel) > 1 and film.get("PlanarConfiguration") is None:
        film.PlanarConfiguration = 0


def _check_length(film: "Dataset", name: str) -> None:
    """Uncompressed pixels must fit Rows x Columns; less than a row and less than a column may follow."""
    from pydicom.pixels.utils import get_expected_length

    needed, length = get_expected_length(film), len(film.PixelData)
    if length < needed:
        raise BadInput(f"{name} cannot be decoded: it is damaged (it ends too early)")
    frames, rest = divmod(length, needed)
    if frames > 1 and rest <= 1:
        raise BadInput(f"{name} has several frames; a film has one")
    pixel_bytes = int(film.BitsAllocated) // 8 * int(film.SamplesPerPixel)
    if length - needed >= min(int(film.Rows), int(film.Columns)) * pixel_bytes:
        raise BadInput(f"{name} is damaged: its image has another size than its header says")


def _check_stream(film: "Dataset", name: str) -> None:
    """The stream inside must have the size that the header promised: decoders allocate by the stream."""
    frames = streams(film)
    if len(frames) > 1:
        raise BadInput(f"{name} has several frames; a film has one")
    if str(film.file_meta.TransferSyntaxUID) != RLE and _shape(frames[0]) != (film.Rows, film.Columns):
        raise BadInput(f"{name} is damaged: its image has another size than its header says")


def _shape(stream: bytes) -> tuple[int, int] | None:
    start = stream.find(_J2K_START, 0, 1024)
    if start < 0:
        return jpeg_shape(stream)
    width, height, left, top = (int.from_bytes(stream[start + at : start + at + 4]) for at in (8, 12, 16, 20))
    return height - top, width - left
