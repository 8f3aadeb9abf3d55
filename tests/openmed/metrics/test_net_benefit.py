import json
import math

import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.metrics.net_benefit import decision_curve
from openmed.metrics.resampling import cohort, multiplicities

CHANCES = (0.05, 0.2, 0.5, 0.8)


def sample(n=120, seed=0):
    """Calibrated scores, of patients with one to several films."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.beta(0.7, 1.2, n), 2)
    return (rng.random(n) < scores).astype(int), scores, rng.integers(0, 80, n)


def by_counting(labels, scores, chance, threshold=None):
    """Net benefit of the model and of flagging all, as Vickers and Elkin write it."""
    flags, n = scores >= (chance if threshold is None else threshold), len(labels)
    odds = chance / (1 - chance)
    true, false = np.sum(flags & (labels == 1)), np.sum(flags & (labels == 0))
    return true / n - false / n * odds, labels.sum() / n - (1 - labels).sum() / n * odds


def test_the_curve_equals_counting():
    labels, scores, patients = sample()
    for point in decision_curve(labels, scores, patients, CHANCES, replicates=20, seed=1):
        model, everyone = by_counting(labels, scores, point.threshold_probability)
        assert (point.model, point.treat_all) == pytest.approx((model, everyone), abs=1e-12)
        assert point.gain.value == pytest.approx(model - max(everyone, 0), abs=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.35])
def test_the_interval_equals_a_naive_loop_over_the_same_rows(threshold):
    labels, scores, patients = sample()
    curve = decision_curve(labels, scores, patients, CHANCES, threshold=threshold, replicates=300, seed=4)
    group = cohort(labels, patients)
    drawn = np.concatenate(list(multiplicities(group, 300, 4))).astype(int)
    rows = [np.repeat(np.arange(len(labels)), row[group.patient_of_film]) for row in drawn]
    for point in curve:
        gains = []
        for pick in rows:
            args = labels[pick], scores[pick], point.threshold_probability, threshold
            model, everyone = by_counting(*args)
            gains.append(model - max(everyone, 0))
        limits = tuple(np.quantile(gains, [0.025, 0.975]))
        assert (point.gain.low, point.gain.high) == pytest.approx(limits, abs=1e-12)


def test_at_another_prevalence_films_are_weighted():
    # Twelve copies of the films without the finding bring the share from 1/3 down to 1/25.
    labels, scores = np.array([1, 1, 0, 0, 0, 0]), np.array([0.9, 0.2, 0.8, 0.3, 0.1, 0.1])
    copied = np.concatenate([labels[:2], np.repeat(labels[2:], 12)])
    copied_scores = np.concatenate([scores[:2], np.repeat(scores[2:], 12)])
    (point,) = decision_curve(labels, scores, np.arange(6), [0.25], prevalence=2 / 50, replicates=10, seed=1)
    model, everyone = by_counting(copied, copied_scores, 0.25)
    assert (point.model, point.treat_all) == pytest.approx((model, everyone), abs=1e-12)


def test_a_useful_model_gains_and_a_useless_one_does_not():
    rng = np.random.default_rng(8)
    labels, patients = np.repeat([0, 1], 300), np.arange(600)
    good = np.clip(rng.normal(0.2 + 0.6 * labels, 0.15), 0, 1)
    (useful,) = decision_curve(labels, good, patients, [0.3], seed=1)
    (useless,) = decision_curve(labels, rng.random(600), patients, [0.3], seed=1)
    assert useful.gain.low > 0
    assert useless.gain.high < 0


def test_a_perfect_model_finds_the_prevalence():
    labels = np.repeat([0, 1], [30, 10])
    for point in decision_curve(labels, labels.astype(float), np.arange(40), CHANCES, seed=1):
        assert point.model == 0.25
        assert point.gain.low > 0


def test_a_missing_class_gives_no_number():
    (point,) = decision_curve([1, 1, 1], [0.2, 0.6, 0.9], [1, 2, 3], [0.5], replicates=20, seed=1)
    assert all(map(math.isnan, (point.model, point.gain.value, point.gain.low, point.gain.high)))
    content = point.to_json()
    assert content["model"] is None and content["gain"]["low"] is None
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize("chance", [0.0, 1.0, 30, math.nan])
def test_an_impossible_threshold_probability_is_refused(chance):
    with pytest.raises(BadInput, match="threshold probability must be above 0 and below 1"):
        decision_curve([0, 1], [0.1, 0.9], [1, 2], [0.5, chance], seed=1)
    with pytest.raises(BadInput, match="a prevalence must be above 0 and below 1"):
        decision_curve([0, 1], [0.1, 0.9], [1, 2], [0.5], prevalence=chance, seed=1)
