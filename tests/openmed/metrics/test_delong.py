import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import norm, t

from openmed.metrics.classification import auc
from openmed.metrics.delong import _moments, _wins, delong_auc, delong_difference
from openmed.metrics.score_intervals import critical_value, newcombe_auc

# Subarachnoid haemorrhage (Turck et al., Intensive Care Med 2010;36:107-115), published with the R package
# pROC as aSAH: two markers of 41 patients with a poor outcome and 72 with a good one. Only the order of the
# values matters here, so each is given by its rank among the distinct values that tell patients apart.
S100B_POOR = (
    "8 5 11 7 25 30 28 2 19 4 2 23 21 27 30 15 30 30 30 2 30 17 0 4 13 30 15 30 3 15 8 5 6 13 30 9 30 18 30 "
    "30 25"
)
S100B_GOOD = (
    "8 9 5 1 26 12 5 5 1 3 1 4 6 2 12 2 6 8 12 1 11 9 20 4 29 26 11 2 24 26 6 3 4 3 1 8 5 9 10 1 1 4 1 4 3 "
    "11 4 3 19 6 16 2 5 18 2 1 14 22 5 10 3 9 5 2 1 12 10 26 12 10 29 27"
)
WFNS_POOR = "2 1 3 4 4 4 4 1 4 1 0 1 4 3 3 1 4 4 4 1 4 1 4 1 3 4 3 3 0 3 3 1 1 4 4 1 1 4 4 4 4"
WFNS_GOOD = (
    "0 0 0 0 4 0 1 1 0 1 1 0 0 0 1 0 1 0 0 2 3 0 3 0 4 4 0 0 1 3 0 0 1 1 0 1 0 1 1 0 0 0 0 1 0 1 0 0 2 1 3 1 "
    "0 3 0 0 4 3 1 1 0 0 0 2 0 1 1 3 3 0 0 0"
)


def asah():
    s100b, wfns = (
        np.array([int(rank) for rank in text.split()]) / 30
        for text in (f"{S100B_POOR} {S100B_GOOD}", f"{WFNS_POOR} {WFNS_GOOD}")
    )
    return np.repeat([1, 0], [41, 72]), s100b, wfns


def delong_variance(labels, scores):
    """The AUC and its variance, every film a patient."""
    moments = _moments(labels, _wins(labels, scores), None)
    return moments.value, moments.variance


def test_it_has_the_standard_error_that_proc_publishes():
    labels, s100b, wfns = asah()
    value, variance = delong_variance(labels, s100b)
    assert value == delong_auc(labels, s100b).value == pytest.approx(0.731368563685637, abs=1e-14)
    published = (0.8326 - 0.6301) / 2 / critical_value(0.95)
    assert math.sqrt(variance) == pytest.approx(published, abs=3e-5)
    assert delong_auc(labels, wfns).value == pytest.approx(0.823678861788618, abs=1e-14)


def test_two_models_are_as_correlated_as_in_the_paired_test_that_proc_publishes():
    labels, s100b, wfns = asah()
    found = delong_difference(labels, wfns, s100b)
    a, b = delong_auc(labels, wfns), delong_auc(labels, s100b)
    assert (a.value, b.value) == pytest.approx((0.823678861788618, 0.731368563685637), abs=1e-14)
    errors = [math.sqrt(delong_variance(labels, scores)[1]) for scores in (wfns, s100b)]
    error = found.value / 2.20898359144091  # the published statistic
    correlation = (errors[0] ** 2 + errors[1] ** 2 - error**2) / (2 * errors[0] * errors[1])
    down, up = a.value - a.low, b.high - b.value
    low = found.value - math.sqrt(down**2 + up**2 - 2 * correlation * down * up)
    assert found.low == pytest.approx(low, rel=1e-6)


def test_the_limits_lie_between_those_on_the_scale_of_the_log_odds_and_newcombes():
    labels, s100b, _ = asah()
    interval, (value, variance) = delong_auc(labels, s100b), delong_variance(labels, s100b)
    wide = t.ppf(0.975, 40) * math.sqrt(variance) / (value * (1 - value))
    own, careful = expit(logit(value) - wide), newcombe_auc(value, 41, 72).low
    # 40 of the 41 with a poor outcome have a good one above them or level with them.
    assert interval.low == pytest.approx(careful * 2 / 42 + own * 40 / 42, abs=2e-4)


