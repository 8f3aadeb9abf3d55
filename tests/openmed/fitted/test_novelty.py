import math
from dataclasses import asdict

import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.fitted.novelty import Novelty, conformal_limit


def test_with_one_film_a_patient_the_limit_is_the_conformal_quantile():
    rng = np.random.default_rng(0)
    for count, share in ((49, 0.02), (100, 0.02), (333, 0.1)):
        distances = rng.normal(size=count)
        limit, patients = conformal_limit(distances, np.arange(count), share)
        rank = math.ceil(round((count + 1) * (1 - share), 9))
        assert (limit, patients) == (np.sort(distances)[rank - 1], count)


def test_a_patient_with_many_films_counts_as_one():
    distances = np.concatenate([np.arange(99.0), np.full(500, 1000.0)])
    patients = np.concatenate([np.arange(99), np.full(500, 99)])
    assert conformal_limit(distances, patients, 0.02) == (98.0, 100)
    assert conformal_limit(distances, np.arange(599), 0.02)[0] == 1000.0


def test_films_of_new_patients_exceed_the_limit_as_often_as_promised():
    rng, beyond = np.random.default_rng(1), []
    for _ in range(400):
        patients = np.repeat(np.arange(160), rng.integers(1, 6, 160))
        distances = rng.normal(size=160)[patients] + 0.3 * rng.normal(size=len(patients))
        known = patients < 80
        limit, _ = conformal_limit(distances[known], patients[known], 0.05)
        weights = 1 / np.bincount(patients)[patients[~known]]
        beyond.append(np.average(distances[~known] > limit, weights=weights))
    assert np.mean(beyond) == pytest.approx(0.05, abs=0.008)


def test_too_few_patients_for_the_share_put_the_limit_at_the_largest_distance():
    assert conformal_limit([1.0, 3.0, 2.0], ["a", "b", "b"], 0.02) == (3.0, 2)


def test_the_order_of_the_films_does_not_matter():
    rng = np.random.default_rng(2)
    distances, patients = rng.normal(size=90), rng.integers(0, 30, 90)
    order = rng.permutation(90)
    assert conformal_limit(distances, patients, 0.1) == conformal_limit(
        distances[order], patients[order], 0.1
    )


def test_what_cannot_be_a_limit_is_refused():
    for share in (0, 1, -0.1):
        with pytest.raises(BadInput, match="must be above 0 and below 1"):
            conformal_limit([1.0], [1], share)
    for distances in ([], [np.nan], [np.inf]):
        with pytest.raises(ValueError):
            conformal_limit(distances, list(range(len(distances))), 0.1)
    for content in ({}, {"share": 2, "limit": 1, "patients": 3, "statistics_sha256": ""}, []):
        with pytest.raises(BadInput, match="novelty"):
            Novelty.from_json(content)


def test_a_limit_survives_json_and_calls_what_it_cannot_measure_unlike():
    novelty = Novelty(0.02, 1.5, 120, "ab")
    assert Novelty.from_json(asdict(novelty)) == novelty
    assert novelty.unlike([1.4, 1.5, 1.6, np.nan]).tolist() == [False, False, True, True]
