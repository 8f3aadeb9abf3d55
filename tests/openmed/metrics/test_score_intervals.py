import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from openmed.metrics.classification import auc
from openmed.metrics.score_intervals import (
    Interval,
    critical_value,
    newcombe_auc,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Stat Med 1998;17:857-872, table I, score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(successes, n, low, high):
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy_and_holds_its_value(counts, confidence):
    interval = wilson(*counts, confidence)
    expected = binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_wilson_of_nothing_is_nan():
    assert all(math.isnan(limit) for limit in (wilson(0, 0).value, wilson(0, 0).low, wilson(0, 0).high))


@pytest.mark.parametrize("successes", [-1, 6])
def test_wilson_refuses_impossible_counts(successes):
    with pytest.raises(ValueError, match=f"between 0 and n = 5, found {successes}"):
        wilson(successes, 5)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_an_impossible_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        critical_value(confidence)


def test_newcombe_gives_the_limits_another_package_publishes():
    # The vignette of the R package SingleCaseES (method 5); its root finder stops at 6e-5.
    without, having = [20, 20, 26, 25, 22, 23], [28, 25, 24, 27, 30, 30, 29]
    area = auc([0] * 6 + [1] * 7, np.array(without + having) / 100)
    interval = newcombe_auc(area, positives=7, negatives=6)
    assert interval.value == pytest.approx(0.9166667, abs=1e-7)
    assert (interval.low, interval.high) == pytest.approx((0.5973406, 0.9860176), abs=5e-5)


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(1, 2000), st.integers(1, 2000))
def test_newcombe_limits_solve_the_score_equation(area, positives, negatives):
    interval = newcombe_auc(area, positives, negatives)
    assert 0 <= interval.low <= area <= interval.high <= 1
    extra = (positives + negatives) / 2 - 1
    for limit in (interval.low, interval.high):
        shape = 1 + extra * (1 - limit) / (2 - limit) + extra * limit / (1 + limit)
        variance = limit * (1 - limit) * shape / (positives * negatives)
        assert (area - limit) ** 2 == pytest.approx(norm.ppf(0.975) ** 2 * variance, abs=1e-9)


def test_perfect_separation_leaves_room_that_shrinks_with_the_number_of_films():
    lows = [newcombe_auc(1.0, films, films).low for films in (3, 20, 200, 2000)]
    assert lows == sorted(lows)
    assert [round(low, 3) for low in lows] == [0.501, 0.899, 0.990, 0.999]
    assert newcombe_auc(1.0, 20, 20).high == 1.0
    assert newcombe_auc(0.0, 20, 20).high == pytest.approx(1 - lows[1])


def test_newcombe_covers_the_true_auc_of_small_excellent_tests():
    rng, true_auc, films = np.random.default_rng(5), 0.98, 20
    shift = math.sqrt(2) * norm.ppf(true_auc)
    labels = np.repeat([0, 1], films)
    held = 0
    for _ in range(1000):
        scores = norm.cdf(rng.normal(shift * labels))
        interval = newcombe_auc(auc(labels, scores), films, films)
        held += interval.low <= true_auc <= interval.high
    assert held / 1000 >= 0.93


@pytest.mark.parametrize(("area", "positives", "negatives"), [(math.nan, 5, 5), (0.9, 0, 5), (0.9, 5, 0)])
def test_newcombe_without_a_value_or_a_class_is_nan(area, positives, negatives):
    assert math.isnan(newcombe_auc(area, positives, negatives).low)


def test_newcombe_refuses_an_impossible_auc():
    with pytest.raises(ValueError, match=r"AUC must be in \[0, 1\], found 1.5"):
        newcombe_auc(1.5, 5, 5)


def test_an_interval_survives_json_with_nan_as_null():
    written = Interval(np.float64(0.5), 0.25, math.nan).to_json()
    assert written == {"value": 0.5, "low": 0.25, "high": None}
    assert type(written["value"]) is float
    read = Interval.from_json(written)
    assert (read.value, read.low) == (0.5, 0.25)
    assert math.isnan(read.high)
