from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from openmed.training import augment as module
from openmed.training import changes
from openmed.training.augment import augment
from openmed.training.settings import Augmentation

STILL = Augmentation.none()
STRONG = Augmentation(
    rotate_degrees=12,
    shift=0.08,
    scale=0.25,
    aspect=0.12,
    crop=0.5,
    gamma=0.6,
    brightness=0.1,
    contrast=0.4,
    coarse=0.7,
    blur=0.02,
    noise=0.05,
    erase=0.1,
    context=0.5,
    flip=True,
)
SIZE = 48


@pytest.fixture
def films():
    """Smooth, so that ways of interpolating agree, and with a plain border."""
    noise = gaussian_filter(np.random.default_rng(0).random((6, SIZE, SIZE)), (0, 3, 3))
    noise = 255 * (noise - noise.min()) / np.ptp(noise)
    return torch.from_numpy(noise.astype(np.uint8))


@pytest.fixture
def sharp_films():
    """Noise in every pixel, where ways of interpolating differ the most."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (9, SIZE, SIZE), np.uint8))


@pytest.fixture
def largest(monkeypatch):
    """Makes every random change the largest one, to the positive side."""
    monkeypatch.setattr(changes.torch, "rand", lambda *shape: torch.ones(shape))


def warped(films, matrix):
    """What OpenCV makes of the films; the matrix tells where a film's pixels go."""
    flags = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    return np.stack(
        [cv2.warpAffine(f.numpy().astype(np.float32) / 255, matrix, (SIZE, SIZE), **flags) for f in films]
    )


def test_no_change_is_the_identity(films):
    for given in (films, films.float() / 255):
        moved = augment(given, STILL)
        assert moved.dtype == torch.float32 and moved.shape == films.shape
        assert (moved - films.float() / 255).abs().max() < 1e-6


def test_output_stays_a_grey_film_whatever_the_changes(films):
    strong = Augmentation(rotate_degrees=180, shift=0.9, scale=0.9, brightness=3, contrast=3, flip=True)
    for seed in range(20):
        torch.manual_seed(seed)
        moved = augment(films, strong)
        assert moved.shape == films.shape and moved.dtype == torch.float32
        assert torch.isfinite(moved).all() and moved.min() >= 0 and moved.max() <= 1


@pytest.mark.parametrize("degrees", [5.0, 30.0, -17.0])
def test_a_rotation_is_opencvs_about_the_middle(films, largest, degrees):
    middle = ((SIZE - 1) / 2, (SIZE - 1) / 2)
    expected = warped(films, cv2.getRotationMatrix2D(middle, degrees, 1.0))
    moved = augment(films, replace(STILL, rotate_degrees=degrees)).numpy()
    assert np.abs(moved - expected).max() < 0.02


@pytest.mark.parametrize("share", [0.125, -0.25, 0.06])
def test_a_shift_is_a_share_of_the_side_and_repeats_the_border(films, largest, share):
    there = np.float32([[1, 0, -share * SIZE], [0, 1, -share * SIZE]])
    moved = augment(films, replace(STILL, shift=share)).numpy()
    assert np.abs(moved - warped(films, there)).max() < 0.02


@pytest.mark.parametrize("share", [0.2, -0.3])
def test_a_change_of_size_keeps_the_middle(films, largest, share):
    middle = ((SIZE - 1) / 2, (SIZE - 1) / 2)
    expected = warped(films, cv2.getRotationMatrix2D(middle, 0, 1 / (1 + share)))
    moved = augment(films, replace(STILL, scale=share)).numpy()
    assert np.abs(moved - expected).max() < 0.02


def test_brightness_and_contrast_are_added_and_scaled_about_the_mean(films, largest):
    grey = 0.3 + 0.4 * films.numpy() / 255
    moved = augment(torch.from_numpy(grey), replace(STILL, brightness=0.1, contrast=0.15)).numpy()
    mean = grey.mean((1, 2), keepdims=True)
    assert np.allclose(moved, (grey - mean) * 1.15 + mean + 0.1, atol=1e-6)


