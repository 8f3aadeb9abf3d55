"""JPEG, PNG and TIFF films keep their pixels and nothing else."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from openmed.errors import BadInput
from openmed.films.images import decode_film, decode_with_depth
from openmed.privacy.cleaning import Pseudonyms, clean_film
from openmed.privacy.scrub import cut_jpeg, scrub
from tests.openmed.films import stored
from tests.openmed.privacy.planted import FILM, NAME, jpeg, jpegs, planted_in, png, pngs, segment, tiffs

NAMES = Pseudonyms(b"a secret of the site")
COLOUR = np.dstack([FILM, FILM // 2, 255 - FILM])


def decoded(content: bytes):
    try:
        return decode_film(content, "the film")
    except BadInput as error:
        return str(error)


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=place) for kind in (jpegs, pngs, tiffs) for place, content in kind()]
)
def test_a_name_is_gone_wherever_it_was(content):
    film = clean_film(content, "a.img", NAMES)
    assert planted_in(film.content) == [] and NAME not in film.content
    np.testing.assert_array_equal(decoded(film.content), decoded(content))
    assert not film.reason or film.reason == decoded(content)


@pytest.mark.parametrize(
    "content",
    [
        stored.pil(FILM, "JPEG", quality=40),
        stored.pil(FILM, "JPEG", quality=95, optimize=True),
        stored.pil(COLOUR, "JPEG"),
        stored.pil(COLOUR, "JPEG", subsampling=0, progressive=True),
        cv2.imencode(".jpg", FILM)[1].tobytes(),
        cv2.imencode(".jpg", COLOUR, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes(),
        cv2.imencode(".jpg", FILM, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[
            1
        ].tobytes(),
    ],
)
def test_a_jpeg_without_extras_stays_byte_for_byte(content):
    assert scrub(content) == (content, ".jpg")
    assert scrub(content + NAME) == (content, ".jpg")


@pytest.mark.parametrize("quality", [30, 90])
def test_a_cmyk_film_keeps_its_colours(quality):
    content = stored.pil(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=quality)
    cleaned, suffix = scrub(content)
    assert suffix == ".jpg" and Image.open(io.BytesIO(cleaned)).mode == "CMYK"
    np.testing.assert_array_equal(decode_film(cleaned), decode_film(content))


@pytest.mark.parametrize("make", [jpeg, png])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_film_stays_as_it_was_turned(make, orientation):
    cleaned, suffix = scrub(make(orientation))
    np.testing.assert_array_equal(decode_film(cleaned), decode_film(make(orientation)))
    with Image.open(io.BytesIO(cleaned)) as image:
        recorded = dict(image.getexif())
    assert recorded == ({0x0112: orientation} if suffix == ".jpg" and orientation > 1 else {})


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_png_keeps_its_depth(bits):
    content = stored.pil(stored.deep(FILM, bits), "PNG")
    cleaned, _ = scrub(content)
    assert decode_with_depth(cleaned)[1] == bits == decode_with_depth(content)[1]
    if bits > 8:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(cleaned))), stored.deep(FILM, bits))
    assert scrub(cleaned) == (cleaned, ".png")


@pytest.mark.parametrize("colour", [COLOUR, np.dstack([COLOUR, FILM])])
def test_a_png_in_colour_becomes_the_same_grey(colour):
    cleaned, _ = scrub(stored.pil(colour, "PNG"))
    np.testing.assert_array_equal(decode_film(cleaned), decode_film(stored.pil(colour, "PNG")))
    assert Image.open(io.BytesIO(cleaned)).mode == "L"


def test_a_thumbnail_is_not_kept():
    thumbnail = b"JFIF\0\x01\x01\0\0\x01\0\x01\x01\x01" + b"abc"
    content = b"\xff\xd8" + segment(0xE0, thumbnail) + stored.pil(FILM, "JPEG")[2:]
    assert b"abc" not in scrub(content)[0][:40]


def test_a_density_of_300_stays_and_one_that_spells_letters_does_not():
    def with_density(*numbers: int) -> bytes:
        plain = stored.pil(FILM, "JPEG")
        return plain[:13] + struct.pack(">BHH", *numbers) + plain[18:]

    assert scrub(with_density(1, 300, 300))[0] == with_density(1, 300, 300)
    assert scrub(with_density(1, 0x4A41, 0x4E45))[0] == with_density(0, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
        lambda plain: plain[:2] + segment(0xDC, b"\0\x40") + plain[2:],
        lambda plain: plain.replace(b"\1\1\x11\0", b"\1\7\x11\0"),  # a component without a known name
        lambda plain: plain[:2] + b"JANE" + plain[2:],
        lambda plain: plain[:-2],
        lambda plain: plain[:40],
        lambda plain: b"\xff\xd8",
    ],
)
def test_a_jpeg_of_an_unusual_build_is_not_cut(change):
    assert cut_jpeg(change(stored.pil(FILM, "JPEG"))) == b""


def test_a_second_scan_that_would_hide_the_first_is_not_kept():
    plain = stored.pil(FILM, "JPEG", quality=90)
    start = plain.index(b"\xff\xda")
    content = plain[:-2] + plain[start:]
    assert cut_jpeg(plain) == plain and cut_jpeg(content) == b""
