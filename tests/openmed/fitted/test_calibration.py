"""Probabilities after their repair, against scipy, scikit-learn and closed forms."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from openmed.dataset.sampling import resample_rows
from openmed.errors import BadInput
from openmed.fitted.calibration import (
    METHODS,
    Calibration,
    fit_calibration,
    log_odds,
    prior_correction,
    softmax,
)
from openmed.fitted.operating_point import choose_threshold

PARAMETRIC = ("platt", "temperature", "none")


def over_confident(classes, films=900, seed=0):
    """Labels, and the logits of a model that knows them but shouts and leans towards the last class."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.2, (films, classes)) + np.linspace(0.6, 0, classes)
    labels = np.array([rng.choice(classes, p=row) for row in scipy_softmax(true, axis=1)])
    return 2.5 * true + np.linspace(0, 1.5, classes), labels


class Margins(ClassifierMixin, BaseEstimator):
    """Hands logits that were computed before to scikit-learn."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 1] - X[:, 0]

    def predict(self, X):
        return self.classes_[X.argmax(1)]


def by_sklearn(method, logits, labels):
    frozen = FrozenEstimator(Margins().fit(logits, labels))
    # All films are fitted on and none held out: the estimator is frozen.
    return CalibratedClassifierCV(frozen, method=method, ensemble=False).fit(logits, labels)


def smoothed(labels, classes):
    """Platt's targets, one film at a time."""
    rows = []
    for label in labels:
        n = sum(labels == label)
        rows.append(
            [(n + 1) / (n + 2) if k == label else 1 / (n + 2) / (classes - 1) for k in range(classes)]
        )
    return np.array(rows)


def test_platt_for_two_classes_is_that_of_sklearn():
    logits, labels = over_confident(2)
    mine = fit_calibration("platt", logits, labels, (0, 0))
    new = np.random.default_rng(1).normal(0, 4, (200, 2))
    theirs = by_sklearn("sigmoid", logits, labels).predict_proba(new)
    np.testing.assert_allclose(mine.apply(new), theirs, atol=1e-5)


def test_a_temperature_is_that_of_sklearn_but_for_the_smoothed_targets():
    logits, labels = over_confident(2, films=20_000)
    mine = fit_calibration("temperature", logits, labels, (0, 0))
    assert mine.bias == (0, 0) and 1.5 < 1 / mine.scale < 4
    theirs = by_sklearn("temperature", logits, labels)
    # It takes a margin x for the logits -x and x: half the margin is meant.
    expected = theirs.calibrated_classifiers_[0].calibrators[0].beta_ * 2
    assert mine.scale == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_the_fit_is_the_optimum_that_a_blind_search_finds(method, classes):
    logits, labels = over_confident(classes, films=300)
    correction = np.linspace(-0.4, 0.3, classes)
    targets = smoothed(labels, classes)

    def loss(free):
        bias = np.append(free[1:], 0) if method == "platt" else 0
        return -np.mean(np.sum(targets * log_softmax(free[0] * (logits + correction) + bias, axis=1), axis=1))

    start = np.append(1, np.zeros(classes - 1))[: classes if method == "platt" else 1]
    found = minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).x
    mine = fit_calibration(method, logits, labels, correction)
    assert mine.scale == pytest.approx(found[0], rel=1e-5)
    bias = np.append(found[1:], 0) if method == "platt" else np.zeros(classes)
    np.testing.assert_allclose(mine.bias, bias - bias.mean(), atol=1e-5)
    assert mine.films == 300


@pytest.mark.parametrize("classes", [2, 4])
def test_isotonic_gives_each_film_what_sklearn_gives_it_against_the_rest(classes):
    logits, labels = over_confident(classes, films=1500)
    mine = fit_calibration("isotonic", logits, labels, np.zeros(classes))
    probabilities = scipy_softmax(logits, axis=1)
    least = 1 / (len(labels) + 2)
    alone = [
        np.clip(IsotonicRegression().fit_transform(probabilities[:, k], labels == k), least, 1 - least)
        for k in range(classes)
    ]
    expected = np.stack(alone, axis=1)
    np.testing.assert_allclose(mine.apply(logits), expected / expected.sum(axis=1, keepdims=True), atol=1e-9)


