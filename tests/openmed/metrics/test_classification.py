import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from openmed.metrics import classification as ours

# Films with many ties: scores in tenths.
films = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=1, max_size=40).map(
    lambda rows: (np.array([row[0] for row in rows]), np.array([row[1] for row in rows]) / 10)
)
mixed = films.filter(lambda data: 0 < data[0].sum() < len(data[0]))


def sample(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    return labels, np.round(scores, 2)


def test_metrics_equal_sklearn():
    labels, scores = sample()
    flags = scores >= 0.5
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, flags),
        "f1": sklearn_metrics.f1_score(labels, flags),
        "sensitivity": sklearn_metrics.recall_score(labels, flags),
        "specificity": sklearn_metrics.recall_score(labels, flags, pos_label=0),
        "ppv": sklearn_metrics.precision_score(labels, flags),
        "npv": sklearn_metrics.precision_score(labels, flags, pos_label=0),
        "auc": sklearn_metrics.roc_auc_score(labels, scores),
        "average_precision": sklearn_metrics.average_precision_score(labels, scores),
        "brier": sklearn_metrics.brier_score_loss(labels, scores),
    }
    assert {name: metric(labels, scores, 0.5) for name, metric in ours.METRICS.items()} == pytest.approx(
        expected, abs=1e-12
    )


@settings(deadline=None)
@given(mixed)
def test_ranking_metrics_equal_sklearn_with_ties(data):
    labels, scores = data
    assert ours.auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert ours.average_precision(labels, scores) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
    )


def test_auc_of_the_published_rating_example():
    # Hanley and McNeil, Radiology 1982: 109 CT images rated 1 to 5, area 0.893.
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.repeat([0.2, 0.4, 0.6, 0.8, 1.0] * 2, normal + abnormal)
    labels = np.repeat([0, 1], [58, 51])
    assert round(ours.auc(labels, ratings), 3) == 0.893
    u = mannwhitneyu(ratings[labels == 1], ratings[labels == 0]).statistic
    assert ours.auc(labels, ratings) == pytest.approx(u / (58 * 51), abs=1e-12)


@settings(deadline=None)
@given(films, st.floats(0, 1))
def test_confusion_equals_sklearn_and_counts_every_film(data, threshold):
    labels, scores = data
    counts = ours.confusion(labels, scores >= threshold)
    tn, fp, fn, tp = sklearn_metrics.confusion_matrix(labels, scores >= threshold, labels=[0, 1]).ravel()
    assert counts == ours.Counts(tp=tp, fp=fp, tn=tn, fn=fn)


def test_a_film_at_the_threshold_is_flagged():
    assert ours.sensitivity([1, 0], [0.5, 0.1], 0.5) == 1.0


@settings(deadline=None)
@given(mixed)
def test_auc_survives_a_monotone_transform(data):
    labels, scores = data
    assert ours.auc(labels, scores**3 / 2 + 0.1) == ours.auc(labels, scores)


@settings(deadline=None)
@given(mixed)
def test_swapping_the_labels_mirrors_the_metrics(data):
    labels, scores = data
    assert ours.auc(1 - labels, scores) == pytest.approx(1 - ours.auc(labels, scores), abs=1e-12)
    assert ours.auc(1 - labels, 1 - scores) == pytest.approx(ours.auc(labels, scores), abs=1e-12)
    assert ours.brier(1 - labels, 1 - scores) == pytest.approx(ours.brier(labels, scores), abs=1e-12)
    # No score is 0.55, so flags turn over exactly.
    assert ours.sensitivity(1 - labels, 1 - scores, 0.45) == ours.specificity(labels, scores, 0.55)
    assert ours.ppv(1 - labels, 1 - scores, 0.45) == pytest.approx(
        ours.npv(labels, scores, 0.55), nan_ok=True
    )


@pytest.mark.parametrize(
    ("labels", "scores", "undefined"),
    [
        ([1, 1], [0.9, 0.2], {"specificity", "auc", "average_precision"}),
        ([0, 0], [0.9, 0.2], {"sensitivity", "f1", "auc", "average_precision"}),
        ([0, 1], [0.1, 0.2], {"ppv", "f1"}),
        ([0, 1], [0.8, 0.9], {"npv"}),
    ],
    ids=["only the finding", "never the finding", "nothing flagged", "all flagged"],
)
def test_what_cannot_be_computed_is_nan(labels, scores, undefined):
    values = {name: metric(labels, scores, 0.5) for name, metric in ours.METRICS.items()}
    assert {name for name, value in values.items() if math.isnan(value)} == undefined


