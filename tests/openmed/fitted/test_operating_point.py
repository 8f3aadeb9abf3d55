import functools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom, binomtest

from openmed.errors import BadInput
from openmed.fitted.operating_point import (
    choose_threshold,
    controlled_threshold,
    patients_needed,
    transfer_chance,
)
from openmed.metrics.classification import sensitivity

films = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 1, width=32) | st.sampled_from([0.2, 0.5])), min_size=1
).filter(lambda rows: any(label for label, _ in rows))


@settings(deadline=None)
@given(films, st.floats(0.01, 1))
def test_it_is_the_highest_threshold_that_reaches_the_target(rows, target):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    threshold = choose_threshold(labels, scores, target)
    assert 0 <= threshold <= 1
    assert sensitivity(labels, scores, threshold) >= target
    # Brute force: every distinct score as a threshold; the best one flags exactly the same films.
    reaching = [score for score in scores if sensitivity(labels, scores, score) >= target]
    assert np.array_equal(scores >= threshold, scores >= max(reaching))


@settings(deadline=None)
@given(films, st.floats(0.01, 1))
def test_scores_kept_in_32_bits_are_flagged_alike(rows, target):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(np.float32)
    threshold = choose_threshold(labels, scores, target)
    assert np.array_equal(scores >= np.float32(threshold), scores.astype(float) >= threshold)


def test_it_lies_half_way_to_the_next_lower_score():
    assert choose_threshold([1, 1, 0], [0.75, 0.5, 0.25], 1.0) == 0.375
    assert choose_threshold([1, 1, 0], [0.75, 0.5, 0.25], 0.5) == 0.625
    assert choose_threshold([1, 0], [0.5, 0.75], 1.0) == 0.25


def test_a_share_that_floating_point_overshoots_asks_for_no_extra_film():
    # 0.07 * 100 is 7.000000000000001
    threshold = choose_threshold(np.ones(100, int), np.arange(100) / 100, 0.07)
    assert 0.92 < threshold <= 0.93


def test_neighbouring_scores_are_kept_apart():
    lower = 0.5
    upper = math.nextafter(lower, 1)
    assert choose_threshold([0, 1], [lower, upper], 1.0) == upper


def test_all_scores_zero_flags_everything():
    assert choose_threshold([1, 0], [0.0, 0.0], 0.95) == 0.0


def test_without_the_finding_no_threshold_can_be_chosen():
    with pytest.raises(BadInput, match="none of the 2 calibration films has the finding"):
        choose_threshold([0, 0], [0.2, 0.4], 0.95)


@pytest.mark.parametrize("target", [0, 1.1, 95, math.nan])
def test_an_impossible_target_is_refused(target):
    with pytest.raises(BadInput, match="target_sensitivity must be above 0 and at most 1"):
        choose_threshold([0, 1], [0.2, 0.4], target)


def test_missing_scores_are_refused():
    with pytest.raises(ValueError, match="found nan"):
        choose_threshold([0, 1], [0.2, math.nan], 0.95)


@functools.cache
def exact_limit(found, n, confidence):
    """One-sided Clopper-Pearson limit by scipy, as the lower end of a two-sided interval."""
    return binomtest(found, n).proportion_ci(2 * confidence - 1, method="exact").low


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=25, max_size=60),
    st.sampled_from([0.6, 0.8, 0.9]),
    st.sampled_from([0.7, 0.9]),
)
def test_no_higher_threshold_keeps_the_promise(rows, target, confidence):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    scores, n = scores / 12, int(labels.sum())
    if n < patients_needed(target, confidence):
        with pytest.raises(BadInput, match=f"found {n} "):
            controlled_threshold(labels, scores, np.arange(len(labels)), target, confidence)
        return
    found = controlled_threshold(labels, scores, np.arange(len(labels)), target, confidence)
    having = scores[labels == 1]
    reaching = [s for s in set(scores) if exact_limit(int(np.sum(having >= s)), n, confidence) >= target]
    assert np.array_equal(scores >= found.threshold, scores >= max(reaching))
    assert (found.patients, found.missed) == (n, int(np.sum(having < found.threshold)))
    assert found.lower_limit == pytest.approx(exact_limit(n - found.missed, n, confidence), abs=1e-9)
    assert found.lower_limit >= target - 1e-9


def test_the_promise_is_kept_and_the_plain_choice_breaks_it():
    # Scores with the finding are uniform, so the true sensitivity of a threshold t is 1 - t.
    rng, target, runs = np.random.default_rng(11), 0.9, 1000
    labels, patients = np.repeat([0, 1], [20, 120]), np.arange(140)
    promised = broken = 0
    for _ in range(runs):
        scores = rng.random(140)
        promised += 1 - controlled_threshold(labels, scores, patients, target, 0.9).threshold < target
        broken += 1 - choose_threshold(labels, scores, target) < target
    # Exactly: more than the allowed number of patients lies below the true 10 % point.
    allowed = max(k for k in range(120) if exact_limit(120 - k, 120, 0.9) >= target)
    assert binom.cdf(allowed, 120, 0.1) <= 0.1
    assert promised / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)
    assert broken / runs > 0.3


