"""The drawn chest tells upright films from turned and inverted ones."""

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from openmed.films import chest
from openmed.phantoms.phantom import draw


def small(seed: int) -> np.ndarray:
    film = draw(seed, 1, pneumonia=seed % 2 == 0, size_px=192).film
    return cv2.resize(film, (32, 32), interpolation=cv2.INTER_AREA)


def test_rank_correlation_is_that_of_scipy():
    one, other = np.random.default_rng(0).permutation(2048).reshape(2, 32, 32)
    ours = chest._ranks(one) @ chest._ranks(other)
    assert ours == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_an_upright_film_is_like_the_chest_and_its_negative_as_unlike(seed):
    upright, negative = (chest.likeness(film)["upright"] for film in (small(seed), 255 - small(seed)))
    assert upright > 0.3
    assert negative == pytest.approx(-upright, abs=0.05)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_film_is_most_like_the_chest_turned_as_far(turns):
    found = chest.likeness(np.ascontiguousarray(np.rot90(small(1), turns)))
    assert max(("upright", "90", "180", "270"), key=found.get) == str(90 * turns)