@pytest.mark.parametrize(
    ("labels", "scores", "threshold", "message"),
    [
        ([0, 2], [0.1, 0.2], 0.5, "labels must be 0 or 1, found 2"),
        ([0, math.nan], [0.1, 0.2], 0.5, "found nan; leave films of unknown label out"),
        (["0", "1"], [0.1, 0.2], 0.5, "labels must be numbers"),
        ([], [], 0.5, r"labels must be one value a film and not empty, found shape \(0,\)"),
        ([[0, 1]], [0.1, 0.2], 0.5, r"found shape \(1, 2\)"),
        ([0, 1], [0.1], 0.5, "2 labels but 1 scores"),
        ([0, 1], [[0.1], [0.2]], 0.5, r"scores must be one value a film .* found shape \(2, 1\)"),
        ([0, 1], [0.1, 1.2], 0.5, r"scores must be probabilities in \[0, 1\], found 1.2"),
        ([0, 1], [-0.1, 0.2], 0.5, "found -0.1"),
        ([0, 1], [math.nan, 0.2], 0.5, "found nan"),
        ([0, 1], [0.1, 0.2], math.nan, "threshold must be a finite number, found nan"),
    ],
)
def test_wrong_input_is_refused_by_name_and_value(labels, scores, threshold, message):
    with pytest.raises(ValueError, match=message):
        ours.accuracy(labels, scores, threshold)


@pytest.mark.parametrize(("flags", "message"), [([True], "2 labels but flags of"), ([0, 3], "found 3")])
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        ours.confusion([0, 1], flags)


def test_roc_points_equal_sklearn():
    labels, scores = sample()
    expected = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    for mine, theirs in zip(ours.roc_curve_points(labels, scores), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_a_roc_rate_without_its_class_is_nan():
    fpr, tpr, thresholds = ours.roc_curve_points([1, 1], [0.3, 0.6])
    assert np.isnan(fpr).all()
    assert tpr.tolist() == [0.0, 0.5, 1.0]
    assert thresholds.tolist() == [np.inf, 0.6, 0.3]


def test_precision_recall_points_equal_sklearn():
    labels, scores = sample()
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(labels, scores)
    mine = ours.precision_recall_points(labels, scores)
    # sklearn goes by rising threshold and ends in a made-up point.
    for values, theirs in zip(mine, (recall[:-1], precision[:-1], thresholds), strict=True):
        np.testing.assert_allclose(values, theirs[::-1], atol=1e-12)


def test_precision_recall_points_of_one_class_are_nan():
    recall, precision, thresholds = ours.precision_recall_points([0, 0], [0.3, 0.6])
    assert np.isnan(recall).all()
    assert np.isnan(precision).all()
    assert thresholds.tolist() == [0.6, 0.3]


def test_reliability_points_equal_sklearn():
    labels, scores = sample()
    # Away from the edges of the bins, where sklearn closes the other side.
    scores = np.clip(scores + 0.005, 0, 1)
    observed, predicted = calibration_curve(labels, scores, n_bins=10)
    mine = ours.reliability_points(labels, scores)
    np.testing.assert_allclose(mine[0], predicted, atol=1e-12)
    np.testing.assert_allclose(mine[1], observed, atol=1e-12)
    assert mine[2].sum() == len(labels)


def test_reliability_bins_include_both_ends_and_leave_out_empty_ones():
    predicted, observed, count = ours.reliability_points([0, 1, 1, 0], [0.0, 1.0, 0.95, 0.1])
    assert predicted.tolist() == pytest.approx([0.0, 0.1, 0.975])
    assert observed.tolist() == [0.0, 0.0, 1.0]
    assert count.tolist() == [1, 1, 2]


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="bins must be at least 1, found 0"):
        ours.reliability_points([0, 1], [0.1, 0.9], bins=0)