def test_one_film_on_the_wrong_side_is_not_much_worse_than_none():
    labels = np.repeat([0, 1], 40)
    perfect = np.where(labels == 1, 0.9, 0.1)
    nearly = perfect.copy()
    nearly[40] = 0.05
    limits = [delong_auc(labels, scores).low for scores in (perfect, nearly)]
    assert 0.85 < limits[1] <= limits[0] + 0.01


def brute_force(labels, *scores):
    """AUCs and their covariance by comparing every film with every other."""
    having, without = labels == 1, labels == 0
    areas, parts = [], []
    for values in scores:
        mine, others = values[having][:, None], values[without][None, :]
        won = (mine > others) + 0.5 * (mine == others)
        areas.append(won.mean())
        parts.append([won.mean(axis=1) - won.mean(), won.mean(axis=0) - won.mean()])
    m, n = having.sum(), without.sum()
    covariance = [[a[0] @ b[0] / (m - 1) / m + a[1] @ b[1] / (n - 1) / n for b in parts] for a in parts]
    return areas, np.array(covariance)


films = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=25)


@settings(max_examples=80, deadline=None)
@given(films)
def test_midranks_equal_comparing_every_pair_with_ties(rows):
    labels, first, second = (np.array(column) for column in zip(*rows, strict=True))
    if min(labels.sum(), (1 - labels).sum()) < 2:
        return
    first, second = first / 4, second / 4
    areas, covariance = brute_force(labels, first, second)
    found = delong_difference(labels, first, second)
    a, b = delong_auc(labels, first), delong_auc(labels, second)
    assert (a.value, b.value) == pytest.approx(areas, abs=1e-12)
    assert found.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert a.value == auc(labels, first)
    assert delong_variance(labels, first)[1] == pytest.approx(covariance[0, 0], rel=1e-9)


def test_films_copied_within_a_patient_add_no_evidence():
    labels, s100b, _ = asah()
    once, copied = delong_auc(labels, s100b), [np.repeat(column, 3) for column in (labels, s100b)]
    thrice = delong_auc(*copied, np.repeat(np.arange(113), 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-3)
    assert delong_auc(*copied).low > once.low + 0.03  # what ignoring the patients would claim


@pytest.mark.parametrize("change", [lambda s: s, lambda s: s / 2, np.sqrt])
def test_models_that_rank_alike_differ_by_nothing_within_limits_that_stay_open(change):
    labels, s100b, _ = asah()
    found = delong_difference(labels, s100b, change(s100b))
    assert found.value == 0
    assert -0.05 < found.low < 0 < found.high < 0.05


def test_swapping_the_models_mirrors_the_difference():
    labels, s100b, wfns = asah()
    forward = delong_difference(labels, wfns, s100b)
    backward = delong_difference(labels, s100b, wfns)
    mirrored = (-backward.value, -backward.high, -backward.low)
    assert (forward.value, forward.low, forward.high) == pytest.approx(mirrored, abs=1e-12)


def test_classes_that_are_separated_perfectly_leave_newcombes_limits_of_the_patients():
    labels, scores = np.repeat([0, 1], 30), np.repeat([0.1, 0.9], 30)
    assert delong_auc(labels, scores) == newcombe_auc(1.0, 30, 30)
    ten = delong_auc(labels, scores, np.repeat(np.arange(20), 3))
    expected = newcombe_auc(1.0, 10, 10)
    assert (ten.low, ten.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert delong_auc([0, 0, 1], [0.1, 0.3, 0.2]) == newcombe_auc(0.5, 1, 2)


def test_without_a_class_there_is_no_value():
    found = delong_auc([1, 1], [0.2, 0.4])
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_it_covers_an_auc_near_1():
    rng, true, held = np.random.default_rng(3), 0.97, 0
    labels, shift = np.repeat([0, 1], 40), math.sqrt(2) * norm.ppf(true)
    for _ in range(500):
        interval = delong_auc(labels, norm.cdf(rng.normal(shift * labels)))
        held += interval.low <= true <= interval.high
    assert 0.92 <= held / 500 <= 0.98


def test_missing_scores_are_refused():
    with pytest.raises(ValueError, match="found nan"):
        delong_difference([0, 1], [0.1, 0.2], [0.1, math.nan])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        delong_auc([0, 1], [0.1, 0.2], confidence=95)
