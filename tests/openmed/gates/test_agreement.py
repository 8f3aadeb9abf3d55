import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from openmed.gates.agreement import agreement
from openmed.metrics.score_intervals import wilson


def readers(films=300, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, classes, films)
    second = np.where(rng.uniform(size=films) < 0.7, first, rng.integers(0, classes, films))
    return first, second, [f"p{number:03d}" for number in rng.integers(0, films // 2, films)]


@pytest.mark.parametrize("classes", [2, 3])
def test_share_and_kappa_are_those_of_scikit_learn(classes):
    first, second, patients = readers(classes=classes)
    found = agreement(first, second, patients, replicates=200, seed=1)
    assert found.films == 300
    assert found.share.value == pytest.approx((first == second).mean())
    assert found.kappa.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.share.low < found.share.value < found.share.high
    assert found.kappa.low < found.kappa.value < found.kappa.high


def test_the_interval_of_kappa_is_that_of_a_plain_bootstrap_over_patients():
    first, second, patients = readers()
    found = agreement(first, second, patients, replicates=2000, seed=1).kappa
    rng, names = np.random.default_rng(9), np.unique(patients)
    rows = {name: np.flatnonzero(np.array(patients) == name) for name in names}
    drawn = []
    for _ in range(1000):
        chosen = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        drawn.append(cohen_kappa_score(first[chosen], second[chosen]))
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.02)


def test_full_agreement_of_few_films_stays_uncertain():
    labels = np.array([0, 1] * 5)
    found = agreement(labels, labels, [f"p{n}" for n in range(10)], replicates=100, seed=1)
    assert found.share.value == found.kappa.value == 1
    assert found.share.low == pytest.approx(wilson(10, 10).low)


def test_kappa_of_one_label_alone_is_not_computable():
    found = agreement([1] * 6, [1] * 6, [f"p{n}" for n in range(6)], replicates=100, seed=1)
    assert np.isnan([found.kappa.value, found.kappa.low, found.kappa.high]).all()
    assert found.to_json()["kappa"] == {"value": None, "low": None, "high": None}


def test_a_seed_gives_the_same_intervals_and_the_order_of_rows_plays_no_part():
    first, second, patients = readers()
    turned = np.random.default_rng(3).permutation(300)
    one = agreement(first, second, patients, replicates=100, seed=5)
    other = agreement(first[turned], second[turned], np.array(patients)[turned], replicates=100, seed=5)
    assert one == other


@pytest.mark.parametrize(("first", "second"), [([], []), ([0, 1], [0]), ([0, -1], [0, 1])])
def test_labels_that_are_none_are_refused(first, second):
    with pytest.raises(ValueError, match="two labels a film"):
        agreement(first, second, ["a"] * len(first), seed=1)
