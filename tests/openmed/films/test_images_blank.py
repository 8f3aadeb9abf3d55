"""Films on which nothing is to be seen are refused, however they came to be."""

import cv2
import numpy as np
import pytest

from openmed.cache.film_store import FilmStore
from openmed.dataset.manifest import measure_films, read_films
from openmed.errors import BadInput
from openmed.films.images import blank_reason, usable_squares
from openmed.phantoms.phantom import draw
from tests.openmed.films.stored import dicom, pil

BLACK = np.zeros((256, 256), np.uint8)


def with_text(film: np.ndarray) -> np.ndarray:
    return cv2.putText(film.copy(), "L 07:15", (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)


def noisy(grey: int, spread: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(grey, spread, BLACK.shape)
    return np.rint(noise.clip(0, 255)).astype(np.uint8)


EMPTY = {
    "black": BLACK,
    "white": 255 - BLACK,
    "grey": BLACK + 90,
    "black with text": with_text(BLACK),
    "noise of a detector": noisy(120, 4),
    "darkness with noise": noisy(0, 6),
}


@pytest.mark.parametrize("store", [lambda film: pil(film, "PNG"), lambda film: pil(film, "JPEG"), dicom])
@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_film_is_refused_and_quarantined(tmp_path, kind, store):
    content = store(EMPTY[kind])
    with pytest.raises(BadInput, match=r"^x cannot be used: the film is blank$"):
        usable_squares(content, [32], "x")
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "films.csv").write_text("path,label,patient,split\na.png,NORMAL,p,\n")
    with FilmStore(tmp_path / "store") as known:
        row = measure_films(tmp_path, read_films(tmp_path, ("NORMAL",)), known).iloc[0]
    assert (row["status"], row["reason"]) == ("quarantined", "the film is blank")


@pytest.mark.parametrize("share", [1, 0.25, 0.1])
def test_a_film_of_little_contrast_is_not_blank(share):
    film = draw(3, 1, pneumonia=True, size_px=192).film
    assert blank_reason(np.rint(90 + film * share).clip(0, 255).astype(np.uint8)) == ""
