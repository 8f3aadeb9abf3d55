import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from openmed.metrics.classification import auc
from openmed.metrics.delong import delong_auc, delong_difference
from openmed.metrics.score_intervals import critical_value

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


def test_it_gives_the_interval_that_proc_publishes():
    labels, s100b, wfns = asah()
    interval = delong_auc(labels, s100b)
    assert interval.value == pytest.approx(0.731368563685637, abs=1e-14)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.6301, 0.8326)
    assert delong_auc(labels, wfns).value == pytest.approx(0.823678861788618, abs=1e-14)


def test_it_gives_the_paired_test_that_proc_publishes():
    labels, s100b, wfns = asah()
    found = delong_difference(labels, wfns, s100b)
    assert (found.first, found.second) == pytest.approx((0.823678861788618, 0.731368563685637), abs=1e-14)
    assert found.p_value == pytest.approx(0.0271757822291882, rel=1e-8)
    limits = found.difference.low, found.difference.high
    assert limits == pytest.approx((0.0104061769564846, 0.174214419249478), rel=1e-8)
    error = (limits[1] - limits[0]) / 2 / critical_value(0.95)
    assert found.difference.value / error == pytest.approx(2.20898359144091, rel=1e-8)


def brute_force(labels, patients, *scores):
    """AUCs and their covariance over patients by comparing every film with every other."""
    having, without = labels == 1, labels == 0
    areas, parts = [], []
    for values in scores:
        mine, others = values[having][:, None], values[without][None, :]
        won = (mine > others) + 0.5 * (mine == others)
        areas.append(won.mean())
        sums = np.zeros((2, len(set(patients))))
        for row, share in zip(np.flatnonzero(having), won.mean(axis=1), strict=True):
            sums[0, patients[row]] += share - won.mean()
        for row, share in zip(np.flatnonzero(without), won.mean(axis=0), strict=True):
            sums[1, patients[row]] += share - won.mean()
        parts.append(sums)
    m, n = having.sum(), without.sum()
    i, i10, i01 = len(set(patients)), len(set(patients[having])), len(set(patients[without]))
    factors = (i10 / (i10 - 1) / m**2, i01 / (i01 - 1) / n**2, i / (i - 1) / (m * n))
    covariance = np.array(
        [
            [
                factors[0] * a[0] @ b[0] + factors[1] * a[1] @ b[1] + factors[2] * (a[0] @ b[1] + a[1] @ b[0])
                for b in parts
            ]
            for a in parts
        ]
    )
    return areas, covariance


films = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 4), st.integers(0, 6)),
    min_size=4,
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(films, st.booleans())
def test_midranks_equal_comparing_every_pair_with_ties_and_patients(rows, clustered):
    labels, first, second, patients = (np.array(column) for column in zip(*rows, strict=True))
    if not clustered:
        patients = np.arange(len(labels))
    patients = np.unique(patients, return_inverse=True)[1]
    if any(len(set(patients[labels == side])) < 2 for side in (0, 1)):
        return
    first, second = first / 4, second / 4
    areas, covariance = brute_force(labels, patients, first, second)
    found = delong_difference(labels, first, second, patients if clustered else None)
    assert (found.first, found.second) == pytest.approx(areas, abs=1e-12)
    assert found.first == auc(labels, first)
    variance = max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0)
    if not math.isnan(found.difference.low):
        half = norm.ppf(0.975) * math.sqrt(variance)
        value = areas[0] - areas[1]
        limits = found.difference.low, found.difference.high
        assert limits == pytest.approx((value - half, value + half), abs=1e-7)
    own = delong_auc(labels, first, patients if clustered else None)
    half = norm.ppf(0.975) * math.sqrt(max(covariance[0, 0], 0))
    limits = max(areas[0] - half, 0), min(areas[0] + half, 1)
    assert (own.low, own.high) == pytest.approx(limits, abs=1e-7)


def test_films_copied_within_a_patient_add_no_evidence():
    labels, s100b, wfns = asah()
    copied = [np.repeat(column, 3) for column in (labels, wfns, s100b, np.arange(113))]
    once, thrice = delong_difference(labels, wfns, s100b), delong_difference(*copied)
    assert thrice.p_value == pytest.approx(once.p_value, rel=1e-10)
    assert thrice.difference.low == pytest.approx(once.difference.low, abs=1e-12)
    assert delong_difference(*copied[:3]).p_value < 0.001  # what ignoring the patients would claim


@pytest.mark.parametrize("change", [lambda s: s, lambda s: s / 2, np.sqrt])
def test_models_that_rank_alike_do_not_differ(change):
    labels, s100b, _ = asah()
    found = delong_difference(labels, s100b, change(s100b))
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.p_value == 1


def test_a_difference_without_any_variance_has_no_limits():
    found = delong_difference([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1])
    assert found.difference.value == 1
    assert all(map(math.isnan, (found.difference.low, found.difference.high, found.p_value)))


def test_the_interval_stays_within_0_and_1():
    interval = delong_auc([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.5, 0.4, 0.8, 0.9])
    assert interval.low < interval.value < interval.high == 1


def test_without_a_class_or_with_one_patient_of_it_there_are_no_limits():
    assert all(map(math.isnan, (delong_auc([1, 1], [0.2, 0.4]).value, delong_auc([1, 1], [0.2, 0.4]).low)))
    single = delong_auc([0, 0, 1], [0.1, 0.3, 0.2])
    assert single.value == 0.5
    assert math.isnan(single.low) and math.isnan(single.high)


def test_on_the_scale_of_log_odds_it_covers_an_auc_near_1_and_the_plain_one_does_not():
    rng, true = np.random.default_rng(3), 0.97
    labels, shift, held = np.repeat([0, 1], 40), math.sqrt(2) * norm.ppf(true), np.zeros(2)
    for _ in range(500):
        scores = norm.cdf(rng.normal(shift * labels))
        for place, logit in enumerate((False, True)):
            interval = delong_auc(labels, scores, logit=logit)
            held[place] += interval.low <= true <= interval.high
    assert held[0] / 500 < 0.9 < 0.92 <= held[1] / 500 <= 0.98


def test_the_scale_of_log_odds_is_undone_again():
    labels, s100b, _ = asah()
    plain, interval = delong_auc(labels, s100b), delong_auc(labels, s100b, logit=True)
    odds = [math.log(limit / (1 - limit)) for limit in (interval.low, interval.value, interval.high)]
    slope = 1 / (plain.value * (1 - plain.value))
    assert odds[1] - odds[0] == pytest.approx(odds[2] - odds[1])
    assert odds[2] - odds[1] == pytest.approx((plain.high - plain.value) * slope)


def test_missing_scores_are_refused():
    with pytest.raises(ValueError, match="found nan"):
        delong_difference([0, 1], [0.1, 0.2], [0.1, math.nan])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        delong_auc([0, 1], [0.1, 0.2], confidence=95)
