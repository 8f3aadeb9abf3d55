import math

import numpy as np
import pytest

from openmed.metrics import intervals
from openmed.metrics.classification import METRICS
from openmed.metrics.intervals import COMPARED, PROPORTIONS, bootstrap, clustered_share, paired_difference
from openmed.metrics.resampling import cohort, multiplicities
from openmed.metrics.score_intervals import newcombe_auc, wilson


def sample(n=90, seed=0, patients=60):
    """Films with tied scores, of patients with one to several films, some with films of both kinds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.round(np.clip(rng.normal(0.4 + 0.25 * labels, 0.2), 0, 1), 2)
    return labels, scores, np.array([f"p{k:03d}" for k in rng.integers(0, patients, n)])


def resampled_rows(labels, patients, replicates, seed):
    """The same resamples written out: the row numbers of each."""
    group = cohort(labels, patients)
    drawn = np.concatenate(list(multiplicities(group, replicates, seed))).astype(int)
    return [np.repeat(np.arange(len(labels)), row[group.patient_of_film]) for row in drawn]


def without_score_intervals(monkeypatch):
    monkeypatch.setattr(
        intervals, "_score_interval", lambda *_: intervals.Interval(math.nan, math.nan, math.nan)
    )


def test_bootstrap_equals_a_naive_loop_over_the_same_rows(monkeypatch):
    without_score_intervals(monkeypatch)
    labels, scores, patients = sample()
    mine = bootstrap(labels, scores, patients, 0.5, replicates=300, confidence=0.9, seed=4)
    rows = resampled_rows(labels, patients, 300, 4)
    for name, metric in METRICS.items():
        values = [metric(labels[pick], scores[pick], 0.5) for pick in rows]
        low, high = np.nanquantile(values, [0.05, 0.95])
        assert mine[name].value == metric(labels, scores, 0.5)
        assert (mine[name].low, mine[name].high) == pytest.approx((low, high), abs=1e-12), name


def test_paired_difference_equals_a_naive_loop_over_the_same_rows():
    labels, first, patients = sample()
    second = np.clip(first + np.random.default_rng(9).normal(0, 0.1, len(first)), 0, 1)
    mine = paired_difference(labels, first, second, patients, 0.5, 0.45, replicates=300, seed=4)
    rows = resampled_rows(labels, patients, 300, 4)
    assert tuple(mine) == COMPARED
    for name in COMPARED:
        metric = METRICS[name]
        values = [metric(labels[p], first[p], 0.5) - metric(labels[p], second[p], 0.45) for p in rows]
        assert mine[name].value == metric(labels, first, 0.5) - metric(labels, second, 0.45)
        expected = tuple(np.quantile(values, [0.025, 0.975]))
        assert (mine[name].low, mine[name].high) == pytest.approx(expected, abs=1e-12)


def test_a_model_does_not_differ_from_itself():
    labels, scores, patients = sample()
    for interval in paired_difference(labels, scores, scores, patients, 0.5, 0.5, seed=1).values():
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_swapping_the_models_mirrors_the_difference():
    labels, first, patients = sample()
    forward = paired_difference(labels, first, first**2, patients, 0.5, 0.2, seed=1)
    backward = paired_difference(labels, first**2, first, patients, 0.2, 0.5, seed=1)
    for name in COMPARED:
        assert forward[name].value == -backward[name].value
        assert forward[name].low == pytest.approx(-backward[name].high, abs=1e-12)


def test_the_same_seed_gives_the_same_intervals_and_another_does_not():
    data = sample()
    assert bootstrap(*data, 0.5, seed=1) == bootstrap(*data, 0.5, seed=1)
    assert bootstrap(*data, 0.5, seed=1)["brier"] != bootstrap(*data, 0.5, seed=2)["brier"]


def test_the_order_of_the_rows_does_not_matter():
    labels, scores, patients = sample()
    order = np.random.default_rng(8).permutation(len(labels))
    before = bootstrap(labels, scores, patients, 0.5, seed=1)
    after = bootstrap(labels[order], scores[order], patients[order], 0.5, seed=1)
    for name in METRICS:
        assert after[name].to_json() == pytest.approx(before[name].to_json(), abs=1e-12)


def test_copies_of_a_patients_films_do_not_narrow_the_interval(monkeypatch):
    labels, scores, patients = sample()
    once = bootstrap(labels, scores, patients, 0.5, seed=1)
    without_score_intervals(monkeypatch)
    bare = bootstrap(labels, scores, patients, 0.5, seed=1)
    copied = bootstrap(*(np.repeat(column, 5) for column in (labels, scores, patients)), 0.5, seed=1)
    for name in METRICS:
        assert copied[name].to_json() == pytest.approx(bare[name].to_json(), abs=1e-12)
        assert once[name].low <= bare[name].low + 1e-12


def test_the_reported_interval_is_the_wider_one_on_each_side(monkeypatch):
    labels, scores, patients = sample()
    reported = bootstrap(labels, scores, patients, 0.5, seed=1)
    without_score_intervals(monkeypatch)
    bare = bootstrap(labels, scores, patients, 0.5, seed=1)
    flags = scores >= 0.5
    successes = {
        "sensitivity": (flags[labels == 1].sum(), (labels == 1).sum()),
        "specificity": ((~flags[labels == 0]).sum(), (labels == 0).sum()),
        "ppv": (labels[flags].sum(), flags.sum()),
        "npv": ((1 - labels[~flags]).sum(), (~flags).sum()),
        "accuracy": ((flags == labels).sum(), len(labels)),
    }
    assert set(successes) == set(PROPORTIONS)
    score = {name: wilson(*counts) for name, counts in successes.items()}
    score["auc"] = newcombe_auc(bare["auc"].value, (labels == 1).sum(), (labels == 0).sum())
    for name in METRICS:
        if name in score:
            assert reported[name].low == min(bare[name].low, score[name].low)
            assert reported[name].high == max(bare[name].high, score[name].high)
        else:
            assert reported[name] == bare[name]


def test_a_perfect_tiny_test_set_does_not_look_certain():
    labels = np.repeat([0, 1], 20)
    result = bootstrap(labels, np.where(labels == 1, 0.9, 0.1), np.arange(40), 0.5, seed=1)
    for name in ("auc", *PROPORTIONS):
        assert result[name].value == result[name].high == 1
        assert result[name].low < 0.92
    assert result["specificity"].low == wilson(20, 20).low == pytest.approx(0.8389, abs=1e-4)
    assert result["auc"].low == pytest.approx(0.8987, abs=1e-4)


def test_a_value_that_is_nan_has_a_nan_interval():
    result = bootstrap([1, 1, 1], [0.9, 0.8, 0.1], ["a", "b", "c"], 0.5, replicates=50, seed=1)
    for name in ("specificity", "auc", "average_precision"):
        assert all(map(math.isnan, (result[name].value, result[name].low, result[name].high)))
    assert result["sensitivity"].low > 0
    difference = paired_difference([1, 1], [0.9, 0.1], [0.9, 0.1], [1, 2], 0.5, 0.5, replicates=50, seed=1)
    assert math.isnan(difference["auc"].value) and math.isnan(difference["auc"].low)


def test_a_metric_often_undefined_in_resamples_has_no_limits():
    # One film of eight is flagged: a third of the resamples flag none.
    labels, scores = [0, 1] * 4, [0.1, 0.9] + [0.1] * 6
    result = bootstrap(labels, scores, np.arange(8), 0.5, seed=1)
    assert result["ppv"].value == 1
    assert math.isnan(result["ppv"].low) and math.isnan(result["ppv"].high)
    assert result["npv"].low > 0


def test_a_metric_rarely_undefined_keeps_its_limits(monkeypatch):
    without_score_intervals(monkeypatch)
    # Four of ten patients with the finding are flagged: 0.6^10 = 0.6 % of the resamples flag none.
    labels = np.repeat([0, 1], 10)
    scores, patients = np.array([0.1] * 16 + [0.9] * 4), np.arange(20)
    result = bootstrap(labels, scores, patients, 0.5, seed=1)
    values = [METRICS["f1"](labels[p], scores[p], 0.5) for p in resampled_rows(labels, patients, 2000, 1)]
    assert 0 < np.isnan(values).mean() < 0.05
    expected = tuple(np.nanquantile(values, [0.025, 0.975]))
    assert (result["f1"].low, result["f1"].high) == pytest.approx(expected, abs=1e-12)


def test_more_confidence_gives_a_wider_interval():
    data = sample()
    narrow, wide = (bootstrap(*data, 0.5, confidence=c, seed=1) for c in (0.8, 0.99))
    for name in METRICS:
        assert wide[name].low < narrow[name].low < narrow[name].high < wide[name].high


def test_the_interval_covers_the_true_sensitivity_when_films_of_a_patient_agree():
    # Each patient is recognised with 0.8 on all three films or on none: one film's worth of evidence.
    rng, held = np.random.default_rng(2), 0
    labels, patients = np.repeat([0, 1], [10, 150]), np.repeat(np.arange(60), [1] * 10 + [3] * 50)
    for trial in range(200):
        found = np.repeat(rng.random(50) < 0.8, 3)
        scores = np.append(np.full(10, 0.1), np.where(found, 0.9, 0.1))
        interval = bootstrap(labels, scores, patients, 0.5, replicates=200, seed=trial)["sensitivity"]
        held += interval.low <= 0.8 <= interval.high
    assert held / 200 >= 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"replicates": 0}, "replicates must be at least 1, found 0"), ({"confidence": 95}, "found 95")],
)
def test_impossible_settings_are_refused(settings, message):
    labels, scores, patients = sample()
    with pytest.raises(ValueError, match=message):
        bootstrap(labels, scores, patients, 0.5, seed=1, **settings)
    with pytest.raises(ValueError, match=message):
        paired_difference(labels, scores, scores, patients, 0.5, 0.5, seed=1, **settings)


def test_wrong_scores_of_the_second_model_are_refused():
    labels, scores, patients = sample()
    with pytest.raises(ValueError, match="found nan"):
        paired_difference(labels, scores, scores * math.nan, patients, 0.5, 0.5, seed=1)


def test_a_share_equals_the_accuracy_of_flags_that_say_so():
    _, _, patients = sample()
    outcomes = np.random.default_rng(3).random(90) < 0.3
    found = clustered_share(outcomes, patients, replicates=400, seed=2)
    group = cohort(np.zeros(90, int), patients)
    drawn = np.concatenate(list(multiplicities(group, 400, 2)))
    shares = [np.average(outcomes, weights=row[group.patient_of_film]) for row in drawn]
    low, high = np.quantile(shares, [0.025, 0.975])
    score = wilson(int(outcomes.sum()), 90)
    assert found.value == outcomes.mean()
    assert (found.low, found.high) == pytest.approx((min(low, score.low), max(high, score.high)), abs=1e-12)


def test_a_share_knows_of_patients_and_stays_open():
    alike = np.repeat(np.random.default_rng(1).random(20) < 0.5, 10)
    by_patient = clustered_share(alike, np.repeat(np.arange(20), 10), seed=1)
    by_film = clustered_share(alike, np.arange(200), seed=1)
    assert by_patient.high - by_patient.low > 2 * (by_film.high - by_film.low)
    assert clustered_share(np.ones(20, bool), np.arange(20), seed=1).low == wilson(20, 20).low
    assert math.isnan(clustered_share([], [], seed=1).value)
