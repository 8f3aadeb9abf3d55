"""Performance on drawn films: against scikit-learn, scipy and DeLong, and against what was drawn."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from openmed.monitoring.sampled_performance import Estimate, difference, performance, proportion


def films(count=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(int)
    return labels, rng.normal(0.35 + 0.3 * labels, 0.15).clip(0, 1).round(2)


def test_values_are_scikit_learns_with_weights():
    labels, scores = films()
    drawn = np.random.default_rng(1).uniform(0.05, 1, len(labels))
    found = performance(labels, scores, np.arange(len(labels)), 0.5, drawn)
    assert found["auc"].value == pytest.approx(roc_auc_score(labels, scores, sample_weight=1 / drawn))
    weights = (1 / drawn)[labels == 1]
    right = (scores >= 0.5)[labels == 1]
    assert found["sensitivity"].value == pytest.approx(np.average(right, weights=weights))


def test_a_proportion_of_single_films_has_clopper_and_pearsons_limits():
    right = np.arange(4000) % 10 > 0
    found = proportion(right, np.ones(4000), np.arange(4000)).interval(0.99)
    exact = binomtest(int(right.sum()), 4000).proportion_ci(0.99)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=2e-4)


def test_the_variance_of_the_auc_is_delongs_where_each_patient_has_one_film():
    labels, scores = films()
    found = performance(labels, scores, np.arange(len(labels)), 0.5)["auc"]
    having, without = scores[labels == 1], scores[labels == 0]
    wins = (having[:, None] > without) + (having[:, None] == without) / 2
    delong = wins.mean(1).var(ddof=1) / len(having) + wins.mean(0).var(ddof=1) / len(without)
    assert found.variance == pytest.approx(delong, rel=0.02)


def test_copies_of_a_film_tell_nothing_more():
    labels, scores = films()
    once = performance(labels, scores, np.arange(400), 0.5)
    copied = performance(*(np.repeat(each, 5) for each in (labels, scores, np.arange(400))), 0.5)
    for name, estimate in once.items():
        assert copied[name].variance == pytest.approx(estimate.variance)
        assert copied[name].interval(0.99).low == pytest.approx(estimate.interval(0.99).low, abs=0.005)


def test_patients_are_counted_where_no_error_is_seen():
    by_patient = proportion(np.ones(100, bool), np.ones(100), np.repeat(np.arange(10), 10)).interval(0.95)
    assert by_patient.high == 1 and by_patient.low < binomtest(10, 10).proportion_ci(0.95).low


@pytest.mark.parametrize("error", [0.01, 0.002])
def test_a_limit_errs_no_oftener_than_it_says_also_where_errors_are_few(error):
    rng, wrong, draws = np.random.default_rng(5), 0, 3000
    for _ in range(draws):
        patients = np.repeat(np.arange(120), 2)
        shared = rng.normal(size=120)[patients] + rng.normal(size=240)
        # 0.95 of the films are right; two films of a patient are correlated by 0.5.
        wrong += (
            proportion(shared < 1.6449 * np.sqrt(2), np.ones(240), patients).interval(1 - 2 * error).high
            < 0.95
        )
    assert wrong / draws <= error + 2.5 * np.sqrt(error / draws)


def test_films_drawn_unevenly_give_back_what_all_films_show():
    labels, scores = films(4000, seed=2)
    rng, found = np.random.default_rng(3), []
    probability = np.where(np.abs(scores - 0.5) < 0.1, 0.3, 0.05)
    for _ in range(300):
        taken = rng.random(4000) < probability
        part = performance(labels[taken], scores[taken], np.flatnonzero(taken), 0.5, probability[taken])
        found.append([part["sensitivity"].value, part["auc"].value])
    whole = performance(labels, scores, np.arange(4000), 0.5)
    assert np.mean(found, axis=0) == pytest.approx(
        [whole["sensitivity"].value, whole["auc"].value], abs=0.005
    )


def test_a_difference_joins_the_limits_of_both():
    first, second = (Estimate(value, value * (1 - value) / 200, (200.0,), 200) for value in (0.85, 0.95))
    a, b, found = first.interval(0.95), second.interval(0.95), difference(first, second, 0.95)
    assert found.value == pytest.approx(-0.1)
    assert found.high == pytest.approx(-0.1 + np.hypot(a.high - 0.85, 0.95 - b.low))
    assert found.low == pytest.approx(-0.1 - np.hypot(0.85 - a.low, b.high - 0.95))


def test_what_nobody_saw_has_no_number():
    found = performance([0, 0, 0], [0.1, 0.2, 0.6], [1, 2, 3], 0.5)
    assert np.isnan(found["auc"].interval(0.95).high) and np.isnan(found["sensitivity"].interval(0.95).high)


@pytest.mark.parametrize("probabilities", [[0.5, 0.0], [0.5, 1.2], [0.5]])
def test_films_that_could_not_be_drawn_are_refused(probabilities):
    with pytest.raises(ValueError, match="probability it was drawn with"):
        performance([0, 1], [0.1, 0.9], [1, 2], 0.5, probabilities)
