import cv2
import numpy as np
import pytest

from openmed.data import perturbations
from openmed.data.perturbations import HIDDEN, ROBUSTNESS
from openmed.data.phantom import draw

FILMS = np.stack([draw(k, k, pneumonia=True, size_px=96).film for k in range(3)])


@pytest.mark.parametrize("name", [*ROBUSTNESS, *HIDDEN])
def test_a_change_keeps_shape_and_type_changes_something_and_gives_the_same_again(name):
    change, before = (ROBUSTNESS | HIDDEN)[name], FILMS.copy()
    changed = change(FILMS)
    assert changed.shape == FILMS.shape and changed.dtype == np.uint8
    assert (changed != FILMS).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(change(FILMS), changed)
    np.testing.assert_array_equal(FILMS, before)
    assert change(FILMS[:0]).shape == (0, 96, 96)


def test_brightness_and_contrast_clip_and_do_not_wrap():
    films = np.array([[[0, 250], [100, 200]]], np.uint8)
    np.testing.assert_array_equal(perturbations.brighter(films, 0.1)[0], [[26, 255], [126, 226]])
    np.testing.assert_array_equal(perturbations.brighter(films, -0.1)[0], [[0, 224], [74, 174]])
    np.testing.assert_array_equal(perturbations.contrasted(films, 2.0)[0], [[0, 255], [62, 255]])


def test_a_turned_film_is_the_one_that_another_library_turns():
    from scipy.ndimage import rotate

    smooth = cv2.GaussianBlur(FILMS[0], None, 3)
    turned = perturbations.rotated(smooth[None], 5)[0]
    expected = rotate(smooth.astype(float), 5, reshape=False, order=1, mode="nearest")
    inside = (slice(12, -12), slice(12, -12))
    assert np.abs(turned[inside] - expected[inside]).max() <= 2


def test_what_is_hidden_is_the_same_grey_in_every_film_and_the_rest_stays():
    bordered, lungless = HIDDEN["border hidden"](FILMS), HIDDEN["lungs hidden"](FILMS)
    assert (bordered[:, :10] == 127).all() and (bordered[:, :, -10:] == 127).all()
    np.testing.assert_array_equal(bordered[:, 10:-10, 10:-10], FILMS[:, 10:-10, 10:-10])
    hidden = (lungless == 127).all(axis=0)
    assert 0.4 < hidden.mean() < 0.6
    assert not hidden[:8].any() and not hidden[-8:].any() and not hidden[:, 46:50].all()
    np.testing.assert_array_equal(lungless[:, ~hidden], FILMS[:, ~hidden])


def test_the_opacities_of_the_phantoms_lie_where_the_lungs_are_hidden():
    for seed in range(20):
        drawn = draw(seed, seed, pneumonia=True, size_px=96)
        changed = HIDDEN["lungs hidden"](drawn.film[None])[0] != drawn.film
        assert changed[drawn.mask > 0].mean() > 0.9