def test_the_promise_is_kept_for_patients_with_several_films_alike():
    # One to four films a patient whose scores are nearly the same; a film of a random patient is drawn.
    rng, target, runs = np.random.default_rng(12), 0.9, 300
    grid = np.sort(np.clip(rng.random(200_000) + rng.normal(0, 0.02, 200_000), 0, 1))
    broken = {"by patient": 0, "by film": 0}
    for _ in range(runs):
        films = rng.integers(1, 5, 60)
        patients = np.repeat(np.arange(60), films)
        scores = np.clip(rng.random(60)[patients] + rng.normal(0, 0.02, len(patients)), 0, 1)
        labels = np.ones(len(patients), int)
        for name, group in (("by patient", patients), ("by film", np.arange(len(patients)))):
            threshold = controlled_threshold(labels, scores, group, target, 0.9).threshold
            broken[name] += 1 - np.searchsorted(grid, threshold) / len(grid) < target
    assert broken["by patient"] / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)
    assert broken["by film"] / runs > 0.15


def test_a_patient_is_found_only_with_all_films_of_the_finding():
    labels = np.array([1] * 30 + [1, 1, 0])
    scores = np.array([0.9] * 30 + [0.95, 0.2, 0.1])
    patients = np.append(np.arange(30), [30, 30, 30])
    found = controlled_threshold(labels, scores, patients, 0.9, 0.9)
    assert (found.patients, found.missed) == (31, 0)  # one miss of 31 would not do
    assert 0.1 < found.threshold <= 0.2


def test_it_is_never_above_the_plain_choice():
    # 100 patients of one film are easy, one with forty films is hard.
    labels = np.ones(140, int)
    scores, patients = np.append(np.full(100, 0.9), np.full(40, 0.3)), np.append(np.arange(100), [100] * 40)
    assert controlled_threshold(labels, scores, patients, 0.9, 0.9).threshold <= 0.3


def test_too_few_patients_are_told_how_many_are_needed():
    assert patients_needed(0.95, 0.95) == 59
    assert patients_needed(0.9, 0.9) == 22
    labels, scores = np.ones(58, int), np.full(58, 0.5)
    with pytest.raises(BadInput, match="at least 59 calibration patients with the finding, found 58"):
        controlled_threshold(labels, scores, np.arange(58), 0.95)
    with pytest.raises(BadInput, match=r"found 10 \(with 58 films\)"):
        controlled_threshold(labels, scores, np.arange(58) % 10, 0.95)
    labels, scores = np.ones(59, int), np.full(59, 0.5)
    assert controlled_threshold(labels, scores, np.arange(59), 0.95).missed == 0


def test_a_bound_that_is_met_exactly_is_enough():
    # 0.5^(1/3) with three of three found.
    target = 0.5 ** (1 / 3)
    assert controlled_threshold([1, 1, 1], [0.5, 0.6, 0.7], [1, 2, 3], target, 0.5).missed == 0


@pytest.mark.parametrize(("target", "confidence"), [(1.0, 0.9), (0.9, 1.0), (95, 0.9), (math.nan, 0.9)])
def test_a_promise_without_doubt_is_refused(target, confidence):
    with pytest.raises(BadInput, match="must be above 0 and below 1 for a promise"):
        controlled_threshold([0, 1], [0.2, 0.4], [1, 2], target, confidence)


def test_a_controlled_threshold_is_written_as_plain_values():
    found = controlled_threshold(np.ones(30, int), np.linspace(0.2, 0.9, 30), np.arange(30), 0.9, 0.9)
    content = asdict(found)
    assert content == json.loads(json.dumps(content))
    assert content["patients"] == 30


@pytest.mark.parametrize(
    ("calibration", "test", "films_a_patient"), [(40, 60, 1), (200, 300, 1), (200, 300, 3)]
)
def test_a_transfer_of_honest_films_is_doubted_seldom(calibration, test, films_a_patient):
    rng, doubted = np.random.default_rng(5), 0
    for _ in range(400):
        scores, patients = [], []
        for films in (calibration, test):
            patient = np.repeat(np.arange(films), films_a_patient)[:films]
            own = rng.normal(size=films)[patient] if films_a_patient > 1 else 0
            scores.append(expit(2 + own + rng.normal(size=films)))
            patients.append(patient)
        threshold = choose_threshold(np.ones(calibration, int), scores[0], 0.9)
        chance = transfer_chance(scores[0] >= threshold, patients[0], scores[1] >= threshold, patients[1])
        doubted += chance <= 0.025
    assert doubted / 400 <= 0.03


def test_a_transfer_that_lost_fifteen_points_is_doubted():
    before, now = np.arange(200) >= 10, np.arange(300) >= 60
    assert transfer_chance(before, np.arange(200), now, np.arange(300)) < 1e-4
    assert np.isnan(transfer_chance([], [], now, np.arange(300)))


def test_the_chance_of_a_transfer_is_a_beta_binomial_tail():
    rng, (n, k, m, found) = np.random.default_rng(6), (30, 27, 50, 40)
    rates = rng.beta(k, n + 1 - k, 200_000)
    simulated = np.mean(rng.binomial(m, rates) <= found)
    chance = transfer_chance(np.arange(n) < k, np.arange(n), np.arange(m) < found, np.arange(m))
    assert chance == pytest.approx(simulated, abs=0.004)
