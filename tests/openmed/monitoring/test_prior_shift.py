"""The estimated share of a finding: against Saerens' iterations, and against what was drawn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from openmed.metrics.calibration_error import log_odds
from openmed.monitoring.prior_shift import PRIOR_FILMS, Known, share_of


def drawn(count, share, seed):
    """Probabilities that hold where half of the films have the finding."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < share
    return truth, 1 / (1 + np.exp(-rng.normal(np.where(truth, 2, -2), 2)))


def looped(scores, before, steps=5000):
    """Saerens, Latinne and Decaestecker's iterations, with the films that the share of before counts as."""
    share = before
    for _ in range(steps):
        having = scores * share / before
        posterior = having / (having + (1 - scores) * (1 - share) / (1 - before))
        share = (posterior.sum() + PRIOR_FILMS * before) / (len(scores) + PRIOR_FILMS)
    return share


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_it_is_where_expectation_maximisation_ends(share):
    _, scores = drawn(400, share, seed=1)
    ratios = np.exp(log_odds(scores))
    found = share_of(ratios, np.ones((1, 400)), np.array([0.5]))
    assert found[0] == pytest.approx(looped(scores, 0.5), abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_it_is_the_share_that_was_drawn(share):
    truth, scores = drawn(20_000, share, seed=2)
    found = share_of(np.exp(log_odds(scores)), np.ones((1, len(scores))), np.array([0.5]))
    assert found[0] == pytest.approx(truth.mean(), abs=0.01)


def test_films_that_count_twice_are_two_films():
    _, scores = drawn(60, 0.3, seed=3)
    ratios, weights = np.exp(log_odds(scores)), np.arange(60) % 3.0
    once = share_of(ratios, weights[None], np.array([0.5]))
    twice = share_of(
        np.repeat(ratios, weights.astype(int)), np.ones((1, int(weights.sum()))), np.array([0.5])
    )
    assert once == pytest.approx(twice, abs=1e-9)


def test_what_other_calibration_films_could_have_given_spreads_as_redrawn_ones_do():
    """The slope of the map over resamples of one set, and over sets that are drawn anew."""
    labels = np.arange(300) % 2

    def slope(seed):
        scores = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(4 * labels - 2, 2)))
        model = LogisticRegression(C=1e6).fit(log_odds(scores)[:, None], labels)
        return model.coef_[0, 0], scores

    redrawn = np.std([slope(seed)[0] for seed in range(200)])
    resampled = [Known(labels, slope(seed)[1], np.arange(300)).maps(200, 1)[:, 0].std() for seed in range(5)]
    assert np.mean(resampled) == pytest.approx(redrawn, rel=0.25)


def test_classes_that_lie_apart_still_have_a_map():
    labels = np.arange(20) % 2
    maps = Known(labels, np.where(labels, 0.99, 0.01), np.arange(20)).maps(50, 1)
    assert np.isfinite(maps).all() and np.abs(maps[:, 0]).max() < 1
