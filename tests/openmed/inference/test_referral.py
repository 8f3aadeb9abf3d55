"""Films of a phantom hospital, films from elsewhere, and faults: who is referred, and what is said."""

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from openmed.films.images import resize_film
from openmed.fitted.abstention import Abstention
from openmed.fitted.feature_statistics import fit_statistics
from openmed.fitted.novelty import Novelty, conformal_limit
from openmed.inference import referral
from openmed.inference.referral import referrals, unlike_reasons
from openmed.phantoms.phantom import draw
from tests.openmed.conftest import small

SIDE_PX = 64


@pytest.fixture(scope="module")
def phantoms():
    drawn = (draw(n, 1, pneumonia=bool(n % 2), size_px=128).film for n in range(150))
    return np.stack([resize_film(film, SIDE_PX) for film in drawn])


@pytest.fixture(scope="module", params=["resnet50", "vit"])
def model(request, phantoms):
    """A small network with statistics of 70 phantoms and a limit from 50 others."""
    model = small(request.param, image_size_px=SIDE_PX).eval()
    model.statistics = fit_statistics(model.examine(phantoms[:70])[1], np.arange(70) % 2)
    limit, patients = conformal_limit(model.assess(phantoms[70:120])[1], np.arange(50), 0.04)
    model.spec = replace(model.spec, novelty=Novelty(0.04, limit, patients, ""))
    return model


def reasons_of(model, films):
    return Counter(unlike_reasons(model, films, model.assess(films)[1]))


def test_films_of_the_same_hospital_are_not_unlike(model, phantoms):
    assert reasons_of(model, phantoms[120:])[None] >= 28


def test_a_film_that_is_inverted_or_turned_is_told_so(model, phantoms):
    films = phantoms[120:]
    assert reasons_of(model, 255 - films)[referral.INVERTED] >= 29
    for turns in (1, 3):
        assert reasons_of(model, np.rot90(films, turns, (1, 2)).copy())[referral.ROTATED] >= 29


def test_a_film_that_is_badly_exposed_is_told_so(model, phantoms):
    films = phantoms[120:]
    flat, dark = (films * 0.08 + 110).astype(np.uint8), (films * 0.2).astype(np.uint8)
    for faulty in (flat, dark):
        assert reasons_of(model, faulty)[referral.EXPOSED] >= 25


def test_photographs_and_noise_are_unlike(model):
    photographs = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in load_sample_images().images]
    photographs = np.stack([resize_film(each, SIDE_PX) for each in photographs])
    noise = np.random.default_rng(0).integers(0, 256, (6, SIDE_PX, SIDE_PX), dtype=np.uint8)
    assert reasons_of(model, photographs)[None] == 0
    assert reasons_of(model, noise) == {referral.UNLIKE: 6}


def test_without_statistics_nothing_is_said_of_unlike_films(phantoms):
    model = small("resnet50", image_size_px=SIDE_PX).eval()
    probabilities, distances = model.assess(phantoms[:2])
    assert distances is None and unlike_reasons(model, phantoms[:2], distances) is None
    assert [each.refer for each in referrals(model.spec, probabilities, np.array([0, 1]), None)] == [
        None,
        None,
    ]


def test_a_usual_exposure_is_kept_and_an_odd_one_repaired(phantoms):
    film = phantoms[0]
    repaired = referral.usual_exposure((film * 0.2).astype(np.uint8))
    assert abs(float(np.median(repaired)) - 127.5) < 8 and repaired.std() > 3 * (film * 0.2).std()
    assert referral.usual_exposure(np.full((8, 8), 7, np.uint8)).shape == (8, 8)


def test_unlike_comes_before_no_class_and_means_know_only_unlike():
    spec = replace(small("vit").spec, abstention=Abstention(0.9, (0.3, 0.3), (20, 20)))
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
    called, unlike = np.array([0, 1, 1]), [None, None, referral.INVERTED]
    found = referrals(spec, probabilities, called, unlike)
    assert [(each.refer, each.reason) for each in found] == [
        (False, None),
        (True, referral.NO_CLASS),
        (True, referral.INVERTED),
    ]
    mean = referrals(spec, probabilities, called, unlike, is_mean=True)
    assert [each.refer for each in mean] == [False, False, True]
    assert [each.refer for each in referrals(spec, probabilities, called, None, is_mean=True)] == [None] * 3
