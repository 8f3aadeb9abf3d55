import cv2
import numpy as np
import pytest

from openmed.explain.overlay import encode_jpeg, overlay

FILM = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))


def test_a_cold_film_is_shown_unchanged():
    shown = overlay(FILM, np.zeros((7, 7)))
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, np.repeat(FILM[..., None], 3, axis=2))


def test_heat_colours_its_own_place_only():
    heat = np.zeros(FILM.shape)
    heat[10:20, 30:40] = 1
    changed = (overlay(FILM, heat) != FILM[..., None]).any(axis=2)
    assert changed[10:20, 30:40].all()
    assert changed.sum() == 100


def test_the_film_stays_readable_under_the_hottest_heat():
    shown = overlay(FILM, np.ones((2, 2))).astype(int)
    steps = np.diff(shown[0].sum(axis=1))
    assert (steps > 0).all()


def test_colours_are_red_green_blue():
    hot = overlay(np.full((8, 8), 128, np.uint8), np.full((8, 8), 0.6)).astype(int)[0, 0]
    assert hot[0] > hot[2]


def test_heat_of_another_size_is_enlarged_to_the_film():
    heat = np.random.default_rng(0).random((5, 6))
    enlarged = cv2.resize(heat.astype(np.float32), (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(overlay(FILM, heat), overlay(FILM, enlarged))


@pytest.mark.parametrize(
    ("film", "heat"),
    [
        (FILM.astype(np.float32), np.zeros((2, 2))),
        (FILM[None], np.zeros((2, 2))),
        (FILM, np.zeros(4)),
        (FILM, np.full((2, 2), 1.1)),
        (FILM, np.full((2, 2), -0.1)),
        (FILM, np.full((2, 2), np.nan)),
    ],
)
def test_other_shapes_types_and_ranges_are_refused(film, heat):
    with pytest.raises(ValueError, match="must be"):
        overlay(film, heat)


def test_a_jpeg_holds_the_picture():
    shown = overlay(FILM, np.linspace(0, 1, 60)[None].repeat(40, 0))
    encoded = encode_jpeg(shown, quality=95)
    assert encoded.startswith(b"\xff\xd8\xff")
    decoded = cv2.cvtColor(
        cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )
    assert decoded.shape == shown.shape
    assert np.abs(decoded.astype(int) - shown).mean() < 4


def test_lower_quality_gives_a_smaller_file():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(encode_jpeg(noise, quality=20)) < len(encode_jpeg(noise, quality=90))


def test_a_picture_beyond_the_limits_of_jpeg_is_refused():
    with pytest.raises(ValueError, match="cannot be written as JPEG"):
        encode_jpeg(np.zeros((1, 70_000, 3), np.uint8))
