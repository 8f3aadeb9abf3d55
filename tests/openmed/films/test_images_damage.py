"""Half a film is no film: whatever a decoder completes or only warns of is refused, in every format."""

import io
import struct
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame

from openmed.errors import BadInput
from openmed.films.images import decode_film
from tests.openmed.films.stored import deep, dicom, phantom, pil, transcoded, written

FILM = phantom(128)
COLOUR = np.dstack([FILM] * 3)
END = b"\xff\xd9"
JPEGS = {
    "baseline": pil(FILM, "JPEG", quality=90),
    "progressive": pil(FILM, "JPEG", quality=90, progressive=True),
    "with restart marks": pil(FILM, "JPEG", quality=90, restart_marker_rows=1),
    "in colour": pil(COLOUR, "JPEG", quality=90),
    "in RGB": pil(COLOUR, "JPEG", quality=90, keep_rgb=True),
    "in CMYK": pil(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=90),
}


def cut(stream: bytes, share: float) -> bytes:
    """Ends a stream early, and with its end mark."""
    return stream[: int(len(stream) * share)] + END


def emptied(stream: bytes) -> bytes:
    """Takes a tenth out of the middle."""
    middle, length = len(stream) // 2, len(stream) // 10
    return stream[:middle] + bytes(length) + stream[middle + length :]


def refused(content: bytes) -> str:
    with pytest.raises(BadInput) as refusal:
        decode_film(content, "x")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def with_stream(content: bytes, change) -> bytes:
    """A DICOM film with another stream inside."""
    film = pydicom.dcmread(io.BytesIO(content))
    stream = change(get_frame(film.PixelData, 0, number_of_frames=1))
    film.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    film["PixelData"].is_undefined_length = True
    return written(film)


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_ends_early_is_refused_though_its_end_is_marked(kind, share):
    decode_film(JPEGS[kind])
    assert refused(cut(JPEGS[kind], share)) == "x is not a whole JPEG image"


@pytest.mark.parametrize("kind", ["progressive", "progressive in colour"])
def test_a_progressive_jpeg_that_ends_between_two_scans_is_refused(kind):
    content = pil(FILM if kind == "progressive" else COLOUR, "JPEG", progressive=True)
    decode_film(content)
    scans = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
    luma = [at for at in scans if 1 in content[at + 5 : at + 5 + 2 * content[at + 4] : 2]]
    for last in luma[1:]:
        assert refused(content[:last] + END) == "x is not a whole JPEG image"


@pytest.mark.parametrize("kind", ["baseline", "with restart marks"])
def test_a_jpeg_with_a_hole_is_refused(kind):
    assert refused(emptied(JPEGS[kind])) == "x is not a whole JPEG image"


@pytest.mark.parametrize("kind", JPEGS)
def test_whole_jpegs_give_the_luma_of_opencv(kind):
    expected = cv2.imdecode(np.frombuffer(JPEGS[kind], np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(decode_film(JPEGS[kind]), expected)


def test_what_follows_the_end_of_a_jpeg_is_no_damage():
    content = JPEGS["baseline"]
    np.testing.assert_array_equal(decode_film(content + b"a tail"), decode_film(content))


@pytest.mark.parametrize("change", [lambda stream: cut(stream, 0.6), emptied])
@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGLossless, uid.JPEGLosslessSV1])
def test_a_damaged_jpeg_in_dicom_is_refused_and_the_next_film_is_read(tmp_path, syntax, change):
    content = transcoded(dicom(FILM), syntax, tmp_path)
    whole = decode_film(with_stream(content, lambda stream: stream))
    assert "is damaged" in (said := refused(with_stream(content, change))) or "not a whole JPEG" in said
    np.testing.assert_array_equal(decode_film(content), whole)


@pytest.mark.parametrize("share", [0.4, 0.95])
@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless])
def test_other_streams_in_dicom_that_end_early_are_refused(tmp_path, syntax, share):
    content = transcoded(dicom(deep(FILM, 12), BitsStored=12), syntax, tmp_path)
    decode_film(content)
    assert "is damaged" in refused(with_stream(content, lambda stream: cut(stream, share)))


@pytest.mark.parametrize("change", [lambda stream: cut(stream, 0.6).ljust(len(stream), b"\0"), emptied])
@pytest.mark.parametrize("pixels", [FILM, COLOUR], ids=["grey", "colour"])
def test_a_damaged_jpeg_in_tiff_is_refused(pixels, change):
    content = pil(pixels, "TIFF", compression="jpeg", quality=90)
    decode_film(content)
    with Image.open(io.BytesIO(content)) as image:
        start, length = image.tag_v2[273][-1], image.tag_v2[279][-1]
    part = content[start : start + length]
    assert (
        refused(content[:start] + change(part) + content[start + length :]) == "x is not a whole JPEG image"
    )


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_other_tiffs_with_a_hole_are_refused(compression):
    content = pil(FILM, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_film(content), FILM)
    assert "is damaged" in (said := refused(emptied(content))) or said == "x is not a whole TIFF image"


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        found.append((kind, png[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def png_of(parts: list[tuple[bytes, bytes]], wrong: bytes = b"") -> bytes:
    """A PNG of chunks; that of the kind `wrong` gets a wrong checksum."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in parts:
        check = zlib.crc32(kind + body) ^ (kind == wrong)
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    return content


@pytest.mark.parametrize("wrong", [b"IHDR", b"IDAT", b"tEXt", b"IEND"])
def test_a_png_with_a_wrong_checksum_is_refused(wrong):
    (head, *body) = chunks(pil(FILM, "PNG"))
    parts = [head, (b"tEXt", b"Comment\0film"), *body]
    np.testing.assert_array_equal(decode_film(png_of(parts)), FILM)
    assert refused(png_of(parts, wrong)) == "x is not a whole PNG image"


def test_a_png_with_half_its_rows_is_refused_though_its_checksums_are_right():
    rows = zlib.decompress(b"".join(body for kind, body in chunks(pil(FILM, "PNG")) if kind == b"IDAT"))
    head = chunks(pil(FILM, "PNG"))[0]
    for pixels in (zlib.compress(rows[: len(rows) // 2]), zlib.compress(rows)[:-100]):
        assert refused(png_of([head, (b"IDAT", pixels), (b"IEND", b"")])) == "x is not a whole PNG image"
