import math

import numpy as np
import pytest

from openmed.metrics.classification import METRICS
from openmed.metrics.clustered import clustered_share
from openmed.metrics.delong import delong_auc
from openmed.metrics.intervals import COMPARED, PROPORTIONS, metric_intervals, paired_difference
from openmed.metrics.paired_proportions import compare_flags
from openmed.metrics.resampling import cohort, multiplicities
from openmed.metrics.score_intervals import wilson


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


RESAMPLED = ("f1", "average_precision", "brier")


def test_the_bootstrap_equals_a_naive_loop_over_the_same_rows():
    labels, scores, patients = sample()
    mine = metric_intervals(labels, scores, patients, 0.5, replicates=300, confidence=0.9, seed=4)
    rows = resampled_rows(labels, patients, 300, 4)
    for name in RESAMPLED:
        values = [METRICS[name](labels[pick], scores[pick], 0.5) for pick in rows]
        low, high = np.nanquantile(values, [0.05, 0.95])
        assert mine[name].value == METRICS[name](labels, scores, 0.5)
        assert (mine[name].low, mine[name].high) == pytest.approx((low, high), abs=1e-12), name


def test_what_a_gate_may_judge_has_the_intervals_of_shares_and_of_the_auc():
    labels, scores, patients = sample()
    found = metric_intervals(labels, scores, patients, 0.5, replicates=10, seed=1)
    assert found.keys() == METRICS.keys()
    assert {name for name in METRICS if name not in RESAMPLED} == {"auc", *PROPORTIONS}
    flags = scores >= 0.5
    outcomes = {
        "sensitivity": (flags, labels == 1),
        "specificity": (~flags, labels == 0),
        "ppv": (labels == 1, flags),
        "npv": (labels == 0, ~flags),
        "accuracy": (flags == labels, labels >= 0),
    }
    for name, (outcome, films) in outcomes.items():
        assert found[name] == clustered_share(outcome[films], patients[films])
        assert found[name].value == pytest.approx(METRICS[name](labels, scores, 0.5))
    assert found["auc"] == delong_auc(labels, scores, patients)


def test_a_difference_is_that_of_the_auc_and_tangos_of_the_shares():
    labels, first, patients = sample()
    second = np.clip(first + np.random.default_rng(9).normal(0, 0.1, len(first)), 0, 1)
    mine = paired_difference(labels, first, second, patients, 0.5, 0.45)
    assert tuple(mine) == COMPARED
    for name in COMPARED:
        value = METRICS[name](labels, first, 0.5) - METRICS[name](labels, second, 0.45)
        assert mine[name].value == pytest.approx(value, abs=1e-12)
    flags = compare_flags(labels, first >= 0.5, second >= 0.45, patients)
    assert mine["sensitivity"] == flags["sensitivity"]


def test_a_model_differs_from_itself_by_nothing_within_limits_that_stay_open():
    labels, scores, patients = sample()
    for interval in paired_difference(labels, scores, scores, patients, 0.5, 0.5).values():
        assert interval.value == 0 and interval.low < 0 < interval.high


def test_the_same_seed_gives_the_same_intervals_and_another_does_not():
    data = sample()
    assert metric_intervals(*data, 0.5, seed=1) == metric_intervals(*data, 0.5, seed=1)
    assert metric_intervals(*data, 0.5, seed=1)["brier"] != metric_intervals(*data, 0.5, seed=2)["brier"]


def test_the_order_of_the_rows_does_not_matter():
    labels, scores, patients = sample()
    order = np.random.default_rng(8).permutation(len(labels))
    before = metric_intervals(labels, scores, patients, 0.5, seed=1)
    after = metric_intervals(labels[order], scores[order], patients[order], 0.5, seed=1)
    for name in METRICS:
        assert after[name].to_json() == pytest.approx(before[name].to_json(), abs=1e-12)


def test_a_perfect_tiny_test_set_does_not_look_certain():
    labels = np.repeat([0, 1], 20)
    result = metric_intervals(labels, np.where(labels == 1, 0.9, 0.1), np.arange(40), 0.5, seed=1)
    for name in ("auc", *PROPORTIONS):
        assert result[name].value == result[name].high == 1
        assert result[name].low < 0.92
    assert result["specificity"].low == wilson(20, 20).low == pytest.approx(0.8389, abs=1e-4)
    assert result["auc"].low == pytest.approx(0.8987, abs=1e-4)


def test_a_value_that_is_nan_has_a_nan_interval():
    result = metric_intervals([1, 1, 1], [0.9, 0.8, 0.1], ["a", "b", "c"], 0.5, replicates=50, seed=1)
    for name in ("specificity", "auc", "average_precision"):
        assert all(map(math.isnan, (result[name].value, result[name].low, result[name].high)))
    assert result["sensitivity"].low > 0
    difference = paired_difference([1, 1], [0.9, 0.1], [0.9, 0.1], [1, 2], 0.5, 0.5)
    assert math.isnan(difference["auc"].value) and math.isnan(difference["auc"].low)


def test_a_metric_often_undefined_in_resamples_has_no_limits():
    # One film of eight is flagged, and has not the finding: a third of the resamples flag none.
    labels, scores = [0, 1] * 4, [0.9, 0.1] + [0.1] * 6
    result = metric_intervals(labels, scores, np.arange(8), 0.5, seed=1)
    assert result["f1"].value == 0
    assert math.isnan(result["f1"].low) and math.isnan(result["f1"].high)
    assert result["npv"].low > 0


def test_a_metric_rarely_undefined_keeps_its_limits():
    # Four of ten patients with the finding are flagged: 0.6^10 = 0.6 % of the resamples flag none.
    labels = np.repeat([0, 1], 10)
    scores, patients = np.array([0.1] * 16 + [0.9] * 4), np.arange(20)
    result = metric_intervals(labels, scores, patients, 0.5, seed=1)
    values = [METRICS["f1"](labels[p], scores[p], 0.5) for p in resampled_rows(labels, patients, 2000, 1)]
    assert 0 < np.isnan(values).mean() < 0.05
    expected = tuple(np.nanquantile(values, [0.025, 0.975]))
    assert (result["f1"].low, result["f1"].high) == pytest.approx(expected, abs=1e-12)


def test_more_confidence_gives_a_wider_interval():
    data = sample()
    narrow, wide = (metric_intervals(*data, 0.5, confidence=c, seed=1) for c in (0.8, 0.99))
    for name in METRICS:
        assert wide[name].low < narrow[name].low < narrow[name].high < wide[name].high


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"replicates": 0}, "replicates must be at least 1, found 0"), ({"confidence": 95}, "found 95")],
)
def test_impossible_settings_are_refused(settings, message):
    labels, scores, patients = sample()
    with pytest.raises(ValueError, match=message):
        metric_intervals(labels, scores, patients, 0.5, seed=1, **settings)


def test_wrong_scores_of_the_second_model_are_refused():
    labels, scores, patients = sample()
    with pytest.raises(ValueError, match="found nan"):
        paired_difference(labels, scores, scores * math.nan, patients, 0.5, 0.5)
