"""Films that carry an identifier wherever a film can."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageCms, PngImagePlugin
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from openmed.phantoms.phantom import draw
from tests.openmed.films import stored

FILM = draw(1, 1, pneumonia=True, size_px=64).film
PLANTED = [b"DOE^JANE", b"MRN-4711-9", b"Musterstrasse", b"19610203", b"Dr. Planted", b"9.8.7.6.5.4321"]


def dicom(pixels: np.ndarray = FILM, **fields) -> bytes:
    """A film with an identifier in a standard, a nested, a private and an overlay element."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = "9.8.7.6.5.4321"
    film.file_meta.SourceApplicationEntityTitle = "DOE^JANE"
    film.PatientName, film.PatientID, film.PatientBirthDate = "DOE^JANE", "MRN-4711-9", "19610203"
    film.PatientAddress, film.ReferringPhysicianName = "Musterstrasse", "Dr. Planted"
    film.StudyInstanceUID, film.ImageComments = "9.8.7.6.5.4321", "DOE^JANE"
    film.AccessionNumber, film.InstitutionName = "MRN-4711-9", "Musterstrasse"
    nested = Dataset()
    nested.PatientID, nested.IssuerOfPatientID = "MRN-4711-9", "Musterstrasse"
    film.OtherPatientIDsSequence = Sequence([nested])
    block = film.private_block(0x0041, "DOE^JANE", create=True)
    block.add_new(0x01, "LO", "MRN-4711-9")
    film.add_new(0x60000022, "LO", "Dr. Planted")
    film.Modality, film.Rows, film.Columns = "DX", *pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated = film.BitsStored = 8
    film.HighBit, film.PixelRepresentation, film.PixelData = 7, 0, pixels.tobytes()
    for name, value in fields.items():
        setattr(film, name, value)
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def jpeg(orientation: int = 1, pixels: np.ndarray = FILM) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x013B] = orientation, "DOE^JANE", "Dr. Planted"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif, comment=b"MRN-4711-9", quality=90)
    return stream.getvalue() + b"Musterstrasse after the end"


def png(orientation: int = 1, pixels: np.ndarray = FILM) -> bytes:
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x013B] = orientation, "Dr. Planted"
    text.add_text("Patient", "DOE^JANE")
    text.add_itxt("Address", "Musterstrasse", zip=False)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=text, exif=exif)
    return stream.getvalue() + b"MRN-4711-9"


def tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(FILM).save(stream, "TIFF", tiffinfo={270: "DOE^JANE", 315: "Dr. Planted"})
    return stream.getvalue()


NAME = b"DOE^JANE"
_PACKED_BYTES = 1 << 16  # of what may be a compressed part, so that large files are searched in time
_WORDS = ("Modality", "VOILUTFunction", "PresentationLUTShape", "PhotometricInterpretation", "SOPClassUID")
_OTHERS = (
    *("PixelIntensityRelationship", "Manufacturer", "PatientSex", "PatientAge", "ViewPosition", "StudyDate"),
    *("RescaleType", "WindowCenterWidthExplanation", "ImageType", "ConversionType", "PixelPaddingValue"),
    *(
        "RescaleSlope",
        "RescaleIntercept",
        "WindowCenter",
        "WindowWidth",
        "PixelSpacing",
        "SpecificCharacterSet",
    ),
)


def segment(marker: int, body: bytes = NAME) -> bytes:
    """A segment of a JPEG, JPEG-LS or JPEG 2000 stream."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes = NAME) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_element(film: Dataset, keyword: str, value: bytes = NAME) -> bytes:
    """A film with raw bytes as an element's value, whatever its value representation takes."""
    tag = Tag(keyword)
    film[tag] = RawDataElement(tag, "LO", len(value), value, 0, False, True)
    return stored.written(film)


