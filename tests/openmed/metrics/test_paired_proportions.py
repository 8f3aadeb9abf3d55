import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from openmed.metrics.paired_proportions import _variance, compare_flags, tango


@pytest.mark.parametrize(
    ("only_first", "only_second", "n", "confidence", "low", "high", "decimals"),
    [
        # Fagerland, Lydersen and Laake, Stat Med 2014;33:2850-2875: airway hyper-responsiveness.
        (1, 7, 21, 0.95, -0.517, -0.026, 3),
        # By scoreci.mp of the R package PropCIs.
        (28, 25, 618, 0.90, -0.0148, 0.0247, 4),
    ],
)
def test_it_gives_the_published_limits(only_first, only_second, n, confidence, low, high, decimals):
    interval = tango(only_first, only_second, n, confidence)
    assert (round(interval.low, decimals), round(interval.high, decimals)) == (low, high)


counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60)).filter(any)


def fitted_statistic(b, c, n, difference):
    """The score statistic with the share of c found by maximising the likelihood itself."""

    def minus_likelihood(share):
        cells = ((b, share + difference), (c, share), (n - b - c, 1 - 2 * share - difference))
        return -sum(count * math.log(max(cell, 1e-300)) for count, cell in cells if count)

    edges = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(minus_likelihood, bounds=edges, method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * difference) / math.sqrt(n * (2 * share + difference - difference**2))


@settings(max_examples=60, deadline=None)
@given(counts)
def test_a_likelihood_maximised_directly_rejects_at_the_limits(cells):
    b, c, concordant = cells
    n = b + c + concordant
    interval = tango(b, c, n)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    for limit, expected in ((interval.low, norm.ppf(0.975)), (interval.high, -norm.ppf(0.975))):
        if abs(limit) < 0.999:
            assert fitted_statistic(b, c, n, limit) == pytest.approx(expected, abs=2e-3)
            score = (b - c - n * limit) / np.sqrt(n * _variance(b, c, n, limit))
            assert score == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(counts)
def test_swapping_the_models_mirrors_the_interval(cells):
    b, c, concordant = cells
    n = b + c + concordant
    forward, backward = tango(b, c, n), tango(c, b, n)
    assert (forward.value, forward.low, forward.high) == (-backward.value, -backward.high, -backward.low)


def test_models_that_always_agree_may_still_differ_a_little():
    z2 = norm.ppf(0.975) ** 2
    interval = tango(0, 0, 50)
    assert interval.value == 0
    assert interval.high == -interval.low == pytest.approx(z2 / (50 + z2))


def test_models_that_never_agree_reach_the_end():
    interval = tango(20, 0, 20)
    z2 = norm.ppf(0.975) ** 2
    assert (interval.value, interval.high) == (1, 1)
    assert interval.low == pytest.approx((20 - z2) / (20 + z2))


def test_it_covers_the_true_difference_of_small_sets():
    rng, held = np.random.default_rng(1), 0
    for b, c, _ in rng.multinomial(40, [0.08, 0.04, 0.88], size=800):
        interval = tango(int(b), int(c), 40)
        held += interval.low <= 0.04 <= interval.high
    assert 0.93 <= held / 800 <= 0.98


def test_films_copied_within_a_patient_add_no_evidence():
    labels, first, second = np.ones(60, int), np.ones(60, int), np.ones(60, int)
    first[:4], second[4:10] = 0, 0
    once = compare_flags(labels, first, second)["sensitivity"]
    copied = [np.repeat(column, 5) for column in (labels, first, second, np.arange(60))]
    found = compare_flags(*copied)["sensitivity"]
    assert (found.low, found.high) == pytest.approx((once.low, once.high), abs=0.01)
    ignoring = compare_flags(*copied[:3])["sensitivity"]
    assert ignoring.low > once.low + 0.03


def test_films_that_never_disagree_count_as_patients():
    flags = np.ones(80, int)
    found = compare_flags(flags, flags, flags, np.repeat(np.arange(8), 10))["sensitivity"]
    assert (found.low, found.high) == pytest.approx((tango(0, 0, 8).low, tango(0, 0, 8).high))


def test_flags_are_compared_within_each_class():
    labels = np.array([1] * 10 + [0] * 8)
    first = np.array([1] * 9 + [0] + [0] * 6 + [1] * 2)
    second = np.array([1] * 6 + [0] * 3 + [1] + [0] * 7 + [1])
    result = compare_flags(labels, first, second)
    sensitivity, specificity = result["sensitivity"], result["specificity"]
    assert sensitivity == tango(3, 1, 10)
    assert specificity == tango(0, 1, 8)
    assert specificity.value == pytest.approx(-1 / 8)


def test_without_the_class_there_is_no_value():
    found = compare_flags([1, 1], [1, 0], [1, 1])["specificity"]
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_impossible_counts_are_refused():
    for b, c, n in ((-1, 0, 5), (3, 3, 5)):
        with pytest.raises(ValueError, match="impossible"):
            tango(b, c, n)
    with pytest.raises(ValueError, match="2 labels but 3 and 2 flags"):
        compare_flags([0, 1], [0, 1, 1], [0, 1])
