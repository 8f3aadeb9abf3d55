import numpy as np
import pytest

from openmed.perturbations.hidden_parts import HIDDEN
from openmed.phantoms.phantom import draw

FILMS = np.stack([draw(k, k, pneumonia=True, size_px=96).film for k in range(3)])


@pytest.mark.parametrize("name", HIDDEN)
def test_a_change_keeps_shape_and_type_changes_something_and_gives_the_same_again(name):
    change, before = HIDDEN[name], FILMS.copy()
    changed = change(FILMS)
    assert changed.shape == FILMS.shape and changed.dtype == np.uint8
    assert (changed != FILMS).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(change(FILMS), changed)
    np.testing.assert_array_equal(FILMS, before)
    assert change(FILMS[:0]).shape == (0, 96, 96)


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