def test_log_odds_are_those_of_the_probabilities():
    logits = np.random.default_rng(3).normal(0, 3, (50, 4))
    probabilities = scipy_softmax(logits, axis=1)
    np.testing.assert_allclose(log_odds(logits), np.log(probabilities / (1 - probabilities)), atol=1e-9)


@pytest.mark.parametrize("strategy", ["over", "under", "weighted", "none"])
def test_balanced_training_and_correction_give_back_the_natural_shares(strategy):
    rng = np.random.default_rng(5)
    labels = rng.choice(3, 6000, p=[0.7, 0.22, 0.08])
    features = rng.normal(0, 1, (6000, 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[labels]
    rows = resample_rows(labels, strategy, 0)
    model = LogisticRegression(C=np.inf).fit(features[rows], labels[rows])
    counts = [np.bincount(part, minlength=3).tolist() for part in (labels, labels[rows])]
    logits = model.decision_function(features)
    repaired = Calibration.of_prior(prior_correction(*counts)).apply(logits)
    if strategy != "none":
        assert np.abs(softmax(logits).mean(axis=0) - [0.7, 0.22, 0.08]).max() > 0.1
    np.testing.assert_allclose(repaired.mean(axis=0), np.bincount(labels) / 6000, atol=0.01)
    natural = LogisticRegression(C=np.inf).fit(features, labels).predict_proba(features)
    assert np.abs(repaired - natural).mean() < 0.012


def test_the_correction_is_bayes_theorem():
    """Two normal densities whose posterior is known at any share of the classes."""
    x = np.linspace(-3, 4, 40)
    densities = np.stack([np.exp(-(x**2) / 2), np.exp(-((x - 1) ** 2) / 2)], axis=1)
    balanced, natural = densities * [0.5, 0.5], densities * [0.9, 0.1]
    repaired = Calibration.of_prior(prior_correction([900, 100], [500, 500])).apply(np.log(balanced))
    np.testing.assert_allclose(repaired, natural / natural.sum(axis=1, keepdims=True), atol=1e-12)


def test_unchanged_shares_need_no_correction():
    assert prior_correction([10, 30, 7], [10, 30, 7]) == (0, 0, 0)
    assert prior_correction([10, 30], [20, 60]) == (0, 0)


@pytest.mark.parametrize(("before", "after"), [([0, 5], [0, 5]), ([1, 9], [0, 9]), ([3, 4], [3, 4, 5])])
def test_a_class_without_rows_has_no_correction(before, after):
    with pytest.raises(BadInput, match="each class needs training films"):
        prior_correction(before, after)


@pytest.mark.parametrize("method", PARAMETRIC)
def test_for_two_classes_the_films_flagged_at_a_sensitivity_stay_the_same(method):
    logits, labels = over_confident(2, films=400)
    plain = softmax(logits)[:, 1]
    mine = fit_calibration(method, logits, labels, (0.3, -0.5)).apply(logits)[:, 1]
    for target in (0.8, 0.95, 1.0):
        flagged = [scores >= choose_threshold(labels, scores, target) for scores in (plain, mine)]
        np.testing.assert_array_equal(*flagged)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_separated_films_give_as_steep_a_map_as_they_can_vouch_for(method):
    labels = np.repeat([0, 1], [20, 20])
    logits = np.stack([np.zeros(40), np.where(labels == 1, 5.0, -5.0)], axis=1)
    fitted = fit_calibration(method, logits, labels, (0, 0)).apply(logits)
    np.testing.assert_allclose(fitted[np.arange(40), labels], 21 / 22, atol=1e-6)


def test_films_that_look_alike_get_the_shares_of_their_classes():
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    fitted = fit_calibration("platt", np.ones((60, 3)), labels, (0, 0, 0)).apply(np.ones((1, 3)))
    np.testing.assert_allclose(fitted[0], smoothed(labels, 3).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_a_model_that_ranks_the_wrong_way_is_flattened_and_never_turned_round(method):
    logits, labels = over_confident(2)
    fitted = fit_calibration(method, logits, 1 - labels, (0, 0))
    scores = fitted.apply(logits)[:, 1]
    margins = logits[:, 1] - logits[:, 0]
    assert np.array_equal(np.argsort(scores), np.argsort(margins))
    assert scores.max() - scores.min() < 0.05


@pytest.mark.parametrize("method", ["platt", "temperature"])
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_logits_of_any_size_are_fitted_alike(method, size):
    logits, labels = over_confident(3)
    plain, scaled = (fit_calibration(method, z, labels, (0, 0, 0)).apply(z) for z in (logits, size * logits))
    np.testing.assert_allclose(scaled, plain, atol=1e-5)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_too_few_films_of_a_class_are_refused_with_the_remedy(method):
    logits, labels = over_confident(2)
    with pytest.raises(BadInput, match=f"{method} calibration needs .* choose another evaluate.calibration"):
        fit_calibration(method, logits, np.zeros_like(labels), (0, 0))
    few = np.flatnonzero(labels == 1)[:4]
    rows = np.append(np.flatnonzero(labels == 0), few)
    with pytest.raises(BadInput, match="of each class, but there are"):
        fit_calibration(method, logits[rows], labels[rows], (0, 0))
    assert fit_calibration("none", logits[rows], labels[rows], (0, 0)) == Calibration.of_prior((0.0, 0.0))


def test_an_unknown_method_and_broken_logits_are_refused():
    logits, labels = over_confident(2)
    with pytest.raises(BadInput, match="unknown calibration 'beta': choose one of platt, temperature"):
        fit_calibration("beta", logits, labels, (0, 0))
    logits[3, 1] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        fit_calibration("platt", logits, labels, (0, 0))
    with pytest.raises(ValueError, match="need one label each"):
        fit_calibration("platt", logits, labels[1:], (0, 0))
    with pytest.raises(ValueError, match=r"logits must be \(N, 3\)"):
        fit_calibration("platt", logits, labels, (0, 0, 0))


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_survives_json_and_gives_the_same_bits(method):
    logits, labels = over_confident(3)
    fitted = fit_calibration(method, logits, labels, (0.1, -0.2, 1 / 3))
    read = Calibration.from_json(json.loads(json.dumps(asdict(fitted))))
    assert read == fitted
    np.testing.assert_array_equal(read.apply(logits), fitted.apply(logits))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "beta"},
        {"scale": 0},
        {"scale": None},
        {"scale": float("nan")},
        {"bias": [0.0]},
        {"bias": "ab"},
        {"prior_correction": None},
        {"curves": [[[0.0], [0.5]]]},
        {"method": "isotonic"},
        {"method": "isotonic", "curves": [[[1.0, 0.0], [0.1, 0.2]]] * 2},
        {"method": "isotonic", "curves": [[[0.0, 1.0], [0.3, 0.2]]] * 2},
        {"method": "isotonic", "curves": [[[0.0, 1.0], [0.3]]] * 2},
        {"method": "isotonic", "curves": [[[0.0, 1.0], [0.3, 1.0]]] * 2},
        {"method": "isotonic", "curves": [[[], []]] * 2},
        {"colour": "red"},
    ],
)
def test_what_is_no_map_is_refused(change):
    with pytest.raises(BadInput):
        Calibration.from_json(asdict(Calibration.of_prior((0.0, 0.0))) | change)


@pytest.mark.parametrize("content", [[], "platt", 3, {}])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(BadInput, match="not a calibration"):
        Calibration.from_json(content)


FITTED = {method: fit_calibration(method, *over_confident(3), (0.2, 0.1, -0.3)) for method in METHODS}


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(0, 6), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)))
def test_any_logits_become_probabilities_that_sum_to_one(logits):
    for fitted in FITTED.values():
        probabilities = fitted.apply(logits)
        assert probabilities.shape == logits.shape and np.all((probabilities >= 0) & (probabilities <= 1))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_a_map_mends_over_confident_probabilities_of_other_films(method):
    logits, labels = over_confident(3, films=3000, seed=7)
    fitted = fit_calibration(method, *over_confident(3, films=3000), (0, 0, 0))
    losses = [-np.log(p[np.arange(3000), labels]).mean() for p in (softmax(logits), fitted.apply(logits))]
    assert losses[1] < losses[0] - 0.1
