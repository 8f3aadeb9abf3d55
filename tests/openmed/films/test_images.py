"""Decoding: what comes out grey and eight bits, and what is refused."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openmed.errors import BadInput
from openmed.films.images import decode_film, decode_squares, decode_with_depth, read_film, resize_film


def gradient(height=40, width=60):
    return np.add.outer(np.arange(height) * 2, np.arange(width) * 2).astype(np.uint8)


def encoded(image, suffix=".png"):
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def pil_png(image, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def bare_png(width, height, rows=b""):
    """A PNG whose header says what it likes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_grey_png_comes_back_as_it_was():
    film, bits = decode_with_depth(encoded(gradient()))
    assert bits == 8 and film.dtype == np.uint8
    np.testing.assert_array_equal(film, gradient())


def test_a_grey_jpeg_comes_back_nearly_as_it_was():
    film = decode_film(encoded(gradient(), ".jpg"))
    assert np.abs(film.astype(int) - gradient()).max() <= 8


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_grey_film_stored_in_colour_is_the_same_film(suffix):
    colour = cv2.cvtColor(gradient(), cv2.COLOR_GRAY2BGR)
    difference = decode_film(encoded(colour, suffix)).astype(int) - decode_film(encoded(gradient(), suffix))
    assert np.abs(difference).max() <= 1


