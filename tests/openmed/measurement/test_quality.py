import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from openmed.measurement.quality import REASONS, measure_quality, suspicion
from openmed.phantoms.phantom import draw

REAL = Path(__file__).parents[4] / "shared/data/chest_xray_train_224.zip"


@pytest.fixture(scope="module")
def films():
    return [draw(seed, 1, pneumonia=seed % 2 == 0, size_px=192).film for seed in range(24)]


def noise(film, index):
    return np.random.default_rng(index).integers(0, 256, film.shape, dtype=np.uint8)


def blank(film, index):
    return (
        np.random.default_rng(index).normal((8, 128, 245)[index % 3], 2, film.shape).clip(0, 255).astype("u1")
    )


def through(film, curve):
    return (curve(np.arange(256) / 255) * 255).clip(0, 255).astype(np.uint8)[film]


def frame(film, index):
    return cv2.copyMakeBorder(film, *[film.shape[0] // 3] * 4, cv2.BORDER_CONSTANT, value=255 * (index % 2))


def collimated(film, index):
    film = np.rot90(film.copy(), index)
    film[: len(film) // 3] = 0
    return np.rot90(film, -index).copy()


def text(film, index):
    place = (int(film.shape[1] * 0.03), int(film.shape[0] * (0.08, 0.95)[index % 2]))
    words = ("DOE JOHN 12", "ID 4711-08", "02/03/2011")[index % 3]
    font = cv2.FONT_HERSHEY_SIMPLEX
    return cv2.putText(film.copy(), words, place, font, film.shape[0] / 600, 255, 1, cv2.LINE_AA)


DEFECTS = {
    "inverted": ("inverted", lambda film, index: 255 - film),
    "turned right": ("rotated", lambda film, index: np.rot90(film, 3).copy()),
    "turned left": ("rotated", lambda film, index: np.rot90(film).copy()),
    "upside down": ("rotated", lambda film, index: np.rot90(film, 2).copy()),
    "blurred": ("blur", lambda film, index: cv2.GaussianBlur(film, (0, 0), len(film) * 0.015)),
    "overexposed": ("exposure", lambda film, index: through(film, lambda grey: grey * 3)),
    "underexposed": ("exposure", lambda film, index: through(film, lambda grey: grey * 0.2)),
    "flat": ("exposure", lambda film, index: through(film, lambda grey: 0.45 + grey * 0.1)),
    "noise": ("non_chest", noise),
    "blank": ("blank", blank),
    "framed": ("cut", frame),
    "collimated": ("cut", collimated),
    "text": ("burned_in_text", text),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_ranks_above_every_untouched_phantom_and_is_named(films, defect):
    name, plant = DEFECTS[defect]
    untouched = [suspicion(measure_quality(film))[0] for film in films]
    planted = [measure_quality(plant(film, index)) for index, film in enumerate(films)]
    assert max(untouched) < 0.5
    assert min(scores[name] for scores in planted) > 0.5
    named = [name in suspicion(scores)[1] for scores in planted]
    assert all(named)


def test_a_film_with_half_of_the_lungs_ranks_above_most_whole_ones(films):
    whole = [measure_quality(film)["cut"] for film in films]
    half = [measure_quality(film[:, : film.shape[1] // 2])["cut"] for film in films]
    assert min(half) > max(whole)


def test_scores_are_shares_and_the_film_is_left_as_it_was(films):
    film = films[0].copy()
    scores = measure_quality(film)
    assert list(scores) == list(REASONS)
    assert all(0 <= score <= 1 for score in scores.values())
    assert np.array_equal(film, films[0])


@pytest.mark.parametrize("shape", [(16, 16), (16, 900), (2000, 1500), (33, 257)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_any_shape_and_any_grey_gets_finite_scores(shape, value):
    scores = measure_quality(np.full(shape, value, np.uint8))
    assert np.isfinite(list(scores.values())).all()
    assert scores["blank"] > 0.9


def test_the_size_of_a_film_hardly_changes_where_it_ranks():
    scores = [
        measure_quality(cv2.resize(draw(3, 1, pneumonia=True, size_px=256).film, (side, side)))
        for side in (256, 1024)
    ]
    assert scores[0]["cut"] == pytest.approx(scores[1]["cut"], abs=0.02)
    assert scores[0]["inverted"] == pytest.approx(scores[1]["inverted"], abs=0.02)


def test_a_side_marker_alone_is_not_text(films):
    marked = cv2.putText(films[0].copy(), "R", (8, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2, cv2.LINE_AA)
    assert measure_quality(marked)["burned_in_text"] < 0.5


def test_dark_text_is_found_as_well(films):
    light = cv2.add(films[0], 120)
    written = cv2.putText(light, "DOE JOHN", (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 0, 1, cv2.LINE_AA)
    assert measure_quality(written)["burned_in_text"] > 0.5


def test_reasons_are_those_over_the_limit_the_worst_first():
    scores = dict.fromkeys(REASONS, 0.1)
    assert suspicion(scores | {"blur": 0.2}) == (0.2, ["blur"])
    assert suspicion(scores | {"blur": 0.6, "cut": 0.9}) == (0.9, ["cut", "blur"])


@pytest.mark.skipif(not REAL.is_file(), reason="the real films are not beside this checkout")
@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defects_rank_above_nearly_all_untouched_real_films(defect):
    name, plant = DEFECTS[defect]
    untouched, planted = [], []
    with zipfile.ZipFile(REAL) as archive:
        for index, path in enumerate(sorted(archive.namelist())[7::80]):
            film = cv2.imdecode(np.frombuffer(archive.read(path), np.uint8), cv2.IMREAD_GRAYSCALE)
            if film is not None:
                untouched.append(measure_quality(film)[name])
                planted.append(measure_quality(plant(film, index))[name])
    assert np.median(planted) > np.quantile(untouched, 0.98)
    assert np.mean(np.array(planted)[:, None] > np.array(untouched)[None]) > 0.97