def test_random_changes_keep_within_their_limits_and_reach_both_sides():
    torch.manual_seed(0)
    spot = np.zeros((400, SIZE, SIZE), np.float32)
    spot[:, SIZE // 2 - 1 : SIZE // 2 + 1, SIZE // 2 - 1 : SIZE // 2 + 1] = 1
    moved = augment(torch.from_numpy(spot), replace(STILL, shift=0.1)).numpy()
    place = np.arange(SIZE) - (SIZE - 1) / 2
    across = (moved.sum(1) * place).sum(1) / moved.sum((1, 2))
    down = (moved.sum(2) * place).sum(1) / moved.sum((1, 2))
    for offsets in (across, down):
        assert np.abs(offsets).max() <= 0.1 * SIZE + 1e-3
        assert offsets.min() < -0.09 * SIZE and offsets.max() > 0.09 * SIZE
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.2


def test_films_are_mirrored_only_when_asked(films):
    torch.manual_seed(0)
    many = films[:1].repeat(200, 1, 1)
    same = augment(many, STILL)
    assert (same - many.float() / 255).abs().max() < 1e-6
    asked = augment(many, replace(STILL, flip=True))
    mirrored = (asked - many.flip(2).float() / 255).abs().amax((1, 2)) < 1e-5
    kept = (asked - many.float() / 255).abs().amax((1, 2)) < 1e-5
    assert (mirrored ^ kept).all() and 60 < mirrored.sum() < 140


def test_films_of_a_batch_change_each_in_their_own_way_and_a_seed_repeats_it(films):
    many = films[:1].repeat(5, 1, 1)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(augment(many, Augmentation()))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert all(not torch.equal(runs[0][0], other) for other in runs[0][1:])


def test_the_number_of_threads_changes_no_bit():
    """Large enough for OpenCV to share a film out to its threads."""
    films = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 600, 600), np.uint8))
    runs, before = [], (torch.get_num_threads(), cv2.getNumThreads())
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            torch.manual_seed(4)
            runs.append(augment(films, STRONG))
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("as_float", [False, True])
def test_the_way_of_a_device_agrees_with_the_cpu_within_one_grey_level(sharp_films, monkeypatch, as_float):
    given = sharp_films.float() / 255 if as_float else sharp_films
    for settings in (
        Augmentation(),
        Augmentation(rotate_degrees=40, shift=0.4, scale=0.5, flip=True),
        STRONG,
    ):
        runs = []
        for way in (module._change_on_cpu, module._change_on_device):
            monkeypatch.setattr(module, "_change_on_cpu", way)
            torch.manual_seed(5)
            runs.append(augment(given, settings))
        assert not torch.equal(*runs) and (runs[0] - runs[1]).abs().max() < 1 / 255
        monkeypatch.undo()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_cuda_device_agrees_with_the_cpu_within_one_grey_level(sharp_films):
    runs = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(5)
        runs.append(augment(sharp_films.to(device), STRONG))
    assert runs[1].is_cuda and (runs[0] - runs[1].cpu()).abs().max() < 1 / 255


def test_no_films_give_no_films():
    assert augment(torch.zeros(0, SIZE, SIZE, dtype=torch.uint8), Augmentation()).shape == (0, SIZE, SIZE)


def test_the_given_films_are_left_as_they_are(films):
    grey = films.float() / 255
    before = grey.clone()
    augment(grey, Augmentation(flip=True))
    assert torch.equal(grey, before)


def test_a_share_of_a_batch_changes_as_it_does_in_the_whole(sharp_films):
    torch.manual_seed(4)
    whole = augment(sharp_films, STRONG)
    torch.manual_seed(4)
    assert torch.equal(augment(sharp_films, STRONG, slice(3, 7)), whole[3:7])


