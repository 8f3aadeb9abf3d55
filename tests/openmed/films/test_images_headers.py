"""Headers that contradict the pixels or the codestream: the film comes out as if they were right."""

import io

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame

from openmed.errors import BadInput
from openmed.films.dicom.header import is_dicom
from openmed.films.grey import depth
from openmed.films.images import decode_film, decode_with_depth
from tests.conftest import ROOT
from tests.openmed.films.dicom.test_pixels import table
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

FILM = phantom(128)
COLOUR = np.dstack([FILM] * 3)
GREY_IN_YBR = np.dstack([FILM, np.full_like(FILM, 128), np.full_like(FILM, 128)])
TWELVE = deep(FILM, 12)


def off(content: bytes, wanted: np.ndarray = FILM) -> int:
    film = decode_film(content, "the film")
    assert film.shape == wanted.shape
    return int(np.abs(film.astype(int) - wanted).max())


def refused(content: bytes) -> str:
    with pytest.raises(BadInput) as refusal:
        decode_film(content, "x")
    return str(refusal.value)


def marked(pixels: np.ndarray, value: int, side: int = 12) -> np.ndarray:
    """A film with a burned-in square near a corner."""
    pixels = pixels.copy()
    pixels[4 : 4 + side, 4 : 4 + side] = value
    return pixels


def kept_as(pixels: np.ndarray, kind: str) -> bytes:
    return dicom(pixels, BitsStored=16) if kind == "DICOM" else pil(pixels, kind)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "DICOM"])
def test_fewer_bits_than_declared_fill_the_grey_scale(kind, bits):
    assert off(kept_as(deep(FILM, bits), kind)) == 0


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "DICOM"])
def test_a_saturated_marker_changes_nothing_but_its_own_pixels(kind, bits):
    content = kept_as(marked(deep(FILM, bits), 65_535), kind)
    assert off(content, marked(FILM, 255)) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "DICOM"])
def test_the_same_values_are_the_same_film_in_every_format(kind):
    values = np.random.default_rng(0).integers(300, 30_000, (64, 64)).astype(np.uint16)
    np.testing.assert_array_equal(decode_film(kept_as(values, kind)), np.rint(values / 32_767 * 255))


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        (np.arange(4096), 12),
        (np.append(np.arange(4096), 65_535), 12),
        (np.append(np.repeat(np.arange(4096), 9), [20_000, 65_535, 65_535]), 12),
        (np.append(np.arange(4096), [16_383] * 4096), 12),  # all of one value: a border that was filled up
        (np.append(np.arange(4096), np.arange(16_000, 16_384)), 14),  # too many to be a marker
        (np.append(np.arange(4096), 8191), 13),  # one bit more is no contradiction
        (np.full(9, 900), 10),
        (np.zeros(9, int), 8),
    ],
)
def test_a_few_saturated_values_do_not_count_for_the_depth(values, bits):
    assert depth(values.astype(np.uint16)) == bits


def test_a_marker_with_soft_edges_counts_as_a_marker():
    soft = cv2.resize(marked(deep(phantom(256), 12), 65_535, 20), (192, 192), interpolation=cv2.INTER_LINEAR)
    assert depth(soft) == 12


def test_signed_values_of_fewer_bits_fill_the_grey_scale():
    signed = (TWELVE.astype(int) - 2048).astype(np.int16)
    assert off(dicom(signed)) == 0
    assert off(dicom(TWELVE.astype(np.int16))) == 0


def test_more_bits_than_declared_are_kept_and_told():
    content = dicom(TWELVE, BitsStored=10)
    assert off(content) == 0
    assert decode_with_depth(content)[1] == 12
    # Bits above that belong to no value still go, as pydicom's own handling of unused bits takes them.
    overlay = (np.random.default_rng(0).random(FILM.shape) < 0.1).astype(np.uint16) << 12
    assert off(dicom(TWELVE | overlay, BitsStored=12)) == 0


def test_jpeg_2000_tells_its_own_depth():
    film = pydicom.dcmread(io.BytesIO(compressed(deep(FILM, 14), uid.JPEG2000Lossless, BitsStored=14)))
    film.BitsStored, film.HighBit = 16, 15
    assert off(written(film)) == 0


@pytest.mark.parametrize(("entries", "declared"), [(12, 16), (10, 16), (10, 12), (8, 16), (16, 8), (16, 12)])
def test_a_table_of_interest_has_the_depth_of_its_entries(entries, declared):
    ramp = np.rint(np.arange(4096) * ((2**entries - 1) / 4095))
    assert off(dicom(TWELVE, BitsStored=12, VOILUTSequence=[table(ramp, bits=declared)])) <= 1


