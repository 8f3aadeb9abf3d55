import math

import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.metrics.clustered import operating_shares
from openmed.metrics.net_benefit import net_benefit_gain
from openmed.metrics.score_intervals import NAN, Interval


def shares(sensitivity, specificity, half=0.0):
    return [Interval(value, value - half, value + half) for value in (sensitivity, specificity)]


def by_counting(labels, flags, chance):
    """Net benefit of the model and of flagging all, as Vickers and Elkin write it."""
    n, odds = len(labels), chance / (1 - chance)
    true, false = np.sum(flags & (labels == 1)), np.sum(flags & (labels == 0))
    return true / n - false / n * odds, labels.sum() / n - (1 - labels).sum() / n * odds


@pytest.mark.parametrize("chance", [0.05, 0.2, 0.5, 0.8])
def test_at_the_prevalence_of_the_films_it_equals_counting(chance):
    rng = np.random.default_rng(0)
    labels = (rng.random(120) < 0.3).astype(int)
    flags = rng.random(120) < 0.2 + 0.6 * labels
    found = net_benefit_gain(
        *operating_shares(labels == 1, flags, np.arange(120)).values(), chance, labels.mean()
    )
    model, everyone = by_counting(labels, flags, chance)
    assert found.value == pytest.approx(model - max(everyone, 0), abs=1e-12)


def test_a_model_as_good_as_a_coin_gains_nothing_where_flagging_all_and_none_are_equal():
    assert net_benefit_gain(*shares(0.5, 0.5), 0.1, 0.1).value == pytest.approx(0)
    # There it is Youden's index in small; a little to either side it is worse than flagging all, or none.
    assert net_benefit_gain(*shares(0.55, 0.5), 0.1, 0.1).value == pytest.approx(0.1 * 0.05)
    assert net_benefit_gain(*shares(0.55, 0.5), 0.05, 0.1).value < 0
    assert net_benefit_gain(*shares(0.55, 0.5), 0.2, 0.1).value < 0


def test_the_limits_cover_the_gain_of_the_population():
    rng, held, truth = np.random.default_rng(1), 0, net_benefit_gain(*shares(0.9, 0.8), 0.2, 0.1).value
    labels = np.repeat([0, 1], 60)
    for _ in range(800):
        flags = rng.random(120) < np.where(labels == 1, 0.9, 0.2)
        found = net_benefit_gain(*operating_shares(labels == 1, flags, np.arange(120)).values(), 0.2, 0.1)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 800 <= 0.98


def test_a_perfect_model_finds_the_prevalence_within_limits_that_stay_open():
    perfect = operating_shares([True] * 10 + [False] * 30, [True] * 10 + [False] * 30, np.arange(40))
    found = net_benefit_gain(*perfect.values(), 0.3, 0.25)
    assert found.value == found.high == 0.25
    assert found.low < 0.2


def test_a_missing_class_gives_no_number():
    found = net_benefit_gain(Interval(0.9, 0.8, 1.0), Interval(NAN, NAN, NAN), 0.1, 0.1)
    assert all(map(math.isnan, (found.value, found.low, found.high)))


@pytest.mark.parametrize("chance", [0.0, 1.0, 30, math.nan])
def test_an_impossible_probability_is_refused(chance):
    with pytest.raises(BadInput, match="threshold probability must be above 0 and below 1"):
        net_benefit_gain(*shares(0.9, 0.9), chance, 0.1)
    with pytest.raises(BadInput, match="a prevalence must be above 0 and below 1"):
        net_benefit_gain(*shares(0.9, 0.9), 0.1, chance)
