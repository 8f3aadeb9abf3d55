"""Measures of calibration, against scikit-learn, blind searches and hand computation."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn import metrics

from openmed.metrics import calibration_error as ours


def cohort(films=500, slope=1.0, shift=0.0, seed=0):
    """Labels and scores whose log-odds must be taken times `slope` plus `shift` to be true."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, films)
    return (rng.random(films) < expit(slope * odds + shift)).astype(int), expit(odds)


def test_the_log_loss_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 2, 3], 200)
    labels = rng.integers(0, 3, 200)
    assert ours.log_loss(labels, probabilities) == pytest.approx(metrics.log_loss(labels, probabilities))


def test_a_sure_and_wrong_film_has_a_finite_log_loss():
    assert ours.log_loss([0], [[0.0, 1.0]]) == pytest.approx(-np.log(1e-7))


def test_the_calibration_error_computed_by_hand():
    labels, scores = [0, 1, 0, 1, 1, 1], [0.2, 0.1, 0.4, 0.3, 0.9, 0.8]
    # Bins by score: {0.1, 0.2} with 1 of 2, {0.3, 0.4} with 1 of 2, {0.8, 0.9} with 2 of 2.
    expected = (abs(0.15 - 0.5) + abs(0.35 - 0.5) + abs(0.85 - 1)) / 3
    assert ours.expected_calibration_error(labels, scores, bins=3) == pytest.approx(expected)


def test_the_calibration_error_is_that_of_a_plain_loop_over_quantiles():
    labels, scores = cohort(497)
    order = np.argsort(scores)
    sizes = [50] * 7 + [49] * 3
    total, start = 0.0, 0
    for size in sizes:
        part = order[start : start + size]
        total += size * abs(scores[part].mean() - labels[part].mean())
        start += size
    assert ours.expected_calibration_error(labels, scores) == pytest.approx(total / 497)


def test_the_order_of_films_of_equal_score_plays_no_part():
    scores = np.repeat([0.3, 0.6], [25, 15])
    labels = np.random.default_rng(2).integers(0, 2, 40)
    values = set()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(40)
        values.add(round(ours.expected_calibration_error(labels[order], scores[order]), 12))
    assert len(values) == 1


def test_true_probabilities_have_the_error_that_chance_alone_gives():
    labels, scores = cohort(20_000)
    assert ours.expected_calibration_error(labels, scores) < 0.02
    shouted, truth = cohort(20_000, slope=0.4)
    assert ours.expected_calibration_error(shouted, truth) > 0.1


def search(labels, scores, *, slope_free):
    odds = np.log(scores / (1 - scores))

    def loss(free):
        values = (free[1] if slope_free else 1) * odds + free[0]
        return np.mean(np.logaddexp(0, values) - labels * values)

    return minimize(loss, [0.0, 1.0][: 1 + slope_free], method="BFGS", options={"gtol": 1e-10}).x


def test_slope_and_intercept_are_what_a_blind_search_finds():
    labels, scores = cohort(slope=0.6, shift=-0.8)
    assert ours.calibration_slope(labels, scores) == pytest.approx(search(labels, scores, slope_free=True)[1])
    expected = search(labels, scores, slope_free=False)[0]
    assert ours.calibration_intercept(labels, scores) == pytest.approx(expected, abs=1e-6)


def test_true_probabilities_have_slope_one_and_intercept_zero():
    labels, scores = cohort(40_000)
    assert ours.calibration_slope(labels, scores) == pytest.approx(1, abs=0.04)
    assert ours.calibration_intercept(labels, scores) == pytest.approx(0, abs=0.04)


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.5] * 4, [0, 0.3, 0.3, 1]])
def test_separated_or_constant_scores_have_no_slope(scores):
    assert np.isnan(ours.calibration_slope([0, 0, 1, 1], scores))
    assert np.isfinite(ours.calibration_intercept([0, 0, 1, 1], scores))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_neither_slope_nor_intercept(label):
    labels, scores = np.full(5, label), np.linspace(0, 1, 5)
    assert np.isnan(ours.calibration_slope(labels, scores))
    assert np.isnan(ours.calibration_intercept(labels, scores))


def test_bins_and_scores_out_of_range_are_refused():
    with pytest.raises(ValueError, match="bins must be at least 1"):
        ours.expected_calibration_error([0, 1], [0.1, 0.9], bins=0)
    with pytest.raises(ValueError, match="probabilities in"):
        ours.calibration_slope([0, 1], [0.1, 1.9])


def test_the_summary_judges_the_finding_against_the_rest():
    rng = np.random.default_rng(1)
    probabilities, labels = rng.dirichlet([2, 2, 2], 300), rng.integers(0, 3, 300)
    found = ours.calibration_summary(labels, probabilities, positive=1)
    has, scores = (labels == 1).astype(int), probabilities[:, 1]
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(has, scores))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, probabilities))
    assert found["ece"] == ours.expected_calibration_error(has, scores)
    assert found["slope"] == ours.calibration_slope(has, scores)
    assert found["intercept"] == ours.calibration_intercept(has, scores)


def test_perfect_probabilities_are_off_by_nothing_and_small_sets_are_not_blamed():
    errors, surely = [], 0
    for seed in range(200):
        labels, scores = cohort(80, seed=seed)
        found = ours.unbiased_calibration_error(labels, scores, np.arange(80))
        errors.append(found.value)
        surely += found.low > 0.1
    biased = np.mean([ours.expected_calibration_error(*cohort(80, seed=seed)) for seed in range(200)])
    assert surely == 0
    assert np.mean(errors) < 0.7 * biased


def test_the_unbiased_error_of_many_films_is_the_true_one():
    labels, scores = cohort(200_000, slope=0.5, seed=3)
    odds = np.log(scores / (1 - scores))
    true = np.sqrt(np.mean((scores - expit(0.5 * odds)) ** 2))
    found = ours.unbiased_calibration_error(labels, scores, np.arange(200_000), bins=100)
    assert found.low < true * 1.01 and found.value == pytest.approx(true, rel=0.02)


def test_films_of_the_same_patients_widen_the_limits():
    labels, scores = cohort(300, slope=0.5)
    alone = ours.unbiased_calibration_error(labels, scores, np.arange(300))
    copied = [np.repeat(column, 4) for column in (labels, scores, np.arange(300))]
    assert ours.unbiased_calibration_error(*copied).low <= alone.low + 0.01
    one, four = ours.slope_interval(labels, scores, np.arange(300)), ours.slope_interval(*copied)
    assert (four.low, four.high) == pytest.approx((one.low, one.high), abs=1e-6)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_the_slope_s_limits_cover_it(slope):
    held = 0
    for seed in range(200):
        labels, scores = cohort(400, slope=slope, seed=seed)
        found = ours.slope_interval(labels, scores, np.arange(400))
        assert found.value == ours.calibration_slope(labels, scores)
        held += found.low <= slope <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_where_the_scores_separate_the_classes_there_is_no_slope():
    found = ours.slope_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], np.arange(4))
    assert np.isnan([found.value, found.low, found.high]).all()