def test_a_table_of_two_entries_a_word_is_unpacked():
    ramp = np.arange(256, dtype=np.uint8)
    item = table(ramp.view("<u2"), bits=8)
    item.LUTDescriptor = [256, 0, 8]
    assert off(dicom(FILM, VOILUTSequence=[item])) == 0


def test_a_table_that_begins_below_zero_may_say_so_without_a_sign():
    item = table(np.arange(4096), bits=12)
    item.LUTDescriptor = [4096, 65_536 - 2048, 12]
    signed = (TWELVE.astype(int) - 2048).astype(np.int16)
    assert off(dicom(signed, BitsStored=12, VOILUTSequence=[item])) == 0


@pytest.mark.parametrize(
    ("center", "width"),
    [(0, 1), (1, 0), (0, -5), (100, 0.5), (127.5, 1), (128, 2), (2048, 4096), (32_768, 65_536), (-5000, 10)],
)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
def test_a_window_that_shows_nothing_of_the_film_is_none(function, center, width):
    content = dicom(FILM, WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    assert off(content) == 0


def test_a_window_narrower_than_one_fits_values_below_one():
    content = dicom(TWELVE, BitsStored=12, RescaleSlope=1 / 4095, WindowCenter=0.5, WindowWidth=0.5)
    expected = np.rint(((TWELVE / 4095 - 0.25) / 0.5 * 255).clip(0, 255))
    assert off(content, expected) <= 1


def test_a_blank_film_stays_blank_whatever_its_window():
    assert np.ptp(decode_film(dicom(np.full_like(FILM, 90), WindowCenter=90, WindowWidth=8))) == 0


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_frames_that_are_not_announced_are_refused(frames):
    assert refused(dicom(FILM, PixelData=FILM.tobytes() * frames)) == "x has several frames; a film has one"


@pytest.mark.parametrize(
    "syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless, uid.JPEGLSLossless]
)
def test_compressed_frames_that_are_not_announced_are_refused(tmp_path, syntax):
    film = pydicom.dcmread(io.BytesIO(transcoded(dicom(FILM), syntax, tmp_path)))
    stream = get_frame(film.PixelData, 0, number_of_frames=1)
    film.PixelData = encapsulate([stream])
    film["PixelData"].is_undefined_length = True
    assert off(written(film)) <= 2
    film.PixelData = encapsulate([stream, stream])
    assert refused(written(film)) == "x has several frames; a film has one"


def test_a_film_in_several_fragments_is_one_film():
    from pydicom.encaps import encapsulate

    film = pydicom.dcmread(io.BytesIO(compressed(TWELVE, uid.JPEG2000Lossless, BitsStored=12)))
    stream = get_frame(film.PixelData, 0, number_of_frames=1)
    film.PixelData = encapsulate([stream], fragments_per_frame=4)
    assert off(written(film)) == 0


@pytest.mark.parametrize(
    "change", [{"Rows": 64}, {"Columns": 127}, {"Rows": 100, "Columns": 128}, {"SamplesPerPixel": 3}]
)
def test_pixels_that_do_not_fit_rows_and_columns_are_refused(change):
    said = refused(dicom(FILM, **change))
    assert "another size" in said or "several frames" in said or "ends too early" in said


def test_a_few_bytes_after_the_pixels_are_no_damage():
    assert off(dicom(FILM, PixelData=FILM.tobytes() + b"\0" * 20)) == 0


COLOURS = {
    "YBR labelled RGB": lambda: dicom(GREY_IN_YBR),
    "YBR labelled RGB, RLE": lambda: compressed(GREY_IN_YBR, uid.RLELossless),
    "RGB labelled YBR": lambda: dicom(COLOUR, PhotometricInterpretation="YBR_FULL"),
    "JPEG 2000 of RGB labelled YBR": lambda: _relabelled(),
    "16 bits labelled RGB": lambda: dicom(deep(GREY_IN_YBR, 16)),
}


def _relabelled() -> bytes:
    film = dataset(COLOUR)
    film.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    film.PhotometricInterpretation = "YBR_FULL"
    return written(film)


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_those_that_the_planes_hold(kind):
    assert off(COLOURS[kind]()) <= 1


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"subsampling": 0}])
def test_a_jpeg_in_colour_is_what_its_codec_says(options, label):
    stream = pil(COLOUR, "JPEG", quality=95, **options)
    content = wrapped(stream, COLOUR, uid.JPEGBaseline8Bit, PhotometricInterpretation=label)
    np.testing.assert_array_equal(decode_film(content), decode_film(stream))
    assert off(content) <= 8


