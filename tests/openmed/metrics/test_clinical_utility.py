import json
import math

import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.metrics.classification import npv, ppv
from openmed.metrics.clinical_utility import PREVALENCES, at_prevalence, net_benefit_gain
from openmed.metrics.clustered import operating_shares
from openmed.metrics.score_intervals import Interval, wilson

NAN = math.nan


def point(value):
    return Interval(value, value, value)


def test_at_the_prevalence_of_the_films_it_is_what_was_counted():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    flags = np.where(rng.random(400) < 0.85, labels, 1 - labels)
    sensitivity, specificity = flags[labels == 1].mean(), (1 - flags[labels == 0]).mean()
    found = at_prevalence(point(sensitivity), point(specificity), labels.mean())
    assert found.ppv.value == pytest.approx(ppv(labels, flags, 0.5))
    assert found.npv.value == pytest.approx(npv(labels, flags, 0.5))
    assert found.flagged.value == pytest.approx(1000 * flags.mean())
    assert found.missed.value == pytest.approx(1000 * np.mean(labels & (1 - flags)))


def test_a_textbook_case():
    # 90 % and 80 % at 10 %: of 1,000 films 90 are found, 10 missed and 180 flagged in vain.
    found = at_prevalence(point(0.9), point(0.8), 0.1)
    assert (found.flagged.value, found.missed.value) == pytest.approx((270, 10))
    assert (found.ppv.value, found.npv.value) == pytest.approx((1 / 3, 720 / 730))


@pytest.mark.parametrize("prevalence", PREVALENCES)
def test_no_pair_within_the_intervals_lies_outside_the_limits(prevalence):
    sensitivity, specificity = Interval(0.93, 0.88, 0.96), Interval(0.85, 0.79, 0.9)
    found = at_prevalence(sensitivity, specificity, prevalence)
    for se in np.linspace(0.88, 0.96, 9):
        for sp in np.linspace(0.79, 0.9, 9):
            inner = at_prevalence(point(se), point(sp), prevalence)
            for name in ("ppv", "npv", "flagged", "missed"):
                interval = getattr(found, name)
                assert interval.low - 1e-9 <= getattr(inner, name).value <= interval.high + 1e-9
    for name in ("ppv", "npv", "flagged", "missed"):
        interval = getattr(found, name)
        assert interval.low < interval.value < interval.high


def test_the_limits_hold_at_least_as_often_as_those_given():
    rng, held, runs = np.random.default_rng(5), np.zeros(4), 1500
    truth = at_prevalence(point(0.9), point(0.8), 0.1)
    for found, quiet in zip(rng.binomial(150, 0.9, runs), rng.binomial(120, 0.8, runs), strict=True):
        measured = at_prevalence(wilson(int(found), 150), wilson(int(quiet), 120), 0.1)
        for k, name in enumerate(("ppv", "npv", "flagged", "missed")):
            interval = getattr(measured, name)
            held[k] += interval.low - 1e-9 <= getattr(truth, name).value <= interval.high + 1e-9
    assert np.all(held / runs >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs))


def test_nan_and_an_empty_side_stay_nan():
    missing = at_prevalence(point(NAN), point(0.9), 0.1)
    for interval in (missing.ppv, missing.npv, missing.flagged, missing.missed):
        assert math.isnan(interval.value) and math.isnan(interval.low) and math.isnan(interval.high)
    unknown_limits = at_prevalence(Interval(0.9, NAN, NAN), point(0.9), 0.1)
    assert unknown_limits.ppv.value > 0 and math.isnan(unknown_limits.ppv.low)
    silent = at_prevalence(point(0.0), point(1.0), 0.1)
    assert math.isnan(silent.ppv.value)
    assert (silent.npv.value, silent.flagged.value, silent.missed.value) == (0.9, 0, 100)
    content = missing.to_json()
    assert content["ppv"] == {"value": None, "low": None, "high": None}
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize("prevalence", [0.0, 1.0, 10, NAN])
def test_an_impossible_prevalence_is_refused(prevalence):
    with pytest.raises(BadInput, match="prevalence must be above 0 and below 1"):
        at_prevalence(point(0.9), point(0.9), prevalence)


def shares(sensitivity, specificity, half=0.0):
    return [Interval(value, value - half, value + half) for value in (sensitivity, specificity)]


def by_counting(labels, flags, chance):
    """Net benefit of the model and of flagging all, as Vickers and Elkin write it."""
    n, odds = len(labels), chance / (1 - chance)
    true, false = np.sum(flags & (labels == 1)), np.sum(flags & (labels == 0))
    return true / n - false / n * odds, labels.sum() / n - (1 - labels).sum() / n * odds


@pytest.mark.parametrize("chance", [0.05, 0.2, 0.5, 0.8])
def test_the_gain_at_the_prevalence_of_the_films_equals_counting(chance):
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
def test_an_impossible_threshold_probability_is_refused(chance):
    with pytest.raises(BadInput, match="threshold probability must be above 0 and below 1"):
        net_benefit_gain(*shares(0.9, 0.9), chance, 0.1)
    with pytest.raises(BadInput, match="a prevalence must be above 0 and below 1"):
        net_benefit_gain(*shares(0.9, 0.9), 0.1, chance)