def test_colour_becomes_luma_as_pillow_computes_it():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(image.convert("L"), int)
    assert np.abs(decode_film(pil_png(image)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_ignored(mode):
    image = Image.fromarray(gradient()).convert(mode)
    image.putalpha(Image.fromarray(np.full((40, 60), 7, np.uint8)))
    np.testing.assert_array_equal(decode_film(pil_png(image)), gradient())


def test_a_palette_is_looked_up():
    image = Image.fromarray(gradient() // 2).convert("P", palette=Image.Palette.ADAPTIVE)
    expected = np.asarray(image.convert("L"), int)
    assert np.abs(decode_film(pil_png(image)).astype(int) - expected).max() <= 1
    assert np.abs(decode_film(pil_png(image, transparency=0)).astype(int) - expected).max() <= 1


def test_one_bit_films_become_black_and_white():
    pixels = (gradient() > 60).astype(np.uint8) * 255
    np.testing.assert_array_equal(decode_film(pil_png(Image.fromarray(pixels).convert("1"))), pixels)


@pytest.mark.parametrize("stored_bits", [10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_deep_films_use_the_whole_grey_scale_whatever_bits_they_fill(suffix, stored_bits):
    top = 2**stored_bits - 1
    deep = np.linspace(0, top, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    film, bits = decode_with_depth(encoded(deep, suffix))
    assert bits == stored_bits and film.min() == 0 and film.max() == 255
    np.testing.assert_allclose(film, deep / top * 255, atol=0.51)


def test_a_deep_film_that_is_not_full_is_not_stretched():
    deep = np.linspace(600, 3000, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    film, bits = decode_with_depth(encoded(deep))
    assert bits == 12
    np.testing.assert_allclose(film, deep / 4095 * 255, atol=0.51)


def test_an_eight_bit_film_in_sixteen_bits_is_the_same_film():
    film, bits = decode_with_depth(encoded(gradient().astype(np.uint16)))
    assert bits == 8
    np.testing.assert_array_equal(film, gradient())


def test_deep_colour_films_become_grey():
    deep = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    film, bits = decode_with_depth(encoded(cv2.cvtColor(deep, cv2.COLOR_GRAY2BGR)))
    assert bits == 12
    np.testing.assert_allclose(film, deep / 4095 * 255, atol=0.51)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (900, 224), (65535, 255)])
def test_a_blank_deep_film_is_one_grey_not_an_error(value, grey):
    assert (decode_film(encoded(np.full((20, 20), value, np.uint16))) == grey).all()


def test_turned_by_exif_is_turned_upright():
    image, exif = Image.fromarray(gradient()), Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    upright = np.rot90(decode_film(encoded(gradient(), ".jpg")), -1)
    film = decode_film(stream.getvalue())
    assert film.shape == (60, 40) and np.abs(film.astype(int) - upright).max() <= 8


@pytest.mark.parametrize("progressive", [True, False])
def test_every_kind_of_jpeg_header_is_understood(progressive):
    stream = io.BytesIO()
    options = {"progressive": progressive, "comment": b"\xff\xc0 no frame", "icc_profile": b"\xff" * 70_000}
    Image.fromarray(gradient()).save(stream, "JPEG", **options)
    padded = stream.getvalue()[:2] + b"\xff\xff" + stream.getvalue()[2:]
    assert decode_film(stream.getvalue()).shape == decode_film(padded).shape == (40, 60)


def test_an_empty_file_is_refused():
    with pytest.raises(BadInput, match=r"^a\.png is empty$"):
        decode_film(b"", "a.png")


@pytest.mark.parametrize("data", [b"hello, text\n" * 99, b"\0" * 999, b"\xff", bytes(128) + b"DICOM"[:3]])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadInput, match=r"^x is not a JPEG, PNG, TIFF or DICOM image$"):
        decode_film(data, "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xd8", "its header does not tell its size"),
        (b"\xff\xd8" + b"no marker" * 9, "its header does not tell its size"),
        (b"\x89PNG\r\n\x1a\n", "is 0 x 0 pixels"),
        (b"II*\0", "cannot be decoded: it is damaged"),
        (b"MM\0*" + b"\0" * 99, "cannot be decoded: it is damaged"),
        (bytes(128) + b"DICM", "is DICOM without an image"),
    ],
)
def test_the_start_of_an_image_without_an_image_is_refused(data, reason):
    with pytest.raises(BadInput, match=f"^x .*{reason}"):
        decode_film(data, "x")


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "PPM"])
def test_other_formats_are_refused_though_the_decoders_read_them(kind):
    stream = io.BytesIO()
    Image.fromarray(gradient()).save(stream, kind)
    with pytest.raises(BadInput, match="is not a JPEG, PNG, TIFF or DICOM image"):
        decode_film(stream.getvalue())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_film_is_refused(suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    data = encoded(noise, suffix)
    with pytest.raises(BadInput, match=r"is not a whole (JPEG|PNG) image|cannot be decoded: it is damaged"):
        decode_film(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_film_is_refused_at_reduced_size_too(share):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    data = encoded(noise, ".jpg")
    with pytest.raises(BadInput, match="is not a whole JPEG image"):
        decode_squares(data[: int(len(data) * share)], [32])


def test_a_header_that_promises_too_much_is_refused_without_allocating():
    tracemalloc.start()
    with pytest.raises(BadInput, match="claims 10000000000 pixels; a film has at most"):
        decode_film(bare_png(100_000, 100_000, b"\0" * 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_jpeg_that_promises_too_much_is_refused():
    data = bytearray(encoded(gradient(), ".jpg"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(BadInput, match="claims 3600000000 pixels"):
        decode_film(bytes(data))


@pytest.mark.parametrize("shape", [(15, 200), (200, 15), (1, 1)])
def test_a_film_smaller_than_any_film_is_refused(shape):
    with pytest.raises(BadInput, match=f"is {shape[1]} x {shape[0]} pixels; a film has at least 16"):
        decode_film(encoded(np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("shape", [(16, 70_000), (70_000, 16)])
def test_a_film_longer_than_any_film_is_refused(shape):
    with pytest.raises(BadInput, match=f"is {shape[1]} x {shape[0]} pixels; a film has at most 65535 a side"):
        decode_film(encoded(np.zeros(shape, np.uint8)))


def test_a_png_chunk_that_claims_gigabytes_is_refused_at_once():
    data = bytearray(encoded(gradient()))
    place = data.index(b"IDAT")
    data[place - 4 : place] = struct.pack(">I", 0x7FFFFFFF)
    with pytest.raises(BadInput, match="is not a whole PNG image"):
        decode_film(bytes(data))


def test_an_animated_png_is_refused():
    frames = [Image.fromarray(gradient()), Image.fromarray(255 - gradient())]
    with pytest.raises(BadInput, match="has several frames; a film has one"):
        decode_film(pil_png(frames[0], save_all=True, append_images=frames[1:]))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([".png", ".jpg", ".tiff"]))
def test_damaged_bytes_give_a_film_or_one_clear_refusal(data, suffix):
    content = bytearray(encoded(gradient(), suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        film = decode_film(bytes(content), "x")
    except BadInput as error:
        assert str(error).startswith("x ") and "\n" not in str(error)
    else:
        assert film.dtype == np.uint8 and film.ndim == 2


def test_a_file_is_read_like_its_bytes_and_a_missing_one_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(gradient()))
    np.testing.assert_array_equal(read_film(tmp_path / "a.png"), gradient())
    with pytest.raises(BadInput, match=r"gone\.png cannot be read: No such file"):
        read_film(tmp_path / "gone.png")


@pytest.mark.parametrize("size", [16, 31, 128])
def test_resizing_keeps_type_and_mean(size):
    film = resize_film(gradient(), size)
    assert film.shape == (size, size) and film.dtype == np.uint8
    assert film.mean() == pytest.approx(gradient().mean(), abs=1)


def test_shrinking_by_a_whole_factor_averages_areas():
    film = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    expected = film.reshape(16, 4, 16, 4).mean((1, 3))
    np.testing.assert_allclose(resize_film(film, 16), expected, atol=0.51)


def test_a_film_of_the_right_size_is_not_touched():
    film = gradient(50, 50)
    assert resize_film(film, 50) is film
