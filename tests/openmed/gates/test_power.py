import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from openmed.errors import BadInput
from openmed.gates.power import auc_floor, films_for_margin, proportion_floor
from openmed.metrics.classification import auc
from openmed.metrics.paired_proportions import tango
from openmed.metrics.score_intervals import Interval, newcombe_auc, wilson


def binomial_power(floor, films, true, confidence=0.95):
    """Every outcome in turn: which of them the limit of Wilson's interval would let pass."""
    passing = [k for k in range(films + 1) if wilson(k, films, confidence).low >= floor - 1e-12]
    return binom.pmf(passing, films, true).sum()


@pytest.mark.parametrize(("floor", "films"), [(0.9, 48), (0.9, 234), (0.85, 100), (0.5, 12)])
def test_the_power_of_a_floor_equals_going_through_every_outcome(floor, films):
    found = proportion_floor(floor, films, 0.95)
    assert found.power == pytest.approx(binomial_power(floor, films, 0.95), abs=1e-10)
    assert binomial_power(floor, films, found.value_needed) == pytest.approx(0.8, abs=1e-8)


@pytest.mark.parametrize(("floor", "true", "power"), [(0.9, 0.96, 0.8), (0.8, 0.9, 0.9), (0.5, 0.8, 0.8)])
def test_from_the_films_needed_on_the_power_stays(floor, true, power):
    needed = proportion_floor(floor, 50, true, power=power).films_needed
    assert binomial_power(floor, needed - 1, true) < power
    for films in (needed, needed + 1, needed + 7, needed + 30):
        assert binomial_power(floor, films, true) >= power


def test_a_simulated_test_shows_the_floor_as_often_as_stated():
    rng, runs = np.random.default_rng(4), 4000
    found = proportion_floor(0.9, 120, 0.95)
    shown = [wilson(int(k), 120).low >= 0.9 for k in rng.binomial(120, 0.95, runs)]
    assert np.mean(shown) == pytest.approx(found.power, abs=3 * math.sqrt(0.25 / runs))


def test_too_few_films_cannot_show_the_floor_even_with_a_perfect_model():
    found = proportion_floor(0.9, 34, 1.0)
    assert wilson(34, 34).low < 0.9 <= wilson(35, 35).low
    assert math.isnan(found.value_needed)
    assert (found.power, found.films_needed) == (0, 35)
    assert found.sentence == (
        "With 34 films with the finding, not even a perfect sensitivity would show 0.90; "
        "for a true sensitivity of 1.00 about 35 would do."
    )
    assert found.to_json()["value_needed"] is None


def test_a_floor_that_the_model_does_not_reach_is_never_shown():
    found = proportion_floor(0.9, 200, 0.88, name="specificity", kind="films without the finding")
    assert found.films_needed is None
    assert found.sentence == (
        "With 200 films without the finding, a true specificity of at least 0.955 would be needed to show "
        "0.90 in 4 of 5 such tests; for a true specificity of 0.88 no realistic number of films would do."
    )
    assert binomial_power(0.9, 200, 0.954) < 0.8 <= binomial_power(0.9, 200, 0.955)


def test_the_sentence_names_a_value_that_is_enough():
    found = proportion_floor(0.9, 48, 0.95)
    assert found.sentence == (
        "With 48 films with the finding, a true sensitivity of at least 0.996 would be needed to show 0.90 "
        "in 4 of 5 such tests; for a true sensitivity of 0.95 about 254 would do."
    )
    assert binomial_power(0.9, 48, 0.996) >= 0.8


def test_the_measured_auc_that_is_needed_has_newcombe_s_limit_at_the_floor():
    found = auc_floor(0.9, 60, 40, 0.95)
    rng, runs = np.random.default_rng(6), 1500
    labels, shift = np.repeat([0, 1], [40, 60]), math.sqrt(2) * norm.ppf(found.value_needed)
    shown = [
        newcombe_auc(auc(labels, norm.cdf(rng.normal(shift * labels))), 60, 40).low >= 0.9
        for _ in range(runs)
    ]
    # A normal approximation: near an AUC of 1 the measured values are skewed.
    assert np.mean(shown) == pytest.approx(0.8, abs=0.06)
    assert auc_floor(0.9, 60, 40, found.value_needed).power == pytest.approx(0.8, abs=1e-6)


def test_the_films_needed_for_an_auc_keep_the_ratio_of_the_classes():
    needed = auc_floor(0.9, 60, 40, 0.95).films_needed
    larger, smaller = (auc_floor(0.9, 3 * k, 2 * k, 0.95).power for k in (needed // 5 + 1, needed // 5 - 1))
    assert smaller < 0.8 <= larger


def test_a_tiny_test_cannot_show_an_auc():
    found = auc_floor(0.95, 5, 5, 1.0)
    assert math.isnan(found.value_needed)
    assert found.power == 0
    assert found.sentence.startswith(
        "With 10 films (5 with the finding), not even a perfect AUC would show 0.95"
    )
    assert auc_floor(0.9, 50, 50, 0.0).power == 0
    assert auc_floor(0.9, 50, 50, 1.0).power == 1


def test_an_easy_floor_needs_the_fewest_films_and_a_power_of_one_half_is_possible():
    assert auc_floor(0.01, 500, 500, 0.99).films_needed == 2
    even = auc_floor(0.9, 60, 40, 0.95, power=0.5).value_needed
    assert newcombe_auc(even, 60, 40).low == pytest.approx(0.9, abs=1e-9)
    assert even < auc_floor(0.9, 60, 40, 0.95).value_needed


def test_without_a_plan_only_what_is_needed_is_told():
    found = proportion_floor(0.9, 120)
    assert found.value_needed == proportion_floor(0.9, 120, 0.95).value_needed
    assert found.films_needed is None and found.to_json()["power"] is None
    assert found.sentence.endswith("would be needed to show 0.90 in 4 of 5 such tests.")
    area = auc_floor(0.9, 60, 40)
    assert area.value_needed == auc_floor(0.9, 60, 40, 0.95).value_needed
    assert area.sentence.endswith("would be needed to show 0.90 in 4 of 5 such tests.")


def test_with_the_films_for_a_margin_an_equal_model_is_shown_in_four_of_five_tests():
    rng, discordant = np.random.default_rng(3), 0.06
    narrow = tango(9, 9, 300)
    films = films_for_margin(narrow, 0.05, 300)
    counts = rng.multinomial(films, [discordant / 2, discordant / 2, 1 - discordant], size=1500)
    shown = np.mean([tango(int(b), int(c), films).low >= -0.05 for b, c, _ in counts])
    assert shown == pytest.approx(0.8, abs=0.04)
    assert films_for_margin(Interval(0.0, -0.2, 0.2), 0.05, 300) > 8 * films_for_margin(narrow, 0.05, 300)
    assert films_for_margin(Interval(0.0, math.nan, math.nan), 0.05, 300) is None
    assert films_for_margin(Interval(0.0, -0.9, 0.9), 0.001, 300) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proportion_floor(0.9, 10, 0.95, power=0.3), "below one half"),
        (lambda: proportion_floor(1.0, 10, 0.9), "floor must be between 0 and 1, found 1.0"),
        (lambda: proportion_floor(0.9, 10, math.nan), "expected must be between 0 and 1, found nan"),
        (lambda: proportion_floor(0.9, 0, 0.95), "at least one film of each kind, found 0"),
        (lambda: auc_floor(0.9, 10, 0, 0.95), "at least one film of each kind, found 0"),
    ],
)
def test_impossible_plans_are_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()