def test_a_tinted_film_keeps_its_luma():
    tinted = np.rint(COLOUR * [0.8, 0.9, 1.0]).astype(np.uint8)
    expected = cv2.cvtColor(tinted, cv2.COLOR_RGB2GRAY)
    assert off(dicom(tinted), expected) == 0


@pytest.mark.parametrize("stored", [FILM, 255 - FILM], ids=["positive", "negative"])
@pytest.mark.parametrize(("kind", "shape"), [("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")])
def test_where_polarity_is_contradictory_the_film_decides(kind, shape, stored):
    assert off(dicom(stored, PhotometricInterpretation=kind, PresentationLUTShape=shape)) == 0


def test_without_a_chest_to_be_seen_the_shape_comes_last():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    assert off(dicom(noise, PresentationLUTShape="INVERSE"), 255 - noise) == 0


def test_polarity_that_agrees_is_applied_once():
    assert (
        off(dicom(255 - FILM, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")) == 0
    )
    assert off(dicom(FILM, PresentationLUTShape="IDENTITY")) == 0


def bare(pixels: np.ndarray, *, implicit: bool, little: bool = True) -> bytes:
    """A file of elements alone: no preamble, no file meta information."""
    film = dataset(pixels if little else pixels.byteswap(), BitsStored=12)
    film.file_meta, stream = FileMetaDataset(), io.BytesIO()
    pydicom.dcmwrite(stream, film, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return stream.getvalue()


def without_syntax(content: bytes) -> bytes:
    start = content.index(b"\x02\0\x10\0UI")
    return content[:start] + content[start + 8 + int.from_bytes(content[start + 6 : start + 8], "little") :]


HEADLESS = {
    "implicit VR": lambda: bare(TWELVE, implicit=True),
    "explicit VR": lambda: bare(TWELVE, implicit=False),
    "big endian": lambda: bare(TWELVE, implicit=False, little=False),
    "meta information without a preamble": lambda: dicom(TWELVE, BitsStored=12)[132:],
    "the mark without a preamble": lambda: dicom(TWELVE, BitsStored=12)[128:],
    "no transfer syntax": lambda: without_syntax(dicom(TWELVE, BitsStored=12)),
    "no transfer syntax, JPEG 2000": lambda: without_syntax(
        compressed(TWELVE, uid.JPEG2000Lossless, BitsStored=12)
    ),
    "no transfer syntax, RLE": lambda: without_syntax(compressed(TWELVE, uid.RLELossless, BitsStored=12)),
    "JPEG 2000 said to be JPEG": lambda: compressed(TWELVE, uid.JPEG2000Lossless, BitsStored=12).replace(
        b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.50"
    ),
    "no PixelRepresentation, but a padding value": lambda: _without_representation(),
}


def _without_representation() -> bytes:
    film = dataset(TWELVE, BitsStored=12, PixelPaddingValue=0)
    film.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    content = written(film)
    at = content.index(b"\x28\0\x03\x01\x02\0\0\0")
    return content[:at] + content[at + 10 :]


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_file_without_its_heads_is_read(kind):
    content = HEADLESS[kind]()
    assert is_dicom(content[:132])
    assert off(content) == 0


def test_lossless_jpegs_without_a_transfer_syntax_are_read(tmp_path):
    for syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        assert off(without_syntax(transcoded(dicom(TWELVE, BitsStored=12), syntax, tmp_path))) == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\0", b"hello, text" * 20, b"\x08\0" + b"A" * 200, bytes(400), b"\x02\0\0\0" + bytes(300)],
)
def test_what_only_begins_like_a_file_without_heads_is_no_dicom(content):
    assert not is_dicom(content)


def test_a_dicom_file_whose_preamble_looks_like_another_format_is_dicom():
    content = dicom(FILM)
    for start in (b"II*\0", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"):
        assert off(start + content[len(start) :]) == 0


def test_the_films_of_the_sample_come_out_as_opencv_decodes_them():
    paths = sorted((ROOT / "data/films").glob("*/*"))[::20]
    if not paths:
        pytest.skip("needs the sample: dvc pull")
    for path in paths:
        np.testing.assert_array_equal(
            decode_film(path.read_bytes()), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        )
