"""Drawing films to label: as often as it is said, and narrower than by chance."""

import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.gates.spending import look_error, spent
from openmed.monitoring.label_sampling import draw, importance, strata
from openmed.monitoring.sampled_performance import performance


def scored(count=2000, share=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < share
    odds = rng.normal(np.where(truth, 3, -3), np.sqrt(6)) + np.log(share / (1 - share))
    return truth.astype(int), 1 / (1 + np.exp(-odds))


def plan(scores, films):
    sizes = importance(scores, float(scores.mean()), 0.1, scores)
    return strata(scores, sizes, films)


def test_films_are_in_the_sample_as_often_as_is_said():
    _, scores = scored(300)
    stratum, known = plan(scores, 40), np.zeros(300, bool)
    rng, taken = np.random.default_rng(1), np.zeros(300)
    for _ in range(2000):
        sample, probability = draw(stratum, rng.random(300), known, 40)
        assert sample.sum() == 40 == pytest.approx(probability.sum())
        taken += sample
    assert np.abs(taken / 2000 - probability).max() < 0.05


def test_asking_again_goes_on_where_the_last_sample_ended():
    """The greater of two probabilities is how often a film is in either sample."""
    _, scores = scored(300)
    first, second = plan(scores, 40), plan(scores, 60)
    rng, taken, said = np.random.default_rng(2), np.zeros(300), np.zeros(300)
    for _ in range(2000):
        turns = rng.random(300)
        sample, probability = draw(first, turns, np.zeros(300, bool), 40)
        again, more = draw(second, turns, sample, 60)
        assert (again & ~sample).sum() == 60
        taken += sample | again
        said += np.maximum(probability, more)
    assert np.abs(taken - said).max() / 2000 < 0.05


def test_the_intervals_are_narrower_than_those_of_films_by_chance():
    truth, scores = scored(20_000)
    rng, errors = np.random.default_rng(3), {"drawn": [], "chance": []}
    for _ in range(150):
        sample, probability = draw(plan(scores, 400), rng.random(20_000), np.zeros(20_000, bool), 400)
        by_chance = rng.choice(20_000, 400, replace=False)
        drawn = performance(truth[sample], scores[sample], np.flatnonzero(sample), 0.1, probability[sample])
        chance = performance(truth[by_chance], scores[by_chance], by_chance, 0.1)
        errors["drawn"].append(drawn["sensitivity"].value)
        errors["chance"].append(chance["sensitivity"].value)
    whole = performance(truth, scores, np.arange(20_000), 0.1)["sensitivity"].value
    assert np.mean(errors["drawn"]) == pytest.approx(whole, abs=0.01)
    assert np.std(errors["drawn"]) < 0.95 * np.std(errors["chance"])


def test_half_is_drawn_whatever_the_scores_promise():
    sizes = importance(np.array([0.0, 0.0, 0.5]), 0.2, 0.4, np.array([0.0, 0.0, 0.5]))
    assert sizes.min() >= 0.5 and sizes.mean() == pytest.approx(1)
    assert (importance(np.full(5, 0.5), 0.5, 0.4, np.full(5, 0.5)) == 1).all()


def test_more_films_than_there_are_cannot_be_asked_for():
    with pytest.raises(BadInput, match="only 2 of the latest films"):
        draw(np.zeros(3, int), np.array([0.1, 0.2, 0.3]), np.array([True, False, False]), 3)


@pytest.mark.parametrize("cut", [1, 7, 100, 250, 1000])
def test_all_looks_together_stay_within_the_rate_however_they_are_cut(cut):
    errors = [look_error(before, cut, 1000, 0.05) for before in range(0, 20_000, cut)]
    assert min(errors) > 0 and sum(errors) == pytest.approx(0.05 * 20 / 21)
    assert spent(1000, 1000) == 0.5 and spent(0, 1000) == 0 and spent(10**9, 1000) < 1


def test_a_look_at_no_new_film_still_costs():
    assert look_error(500, 0, 1000, 0.05) == look_error(500, 1, 1000, 0.05) > 0