def test_a_change_of_aspect_stretches_one_axis_as_much_as_it_shrinks_the_other(films, largest):
    stretch = np.sqrt(1.3)
    middle = (SIZE - 1) / 2
    there = np.float32([[1 / stretch, 0, middle - middle / stretch], [0, stretch, middle - middle * stretch]])
    moved = augment(films, replace(STILL, aspect=0.3)).numpy()
    assert np.abs(moved - warped(films, there)).max() < 0.02


def test_a_crop_shows_a_part_of_that_area_and_of_nothing_else(films, largest):
    kept = round(SIZE * np.sqrt(1 - 0.4375))
    moved = augment(films, replace(STILL, crop=0.4375)).numpy()
    corner = films.numpy()[:, SIZE - kept :, SIZE - kept :].astype(np.float32) / 255
    expected = np.stack([cv2.resize(film, (SIZE, SIZE)) for film in corner])
    assert kept == 36 and np.abs(moved - expected).max() < 0.02


def test_gamma_raises_grey_levels_to_a_power(films, largest):
    for given in (films, films.float() / 255):
        moved = augment(given, replace(STILL, gamma=0.6)).numpy()
        assert np.allclose(moved, (films.numpy() / 255) ** np.exp(0.6), atol=1e-6)


def test_lost_resolution_leaves_what_a_small_film_can_hold(sharp_films, largest):
    moved = augment(sharp_films, replace(STILL, coarse=0.75)).numpy()
    means = sharp_films.numpy().reshape(-1, 12, 4, 12, 4).mean((2, 4)) / 255
    expected = np.stack([cv2.resize(film.astype(np.float32), (SIZE, SIZE)) for film in means])
    assert np.abs(moved - expected).max() < 1e-5


def test_a_blur_is_a_gaussian_of_a_share_of_the_side(sharp_films, largest):
    moved = augment(sharp_films, replace(STILL, blur=0.03)).numpy()
    sigma = (0, 0.03 * SIZE, 0.03 * SIZE)
    expected = gaussian_filter(sharp_films.numpy() / 255, sigma, mode="nearest", radius=(0, 4, 4))
    assert np.abs(moved - expected).max() < 1e-5


def test_noise_is_normal_new_for_each_film_and_as_strong_as_asked(largest):
    torch.manual_seed(6)
    moved = augment(torch.full((3, 128, 128), 0.5), replace(STILL, noise=0.05)).numpy() - 0.5
    assert np.allclose(moved.std((1, 2)), 0.05, rtol=0.03) and abs(moved.mean()) < 1e-3


def test_two_films_of_a_batch_get_noise_of_their_own():
    torch.manual_seed(6)
    moved = augment(torch.full((2, 128, 128), 0.5), replace(STILL, noise=0.05)).numpy() - 0.5
    assert abs(np.corrcoef(moved[0].ravel(), moved[1].ravel())[0, 1]) < 0.05


def test_an_erased_square_has_the_area_and_one_grey(films, largest):
    moved = augment(films, replace(STILL, erase=0.25)).numpy()
    assert (moved[:, 24:, 24:] == 0.5).all()
    assert np.allclose(moved[:, :24], films.numpy()[:, :24] / 255, atol=1e-6)


def test_context_comes_from_another_film_and_the_lungs_stay():
    torch.manual_seed(7)
    greys = torch.arange(40, 240, 10, dtype=torch.uint8)
    moved = augment(greys[:, None, None].repeat(1, 64, 64), replace(STILL, context=1.0)).numpy() * 255
    lung, corner = moved[:, 30, 19], moved[:, 0, 0]
    assert np.allclose(lung, greys, atol=0.5)
    assert set(np.rint(corner)) <= set(greys.tolist()) and (np.abs(corner - greys.numpy()) > 5).mean() > 0.8


def test_context_is_exchanged_for_the_share_of_films_that_is_asked():
    torch.manual_seed(8)
    films = torch.arange(200, dtype=torch.uint8)[:, None, None].repeat(1, 16, 16)
    moved = augment(films, replace(STILL, context=0.3)).numpy() * 255
    assert 0.2 < (np.abs(moved[:, 0, 0] - np.arange(200)) > 0.5).mean() < 0.4
