import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmed.errors import BadInput
from openmed.fitted.abstention import Abstention, check_abstention, fewest_patients, fit_abstention


def films(rng, n, classes, patients=None):
    """Exchangeable patients of an imperfect model; all films of one show the same class."""
    patients = np.arange(n) if patients is None else patients
    truth = rng.integers(0, classes, patients.max() + 1)[patients]
    logits = rng.normal(0, 1, (n, classes)) + 1.5 * (np.arange(classes) == truth[:, None])
    odds = np.exp(logits)
    return truth, odds / odds.sum(axis=1, keepdims=True), patients


@pytest.mark.parametrize(("classes", "coverage"), [(2, 0.9), (2, 0.95), (4, 0.8)])
def test_each_class_is_covered_as_often_as_wished(classes, coverage):
    rng = np.random.default_rng(1)
    held, seen = np.zeros(classes), np.zeros(classes)
    for _ in range(150):
        truth, probabilities, patients = films(rng, 500, classes)
        fitted = fit_abstention(truth[:250], probabilities[:250], patients[:250], coverage)
        sets = fitted.prediction_sets(probabilities[250:])
        for number in range(classes):
            of_class = truth[250:] == number
            held[number] += sets[of_class, number].sum()
            seen[number] += of_class.sum()
    # Calibration sets vary too: the spread of a coverage with n calibration films of a class is beta.
    spread = math.sqrt(coverage * (1 - coverage) * (1 / seen.min() + 1 / (150 * 250 / classes)))
    finest = 1 / (250 / classes)  # and a rank is a whole number
    assert np.all(held / seen >= coverage - 3.5 * spread)
    assert np.all(held / seen <= coverage + 3.5 * spread + finest)


def test_films_of_a_patient_are_not_counted_as_independent():
    rng, held, seen = np.random.default_rng(2), 0, 0
    for _ in range(200):
        patients = np.sort(rng.integers(0, 60, 240))
        patients = np.unique(patients, return_inverse=True)[1]
        truth, probabilities, _ = films(rng, len(patients), 2, patients)
        first = patients < 40
        if min(len(set(patients[first & (truth == k)])) for k in (0, 1)) < 9:
            continue
        fitted = fit_abstention(truth[first], probabilities[first], patients[first], 0.9)
        sets = fitted.prediction_sets(probabilities[~first])
        # The worst film of each new patient is covered, not just the average one.
        for patient in set(patients[~first]):
            own = patients[~first] == patient
            held += sets[own, truth[~first][own]].all()
            seen += 1
    assert held / seen >= 0.9 - 3 * math.sqrt(0.09 / seen)


def test_the_lowest_kept_probability_is_an_order_statistic():
    # 19 films of each class at 0.05, 0.10, ... 0.95: the 18th of 19 from above at 0.9 coverage.
    scores = np.arange(1, 20) / 20
    probabilities = np.concatenate([np.stack([scores, 1 - scores], 1), np.stack([1 - scores, scores], 1)])
    fitted = fit_abstention(np.repeat([0, 1], 19), probabilities, np.arange(38), 0.9)
    assert fitted.lowest == pytest.approx((0.1, 0.1))
    assert fitted.patients == (19, 19)


def test_a_film_is_referred_when_not_exactly_one_class_is_kept():
    fitted = Abstention(0.9, (0.3, 0.4), (20, 20))
    rows = [[0.9, 0.1], [0.65, 0.35], [0.5, 0.5], [0.6, 0.4], [0.2, 0.8]]
    assert fitted.refer(rows).tolist() == [False, False, True, True, False]
    assert Abstention(0.5, (0.7, 0.7), (20, 20)).refer([[0.5, 0.5]]).tolist() == [True]  # none is kept


bad = st.sampled_from([math.nan, math.inf, -math.inf, -0.1, 1.1])


@settings(deadline=None)
@given(st.integers(2, 5).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k - 1), bad)))
def test_a_missing_probability_is_always_referred(case):
    classes, place, value = case
    row = np.full(classes, 1 / classes)
    row[place] = value
    for lowest in (0.0, 0.5, 1.0):
        fitted = Abstention(0.9, (lowest,) * classes, (20,) * classes)
        assert fitted.prediction_sets([row]).sum() == classes
        assert fitted.refer([row]).tolist() == [True]


def test_too_few_patients_of_a_class_are_refused():
    assert [fewest_patients(coverage) for coverage in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    truth, probabilities = np.repeat([0, 1], [9, 8]), np.full((17, 2), 0.5)
    with pytest.raises(BadInput, match=r"at least 9 calibration patients of each class, found 8 of class 1"):
        fit_abstention(truth, probabilities, np.arange(17), 0.9)
    with pytest.raises(BadInput, match="found 3 of class 0"):
        fit_abstention(truth, probabilities, np.arange(17) % 3, 0.9)
    enough = np.repeat([0, 1], 9), np.full((18, 2), 0.5), np.arange(18)
    assert fit_abstention(*enough, 0.9).lowest == (0.5, 0.5)


def test_it_is_frozen_as_plain_json():
    rng = np.random.default_rng(3)
    fitted = fit_abstention(*films(rng, 200, 3), 0.8)
    text = json.dumps(asdict(fitted), allow_nan=False)
    assert Abstention.from_json(json.loads(text)) == fitted
    for broken in (
        {},
        {**asdict(fitted), "lowest": [2.0, 0.1, 0.1]},
        {**asdict(fitted), "patients": [1]},
    ):
        with pytest.raises(BadInput, match="abstention"):
            Abstention.from_json(broken)


def test_the_check_counts_coverage_referrals_and_decisions():
    fitted = Abstention(0.9, (0.3, 0.4), (20, 20))
    probabilities = np.array([[0.9, 0.1], [0.65, 0.35], [0.5, 0.5], [0.6, 0.4], [0.2, 0.8], [math.nan, 0.5]])
    found = check_abstention(fitted, [0, 1, 1, 0, 1, 0], probabilities, np.arange(6))
    assert found.coverage[0].value == 1
    assert found.coverage[1].value == pytest.approx(2 / 3)
    assert found.referred.value == pytest.approx(3 / 6)
    assert found.accuracy_of_decided.value == pytest.approx(2 / 3)
    for interval in (*found.coverage, found.referred, found.accuracy_of_decided):
        assert 0 <= interval.low < interval.high <= 1
    none_of_it = check_abstention(fitted, [0, 0], [[0.5, 0.5], [0.5, 0.5]], [1, 2])
    assert none_of_it.to_json()["coverage"][1] == {"value": None, "low": None, "high": None}
    assert math.isnan(none_of_it.accuracy_of_decided.value)


def test_wrong_films_are_refused():
    good = np.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="none missing"):
        fit_abstention([0, 1], [[0.5, math.nan], [0.5, 0.5]], [1, 2], 0.5)
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        fit_abstention([0, 2], good, [1, 2], 0.5)
    with pytest.raises(ValueError, match=r"expected labels \(N,\)"):
        fit_abstention([0], good, [1], 0.5)
    with pytest.raises(BadInput, match="coverage of an abstention"):
        fit_abstention([0, 1], good, [1, 2], 1.0)
    with pytest.raises(ValueError, match="2 classes"):
        Abstention(0.5, (0.5, 0.5), (1, 1)).refer([[0.2, 0.3, 0.5]])
    with pytest.raises(ValueError, match="there are 2 films"):
        check_abstention(Abstention(0.5, (0.5, 0.5), (1, 1)), [0], good, [1, 2])
