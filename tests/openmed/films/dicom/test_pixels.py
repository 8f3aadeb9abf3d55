"""One film, stored in every way a hospital stores films, comes out as the same pixels."""

import struct
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

from openmed.errors import BadInput
from openmed.films.images import decode_film, decode_squares, decode_with_depth
from tests.openmed.films.stored import (
    compressed,
    dataset,
    deep,
    dicom,
    phantom,
    pil,
    transcoded,
    wrapped,
    written,
)

FILM = phantom()
COLOUR = np.dstack([FILM] * 3)
LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless)
TURNS = {
    1: FILM,
    2: FILM[:, ::-1],
    3: FILM[::-1, ::-1],
    4: FILM[::-1],
    5: FILM.T,
    6: np.rot90(FILM),
    7: FILM[::-1, ::-1].T,
    8: np.rot90(FILM, -1),
}


def off(content: bytes) -> int:
    """How many grey levels the worst pixel is off."""
    film, _ = decode_with_depth(content, "the film")
    assert film.dtype == np.uint8 and film.shape == FILM.shape
    return int(np.abs(film.astype(int) - FILM).max())


def table(entries, first=0, bits=16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item


def with_palette(**elements) -> bytes:
    film = dataset(255 - FILM, PhotometricInterpretation="PALETTE COLOR", **elements)
    for colour in ("Red", "Green", "Blue"):
        setattr(film, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        entries = (np.arange(255, -1, -1, dtype="<u2") * 257).tobytes()
        setattr(film, f"{colour}PaletteColorLookupTableData", entries)
    return written(film)


def big_endian(pixels, **elements) -> bytes:
    film = dataset(pixels, **elements)
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    film["PixelData"].value = pixels.byteswap().tobytes() if pixels.itemsize == 2 else pixels.tobytes()
    return written(film)


def implicit(pixels, **elements) -> bytes:
    film = dataset(pixels, **elements)
    film.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    return written(film)


def white_is_zero(tiff: bytes) -> bytes:
    tag = struct.pack("<HHI", 262, 3, 1)
    assert tiff.count(tag + b"\1") == 1
    return tiff.replace(tag + b"\1", tag + b"\0")


def cmyk() -> Image.Image:
    return Image.fromarray(COLOUR).convert("CMYK")


PALETTE_IMAGE = Image.fromarray(FILM).convert("P")
PLAIN = {
    "PNG of 8 bits": lambda: pil(FILM, "PNG"),
    "PNG of 12 bits in 16": lambda: pil(deep(FILM, 12), "PNG"),
    "PNG of 16 bits": lambda: pil(deep(FILM, 16), "PNG"),
    "PNG with a palette": lambda: pil(PALETTE_IMAGE, "PNG"),
    "PNG in RGB": lambda: pil(COLOUR, "PNG"),
    "PNG in RGB of 16 bits": lambda: cv2.imencode(".png", deep(COLOUR, 16))[1].tobytes(),
    "PNG in RGBA": lambda: pil(np.dstack([COLOUR, FILM // 2]), "PNG"),
    "PNG of grey and alpha": lambda: pil(np.dstack([FILM, FILM // 2]), "PNG"),
    "interlaced PNG of 16 bits": lambda: pil(deep(FILM, 16), "PNG", optimize=True),
    "TIFF of 8 bits": lambda: pil(FILM, "TIFF"),
    "TIFF of 12 bits in 16": lambda: pil(deep(FILM, 12), "TIFF"),
    "TIFF of 16 bits": lambda: pil(deep(FILM, 16), "TIFF"),
    "TIFF of 16 bits, big endian": lambda: pil(Image.fromarray(deep(FILM, 16).astype(">u2")), "TIFF"),
    "TIFF of 16 bits, LZW": lambda: pil(deep(FILM, 16), "TIFF", compression="tiff_lzw"),
    "TIFF of 8 bits, LZW": lambda: pil(FILM, "TIFF", compression="tiff_lzw"),
    "TIFF of 8 bits, deflated": lambda: pil(FILM, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF of 8 bits, packbits": lambda: pil(FILM, "TIFF", compression="packbits"),
    "TIFF with a palette": lambda: pil(PALETTE_IMAGE, "TIFF"),
    "TIFF in RGB": lambda: pil(COLOUR, "TIFF"),
    "TIFF in RGBA": lambda: pil(np.dstack([COLOUR, FILM // 2]), "TIFF"),
    "TIFF, white is zero": lambda: white_is_zero(pil(255 - FILM, "TIFF")),
    "TIFF of 16 bits, white is zero": lambda: white_is_zero(pil(65535 - deep(FILM, 16), "TIFF")),
    "BigTIFF": lambda: pil(FILM, "TIFF", big_tiff=True),
}
LOSSY = {  # with the grey levels that the worst pixel may be off
    "JPEG": (lambda: pil(FILM, "JPEG", quality=95), 8),
    "progressive JPEG": (lambda: pil(FILM, "JPEG", quality=95, progressive=True), 8),
    "JPEG in RGB": (lambda: pil(COLOUR, "JPEG", quality=95), 8),
    "JPEG in CMYK": (lambda: pil(cmyk(), "JPEG", quality=95), 8),
    "TIFF in CMYK": (lambda: pil(cmyk(), "TIFF"), 1),
    "TIFF of JPEG": (lambda: pil(FILM, "TIFF", compression="jpeg", quality=95), 8),
}
NATIVE = {
    "8 bits": lambda: dicom(FILM),
    "MONOCHROME1": lambda: dicom(255 - FILM, PhotometricInterpretation="MONOCHROME1"),
    "MONOCHROME1 of 12 bits": lambda: dicom(
        4095 - deep(FILM, 12), BitsStored=12, PhotometricInterpretation="MONOCHROME1"
    ),
    "10 bits": lambda: dicom(deep(FILM, 10), BitsStored=10),
    "12 bits": lambda: dicom(deep(FILM, 12), BitsStored=12),
    "14 bits": lambda: dicom(deep(FILM, 14), BitsStored=14),
    "16 bits": lambda: dicom(deep(FILM, 16)),
    "12 bits at the top of 16": lambda: dicom(deep(FILM, 12) << 4, BitsStored=12, HighBit=15),
    "12 bits with an old overlay above": lambda: dicom(deep(FILM, 12) | 0x8000, BitsStored=12),
    "signed 16 bits": lambda: dicom((deep(FILM, 16).astype(int) - 32768).astype(np.int16)),
    "signed 12 bits": lambda: dicom((deep(FILM, 12).astype(int) - 2048).astype(np.int16), BitsStored=12),
    "RGB": lambda: dicom(COLOUR),
    "RGB by plane": lambda: dicom(
        COLOUR, PlanarConfiguration=1, PixelData=np.moveaxis(COLOUR, 2, 0).tobytes()
    ),
    "YBR_FULL": lambda: dicom(
        convert_color_space(COLOUR, "RGB", "YBR_FULL"), PhotometricInterpretation="YBR_FULL"
    ),
    "PALETTE COLOR": with_palette,
    "implicit VR": lambda: implicit(deep(FILM, 12), BitsStored=12),
    "big endian": lambda: big_endian(deep(FILM, 12), BitsStored=12),
    "big endian of 8 bits": lambda: big_endian(FILM),
    "a preamble and a private element": lambda: written(_with_private(dataset(FILM))),
}
TABLES = {
    "rescaled": lambda: dicom(deep(FILM, 12), BitsStored=12, RescaleSlope=2, RescaleIntercept=-1024),
    "slope alone": lambda: dicom(deep(FILM, 12), BitsStored=12, RescaleSlope=2),
    "negative slope": lambda: dicom(255 - FILM, RescaleSlope=-1, RescaleIntercept=255),
    "negative slope and window": lambda: dicom(
        255 - FILM,
        RescaleSlope=-1,
        RescaleIntercept=255,
        WindowCenter=127.5,
        WindowWidth=255,
        VOILUTFunction="LINEAR_EXACT",
    ),
    "LINEAR window": lambda: dicom(deep(FILM, 10) + 500, BitsStored=12, WindowCenter=1012, WindowWidth=1024),
    "LINEAR_EXACT window": lambda: dicom(
        deep(FILM, 10) + 500,
        BitsStored=12,
        WindowCenter=1011.5,
        WindowWidth=1023,
        VOILUTFunction="LINEAR_EXACT",
    ),
    "the first of two windows": lambda: dicom(
        deep(FILM, 10) + 500, BitsStored=12, WindowCenter=[1012, 9], WindowWidth=[1024, 3]
    ),
    "window after rescaling": lambda: dicom(
        deep(FILM, 12),
        BitsStored=12,
        RescaleSlope=2,
        RescaleIntercept=-1024,
        WindowCenter=3071.5,
        WindowWidth=8190,
        VOILUTFunction="LINEAR_EXACT",
    ),
    "SIGMOID window": lambda: dicom(
        _under_sigmoid(), WindowCenter=32768, WindowWidth=20000, VOILUTFunction="SIGMOID"
    ),
    "modality table": lambda: dicom(255 - FILM, ModalityLUTSequence=[table(np.arange(255, -1, -1) * 257)]),
    "table of interest": lambda: dicom(255 - FILM, VOILUTSequence=[table(np.arange(255, -1, -1) * 257)]),
    "table of interest of 8 bits over 12": lambda: dicom(
        deep(FILM, 12), BitsStored=12, VOILUTSequence=[table(np.rint(np.arange(4096) / 4095 * 255), bits=8)]
    ),
    "table of interest with an offset": lambda: dicom(
        deep(FILM, 8) + 300, BitsStored=12, VOILUTSequence=[table(np.arange(256) * 257, first=300)]
    ),
    "table of interest before a window": lambda: dicom(
        255 - FILM, VOILUTSequence=[table(np.arange(255, -1, -1) * 257)], WindowCenter=3, WindowWidth=2
    ),
    "table of interest, implicit VR": lambda: implicit(
        255 - FILM, VOILUTSequence=[table(np.arange(255, -1, -1) * 257)]
    ),
    "table of interest, big endian": lambda: big_endian(
        255 - FILM, VOILUTSequence=[table(np.arange(255, -1, -1) * 257)]
    ),
}
LEFT_OUT = {
    "no rescaling, empty window": lambda: dicom(FILM, WindowCenter="", WindowWidth=""),
    "center without a width": lambda: dicom(FILM, WindowCenter=40),
    "empty slope": lambda: dicom(FILM, RescaleSlope="", RescaleIntercept=""),
    "no HighBit": lambda: dicom(deep(FILM, 12), BitsStored=12, HighBit=None),
    "no BitsStored": lambda: _without_bits(),
    "no PixelRepresentation": lambda: dicom(FILM, PixelRepresentation=None),
    "no PlanarConfiguration": lambda: dicom(COLOUR, PlanarConfiguration=None),
    "empty NumberOfFrames": lambda: dicom(FILM, NumberOfFrames=""),
    "one frame": lambda: dicom(FILM, NumberOfFrames=1),
    "no class or instance": lambda: dicom(FILM, SOPClassUID=None, SOPInstanceUID=None),
    "empty sequence of tables": lambda: dicom(FILM, VOILUTSequence=[], ModalityLUTSequence=[]),
}


def _with_private(film: Dataset) -> Dataset:
    film.preamble = b"any text".ljust(128, b"\1")
    film.private_block(0x41, "SOMEBODY", create=True).add_new(1, "LO", "text")
    return film


def _without_bits() -> bytes:
    film = dataset(deep(FILM, 16))
    del film.BitsStored, film.HighBit
    return written(film)


def _under_sigmoid() -> np.ndarray:
    """What a sigmoid window of center 32768 and width 20000 turns into the film."""
    share = FILM.clip(1, 254) / 255
    return np.rint(32768 + 20000 / 4 * np.log(share / (1 - share))).clip(0, 65535).astype(np.uint16)


@pytest.mark.parametrize("kind", PLAIN)
def test_png_and_tiff_give_the_same_pixels(kind):
    assert off(PLAIN[kind]()) == 0


@pytest.mark.parametrize("kind", LOSSY)
def test_jpeg_and_cmyk_give_nearly_the_same_pixels(kind):
    make, tolerance = LOSSY[kind]
    assert off(make()) <= tolerance


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("TIFF", 0), ("JPEG", 8)])
def test_every_recorded_orientation_is_applied(kind, tolerance, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = pil(
        np.ascontiguousarray(TURNS[orientation]), kind, exif=exif, **{"quality": 95} if tolerance else {}
    )
    assert off(content) <= tolerance
    assert (
        np.abs(decode_squares(content, [16])[0].astype(int) - decode_squares(pil(FILM, "PNG"), [16])[0]).max()
        <= 6
    )


@pytest.mark.parametrize("kind", NATIVE)
def test_uncompressed_dicom_gives_the_same_pixels(kind):
    assert off(NATIVE[kind]()) <= (1 if kind == "YBR_FULL" else 0)


@pytest.mark.parametrize("kind", TABLES)
def test_tables_and_windows_give_the_same_pixels(kind):
    assert off(TABLES[kind]()) <= (1 if kind == "SIGMOID window" else 0)


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_may_be_left_out_is_not_missed(kind):
    assert off(LEFT_OUT[kind]()) == 0


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_lossless_syntaxes_give_the_same_pixels(tmp_path, syntax, bits):
    pixels = FILM if bits == 8 else deep(FILM, bits)
    assert off(transcoded(dicom(pixels, BitsStored=bits), syntax, tmp_path)) == 0


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_another_encoder_gives_the_same_pixels(syntax):
    assert off(compressed(deep(FILM, 12), syntax, BitsStored=12)) == 0
    assert off(compressed(FILM, syntax)) == 0
    assert off(compressed(255 - FILM, syntax, PhotometricInterpretation="MONOCHROME1")) == 0
    assert off(compressed((deep(FILM, 12).astype(int) - 2048).astype(np.int16), syntax, BitsStored=12)) == 0


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless])
def test_signed_pixels_survive_compression(tmp_path, syntax):
    signed = (deep(FILM, 16).astype(int) - 32768).astype(np.int16)
    assert off(transcoded(dicom(signed), syntax, tmp_path)) == 0


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_colour_survives_compression(tmp_path, syntax):
    assert off(transcoded(dicom(COLOUR), syntax, tmp_path)) == 0


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 2), (12, 1), (16, 0)])
def test_near_lossless_jpeg_ls_is_off_by_what_its_encoder_was_allowed(tmp_path, bits, tolerance):
    pixels = FILM if bits == 8 else deep(FILM, bits)
    assert (
        off(transcoded(dicom(pixels, BitsStored=bits), uid.JPEGLSNearLossless, tmp_path, near=2)) <= tolerance
    )


def test_lossy_jpeg_in_dicom_gives_nearly_the_same_pixels(tmp_path):
    assert off(transcoded(dicom(FILM), uid.JPEGBaseline8Bit, tmp_path)) <= 2
    assert off(transcoded(dicom(FILM), uid.JPEGExtended12Bit, tmp_path)) <= 2
    assert off(wrapped(pil(FILM, "JPEG", quality=95), FILM, uid.JPEGBaseline8Bit)) <= 8
    colour = wrapped(
        pil(COLOUR, "JPEG", quality=95),
        COLOUR,
        uid.JPEGBaseline8Bit,
        PhotometricInterpretation="YBR_FULL_422",
    )
    assert off(colour) <= 8


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossy_jpeg_2000_gives_nearly_the_same_pixels(bits):
    pixels = FILM if bits == 8 else deep(FILM, bits)
    assert off(compressed(pixels, uid.JPEG2000, BitsStored=bits, encoder={"j2k_psnr": [48]})) <= 4


def test_jpeg_2000_from_a_third_encoder_gives_the_same_pixels():
    stream = pil(FILM, "JPEG2000", irreversible=False, no_jp2=True)
    assert off(wrapped(stream, FILM, uid.JPEG2000Lossless)) == 0
    jp2 = pil(FILM, "JPEG2000", irreversible=False)
    assert off(wrapped(jp2, FILM, uid.JPEG2000Lossless)) == 0


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(1500, 900), (-200, 3000), (2000, 577.5)])
def test_windows_are_those_of_pydicom(function, center, width):
    film = dataset(deep(FILM, 12), BitsStored=12, RescaleSlope=1.5, RescaleIntercept=-700)
    film.WindowCenter, film.WindowWidth, film.VOILUTFunction = center, width, function
    values = apply_voi_lut(apply_modality_lut(deep(FILM, 12), film), film)
    low, high = -700, 4095 * 1.5 - 700
    np.testing.assert_allclose(decode_film(written(film)), (values - low) / (high - low) * 255, atol=0.51)


def test_the_stored_bits_are_told():
    assert [decode_with_depth(dicom(deep(FILM, bits), BitsStored=bits))[1] for bits in (10, 16)] == [10, 16]
    assert decode_with_depth(dicom(FILM))[1] == 8


def refused(content: bytes) -> str:
    with pytest.raises(BadInput) as refusal:
        decode_film(content, "x")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (dicom(FILM, NumberOfFrames=2, PixelData=FILM.tobytes() * 2), "has several frames; a film has one"),
        (dicom(FILM, PixelData=None), "is DICOM without an image"),
        (dicom(FILM, Rows=None), "is damaged: it has no Rows"),
        (dicom(FILM, PhotometricInterpretation=None), "is damaged: it has no PhotometricInterpretation"),
        (dicom(FILM, PhotometricInterpretation="HSV"), "has pixels of an unknown kind"),
        (dicom(FILM, SamplesPerPixel=4), "has 4 values a pixel; films have 1 or 3"),
        (dicom(FILM.astype(np.uint32)), "stores 32 of 32 bits; films have 8 to 16"),
        (dicom(FILM, BitsStored=7), "stores 7 of 8 bits"),
        (dicom(FILM, Rows=60_000, Columns=60_000), "claims 3600000000 pixels; a film has at most"),
        (dicom(FILM[:8]), "is 64 x 8 pixels; a film has at least 16 a side"),
        (dicom(FILM, PixelData=FILM.tobytes()[:-100]), "cannot be decoded: it is damaged"),
        (dicom(FILM, WindowCenter=1, WindowWidth=9, VOILUTFunction="CUBIC"), "a window of an unknown kind"),
        (wrapped(b"no stream", FILM, uid.MPEG2MPML), "in a transfer syntax that is not read"),
        (wrapped(pil(FILM[:32], "JPEG"), FILM, uid.JPEGBaseline8Bit), "its image has another size"),
        (wrapped(pil(FILM[:32], "JPEG2000"), FILM, uid.JPEG2000), "its image has another size"),
    ],
)  # fmt: skip
def test_what_is_no_film_is_refused_in_one_sentence(content, sentence):
    assert sentence in refused(content)


def test_lossy_jpeg_of_twelve_bits_is_refused(tmp_path):
    content = transcoded(dicom(deep(FILM, 12), BitsStored=12), uid.JPEGExtended12Bit, tmp_path)
    assert "is a lossy JPEG of more than 8 bits" in refused(content)


def test_deflated_dicom_is_refused():
    film = dataset(FILM)
    film.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    assert "is a deflated DICOM file" in refused(written(film))


def test_dicom_that_holds_something_else_is_refused():
    report = dataset(FILM, PixelData=None, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    document = dataset(
        FILM,
        PixelData=None,
        EncapsulatedDocument=b"%PDF-1.4",
        MIMETypeOfEncapsulatedDocument="application/pdf",
    )
    folder = dataset(FILM, PixelData=None, DirectoryRecordSequence=[Dataset()])
    folder.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    for content in (report, document, folder):
        assert refused(written(content)) == "x is DICOM without an image"


def test_reading_leaves_no_warning_and_no_filter_behind(recwarn):
    content = dicom(FILM, PatientAge="no age at all", RescaleSlope=1)
    recwarn.clear()
    before = list(warnings.filters)
    decode_film(content)
    assert not recwarn.list and warnings.filters == before