def dicoms() -> Iterator[tuple[str, bytes]]:
    """Uncompressed films with a name in one place each; most can be read, some not."""
    plain, twelve = stored.dataset(FILM), stored.deep(FILM, 12)
    for keyword in (*_WORDS, *_OTHERS):
        yield keyword, with_element(stored.dataset(FILM), keyword)
    yield (
        "YBR_",
        with_element(stored.dataset(np.dstack([FILM] * 3)), "PhotometricInterpretation", b"YBR_DOE^JANE"),
    )
    yield "preamble", NAME.ljust(128, b"\0") + stored.written(plain)[128:]
    yield "behind the pixels", stored.dicom(FILM, PixelData=FILM.tobytes() + NAME)
    yield "trailing padding", with_element(stored.dataset(FILM), "DataSetTrailingPadding")
    yield (
        "behind the data set",
        stored.written(plain) + struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 8) + NAME,
    )
    yield "bare bytes behind the data set", stored.written(plain) + NAME
    palette = dict.fromkeys(
        [f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")]
    )
    palette = {name: [256, 0, 16] for name in palette}
    ramp = (np.arange(256) * 257).astype("<u2").tobytes()
    tables = {name.replace("Descriptor", "Data"): ramp for name in palette}
    grey = dict.fromkeys(tables, NAME)
    yield "palettes of a grey film", stored.dicom(FILM, **palette, **grey)
    unused = np.minimum(FILM, 200)
    named = dict.fromkeys(tables, ramp[:-32] + NAME * 4)
    yield (
        "entries of palettes that no pixel reaches",
        stored.dicom(unused, **palette, **named, PhotometricInterpretation="PALETTE COLOR"),
    )
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        table = Dataset()
        table.LUTDescriptor, table.LUTExplanation = [256, 0, 16], "DOE^JANE"
        table.add_new("LUTData", "OW", ramp[:-32] + NAME * 4)
        yield (
            f"entries of {keyword} that no pixel reaches",
            stored.dicom(unused, **{keyword: Sequence([table] * 2)}),
        )
    letters = np.frombuffer((NAME * 512)[: twelve.size], np.uint8).reshape(twelve.shape).astype(np.uint16)
    yield "bits above the pixels", stored.dicom(twelve | (letters & 15) << 12, BitsStored=12)
    yield "bits below the pixels", stored.dicom(twelve << 4 | letters & 15, BitsStored=12, HighBit=15)
    wide = stored.dataset(FILM.astype(np.uint16), BitsStored=8)
    wide.PixelData = np.dstack([FILM, letters.astype(np.uint8)]).tobytes()
    yield "bytes above the pixels", stored.written(wide)
    icon = stored.dataset(FILM)
    icon.IconImageSequence = Sequence([stored.dataset(FILM, PixelData=NAME * 8)])
    yield "icon", stored.written(icon)
    overlay = stored.dataset(FILM)
    for element, kind, value in (
        (0x10, "US", 8),
        (0x11, "US", 8),
        (0x22, "LO", "DOE^JANE"),
        (0x3000, "OW", NAME),
    ):
        overlay.add_new(Tag(0x6000, element), kind, value)
    yield "overlay", stored.written(overlay)


def compressed_dicoms(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Films in compressed transfer syntaxes with a name inside the stream or beside it."""
    twelve = stored.deep(FILM, 12)
    deep = stored.dicom(twelve, BitsStored=12)
    films = {
        "JPEG": stored.wrapped(stored.pil(FILM, "JPEG", quality=95), FILM, uid.JPEGBaseline8Bit),
        "JPEG lossless": stored.transcoded(deep, uid.JPEGLosslessSV1, folder),
        "JPEG-LS": stored.transcoded(deep, uid.JPEGLSLossless, folder),
        "JPEG 2000": stored.compressed(twelve, uid.JPEG2000Lossless, BitsStored=12),
        "RLE": stored.compressed(twelve, uid.RLELossless, BitsStored=12),
    }
    for kind, content in films.items():
        film = pydicom.dcmread(io.BytesIO(content))
        stream = get_frame(film.PixelData, 0, number_of_frames=1).rstrip(b"\0")
        changed = {"behind the stream": stream + NAME}
        if kind == "JPEG 2000":
            start = 4 + int.from_bytes(stream[4:6])
            changed["comment"] = stream[:start] + segment(0x64, b"\0\1" + NAME) + stream[start:]
        elif kind != "RLE":
            for marker in (0xFE, 0xE1, 0xE8, 0xEF):
                changed[f"segment {marker:x}"] = stream[:2] + segment(marker, NAME * 9) + stream[2:]
        for place, body in changed.items():
            film.PixelData = encapsulate([body])
            yield f"{kind}, {place}", stored.written(film)
        film.PixelData = encapsulate([stream]) + NAME
        yield f"{kind}, behind the fragments", stored.written(film)
        film.PixelData = encapsulate([stream], has_bot=False)[:-8] + encapsulate([NAME], has_bot=False)[8:]
        yield f"{kind}, another fragment", stored.written(film)


def jpegs() -> Iterator[tuple[str, bytes]]:
    plain = stored.pil(FILM, "JPEG", quality=90)
    yield "all at once", jpeg(6)
    for marker in (*range(0xE0, 0xF0), 0xFE):
        yield f"segment {marker:x}", plain[:2] + segment(marker, NAME * 3) + plain[2:]
    for name, marker, body in (
        ("JFIF density", 0xE0, b"JFIF\0\1\1JANE^DOE"[:12] + b"\0\0"),
        ("JFIF thumbnail", 0xE0, b"JFIF\0\1\1\0\0\1\0\1\3\1" + NAME + b"x"),
        ("JFXX", 0xE0, b"JFXX\0\x13" + NAME),
        ("Adobe flags", 0xEE, b"Adobe\0\x64DOE^\0"),
        ("unused quantisation table", 0xDB, b"\3" + NAME * 8),
        ("unused Huffman table", 0xC4, b"\3" + bytes(15) + b"\7" + b"DO^JANE"),
        ("longer restart interval", 0xDD, b"\0\0" + NAME),
    ):
        yield name, plain[:2] + segment(marker, body) + plain[2:]
    yield "hidden table", plain[:2] + segment(0xDB, b"\0" + NAME * 8) + plain[2:]
    yield "behind the last block", plain[:-2] + NAME + plain[-2:]
    yield "between segments", plain[:2] + NAME + plain[2:]
    yield "second image", plain + stored.pil(FILM, "JPEG", comment=NAME)
    yield "second image before the end", plain[:-2] + stored.pil(FILM, "JPEG", comment=NAME)[2:]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + NAME
    yield "colour profile", stored.pil(FILM, "JPEG", icc_profile=profile)


def pngs() -> Iterator[tuple[str, bytes]]:
    plain, packed = stored.pil(FILM, "PNG"), zlib.compress(NAME * 9)
    yield "all at once", png(6)
    for name, kind, body in (
        ("text", b"tEXt", b"Patient\0" + NAME),
        ("compressed text", b"zTXt", b"Patient\0\0" + packed),
        ("compressed international text", b"iTXt", b"Patient\0\1\0\0\0" + packed),
        ("colour profile", b"iCCP", NAME + b"\0\0" + packed),
        ("suggested palette", b"sPLT", NAME + b"\0\x08"),
        ("private chunk", b"doEJ", NAME),
        ("significant bits", b"sBIT", NAME),
        ("transparency", b"tRNS", NAME),
        ("Exif", b"eXIf", b"MM\0*" + NAME),
        ("palette", b"PLTE", NAME + b"x"),
    ):
        yield name, plain[:33] + chunk(kind, body) + plain[33:]
    yield "behind the end", plain + NAME
    yield "in the end", plain[:-12] + chunk(b"IEND")
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in FILM) + NAME * 20)
    yield "behind the last row", plain[:33] + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in FILM)) + NAME
    yield "behind the compressed rows", plain[:33] + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    image = Image.fromarray(np.minimum(FILM, 200)).convert("P")
    image.putpalette(bytes(np.repeat(np.arange(201, dtype=np.uint8), 3)) + NAME * 20)
    yield "colours that no pixel uses", stored.pil(image, "PNG")
    deep = stored.pil(stored.deep(FILM, 12), "PNG")
    yield "16 bits", deep[:33] + chunk(b"tEXt", b"Patient\0" + NAME) + deep[33:] + NAME


def tiffs() -> Iterator[tuple[str, bytes]]:
    yield "all at once", tiff()
    for tag in (269, 270, 271, 272, 285, 305, 306, 315, 316, 33432, 33723, 34675, 65000):
        yield f"tag {tag}", stored.pil(FILM, "TIFF", tiffinfo={tag: "DOE^JANE"})
    yield "behind the end", stored.pil(FILM, "TIFF") + NAME
    yield "compressed", stored.pil(FILM, "TIFF", compression="tiff_deflate", tiffinfo={270: "DOE^JANE"})


def planted_in(content: bytes) -> list[bytes]:
    """The identifiers in a file, in its compressed parts too, in one or two bytes a letter."""
    found = set()
    for layer in _layers(content):
        folded = layer.upper()
        for name in PLANTED:
            plain = name.upper()
            wide = [plain.decode().encode(form) for form in ("utf-16-le", "utf-16-be")]
            if any(form in folded for form in (plain, *wide)):
                found.add(name)
    return [name for name in PLANTED if name in found]


def _layers(content: bytes) -> Iterator[bytes]:
    yield content
    chunks = content.split(b"IDAT")[1:]
    yield b"".join(chunks)
    for start in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b"):
        at = -1
        while (at := content.find(start, at + 1)) >= 0:
            try:
                window = 31 if start == b"\x1f\x8b" else 15
                yield zlib.decompressobj(window).decompress(content[at : at + _PACKED_BYTES], 1 << 20)
            except zlib.error:
                continue
