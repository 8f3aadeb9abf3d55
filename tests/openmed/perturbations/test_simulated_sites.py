import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, rotate, zoom
from torch.nn.functional import interpolate

from openmed.perturbations import simulated_sites
from openmed.perturbations.simulated_sites import SITES
from openmed.phantoms.phantom import draw

FILMS = np.stack([draw(k, k, pneumonia=True, size_px=96).film for k in range(3)])


@pytest.mark.parametrize("name", SITES)
def test_a_site_keeps_shape_and_type_changes_every_film_and_gives_the_same_again(name):
    site, before = SITES[name], FILMS.copy()
    changed = site(FILMS)
    assert changed.shape == FILMS.shape and changed.dtype == np.uint8
    assert (changed != FILMS).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(site(FILMS), changed)
    np.testing.assert_array_equal(FILMS, before)
    assert site(FILMS[:0]).shape == (0, 96, 96)


@pytest.mark.parametrize("name", SITES)
def test_a_film_does_not_depend_on_the_films_beside_it(name):
    np.testing.assert_array_equal(SITES[name](FILMS[2:]), SITES[name](FILMS)[2:])


def test_gamma_is_a_power_of_the_grey_level():
    expected = np.rint(255 * (FILMS / 255.0) ** 1.7)
    np.testing.assert_array_equal(SITES["gamma 1.7"](FILMS), expected)


def test_contrast_shrinks_about_the_mean_of_each_film():
    film = np.array([[0, 250], [100, 50]], np.uint8)
    np.testing.assert_array_equal(simulated_sites.flattened(film, 0.5), [[50, 175], [100, 75]])


def test_a_zoomed_film_is_the_one_that_another_library_zooms():
    smooth = cv2.GaussianBlur(FILMS[0], None, 3)
    ours = simulated_sites.stretched(smooth, 1.0, 2.0)
    theirs = zoom(smooth[24:72].astype(float), (2, 1), order=1, grid_mode=True, mode="nearest")
    assert np.abs(ours[4:-4] - theirs[4:-4]).max() <= 3


def test_a_turned_film_is_the_one_that_another_library_turns():
    smooth = cv2.GaussianBlur(FILMS[0], None, 3)
    expected = rotate(smooth.astype(float), 5, reshape=False, order=1, mode="nearest")
    inside = (slice(12, -12), slice(12, -12))
    assert np.abs(simulated_sites.turned(smooth, 5)[inside] - expected[inside]).max() <= 2


def test_a_coarse_film_has_no_more_than_its_share_of_pixels():
    ours = simulated_sites.coarse(FILMS[0], 0.25)
    means = torch.from_numpy(FILMS[0].reshape(24, 4, 24, 4).mean((1, 3)))[None, None]
    expected = interpolate(means, (96, 96), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert np.abs(ours - expected).max() <= 1.5


def test_edges_are_enhanced_by_what_a_blur_takes_away():
    smooth = gaussian_filter(FILMS[0].astype(float), 0.02 * 96, mode="mirror", truncate=8)
    expected = np.clip(FILMS[0] + 1.5 * (FILMS[0] - smooth), 0, 255)
    assert np.abs(simulated_sites.edge_enhanced(FILMS[0], 1.5, 0.02) - expected).max() <= 2


def test_noise_has_the_strength_that_is_asked():
    grey = np.full((96, 96), 128, np.uint8)
    assert simulated_sites.noisy(grey, 0.05).std() == pytest.approx(0.05 * 255, rel=0.03)


def test_local_equalisation_raises_contrast_within_tiles():
    flat = simulated_sites.flattened(FILMS[0], 0.3)
    assert simulated_sites.locally_equalised(flat).std() > 1.2 * flat.std()
