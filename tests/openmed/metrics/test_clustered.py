import math

import numpy as np
import pytest
from sklearn.metrics import recall_score

from openmed.metrics.clustered import clustered_share, critical_t, design_effect, operating_shares
from openmed.metrics.score_intervals import wilson


def test_of_one_film_a_patient_there_is_no_design_effect():
    rng = np.random.default_rng(0)
    found = rng.random(80) < 0.2
    assert design_effect(found - found.mean(), np.arange(80), found) == 1
    assert clustered_share(found, np.arange(80)) == wilson(int(found.sum()), 80)


def test_ten_patients_with_thirty_films_each_count_as_ten_where_no_error_is_seen():
    found = clustered_share(np.ones(300, bool), np.repeat(np.arange(10), 30))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(wilson(10, 10).low) == pytest.approx(0.722, abs=5e-4)


def test_films_of_a_patient_that_say_the_same_count_once():
    rng = np.random.default_rng(1)
    alike = np.repeat(rng.random(200) < 0.3, 5)
    once = wilson(int(alike.sum()) // 5, 200)
    found = clustered_share(alike, np.repeat(np.arange(200), 5))
    assert (found.low, found.high) == pytest.approx((once.low, once.high), abs=1e-3)


def test_with_many_telling_patients_the_effect_is_that_of_the_measured_variance():
    rng = np.random.default_rng(2)
    films, patients = np.repeat(rng.random(2000), 4), np.repeat(np.arange(2000), 4)
    found = rng.random(8000) < films
    share, sums = found.mean(), found.reshape(2000, 4).sum(1)
    expected = sums.var(ddof=1) * 2000 / (8000 * share * (1 - share))
    assert design_effect(found - share, patients, found) == pytest.approx(expected, rel=0.01)


def test_few_telling_patients_draw_the_effect_to_the_worst_case():
    # One missed film of one patient among forty with ten films: measured, films would be independent.
    missed, patients = np.zeros(400), np.repeat(np.arange(40), 10)
    missed[0] = 1
    assert design_effect(missed - missed.mean(), patients, missed == 1) == pytest.approx(1 / 3 + 10 * 2 / 3)


def test_the_order_of_the_films_and_the_names_of_the_patients_do_not_matter():
    rng = np.random.default_rng(3)
    patients, found = rng.integers(0, 30, 90), rng.random(90) < 0.2
    order = rng.permutation(90)
    names = np.array([f"p{99 - number}" for number in patients])
    shuffled = clustered_share(found[order], names[order])
    before = clustered_share(found, patients)
    assert (shuffled.low, shuffled.high) == pytest.approx((before.low, before.high), abs=1e-12)


@pytest.mark.parametrize(("films", "agreement"), [(1, 0.0), (3, 0.5), (10, 0.5)])
def test_lower_limits_of_clustered_shares_lie_above_the_truth_seldom(films, agreement):
    rng, above, true = np.random.default_rng(4), 0, 0.9
    patients = np.repeat(np.arange(60), films)
    for _ in range(400):
        own = (
            rng.beta(true * (1 / agreement - 1), (1 - true) * (1 / agreement - 1), 60) if agreement else true
        )
        found = rng.random(60 * films) < np.broadcast_to(own, 60).repeat(films)
        above += clustered_share(found, patients).low > true
    assert above / 400 <= 0.05


def test_sensitivity_and_specificity_are_those_of_scikit_learn_with_wilsons_limits():
    has = np.array([True] * 6 + [False] * 4)
    flagged = np.array([True] * 5 + [False] * 4 + [True])
    found = operating_shares(has, flagged, np.arange(10))
    assert found == {"sensitivity": wilson(5, 6), "specificity": wilson(3, 4)}
    assert found["sensitivity"].value == recall_score(has, flagged)
    assert found["specificity"].value == recall_score(~has, ~flagged)
    without = operating_shares(has[:6], flagged[:6], np.arange(6))["specificity"]
    assert all(map(math.isnan, (without.value, without.low, without.high)))


def test_a_spread_known_from_few_patients_asks_for_more():
    assert critical_t(0.95, 5) == pytest.approx(2.776, abs=1e-3)
    assert critical_t(0.95, 1) == math.inf


def test_missing_patients_are_refused():
    with pytest.raises(ValueError, match="give one a film"):
        clustered_share([True, False], ["a"])
    assert math.isnan(clustered_share([], []).value)
