"""Expected performance: against scikit-learn, against loops, and against labels that were drawn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from openmed.monitoring.label_free import expected_performance, posteriors
from openmed.monitoring.prior_shift import Known


def films(count=300, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.5, 0.8, count)
    return (scores.round(1) if ties else scores), np.arange(count) // 3


def sigmoid(odds):
    return 1 / (1 + np.exp(-odds))


def known(count=2000, seed=9):
    """Calibration films whose probabilities hold, with the finding in 0.38 as among the films above."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.5, 0.8, count)
    return Known((rng.random(count) < scores).astype(int), scores, np.arange(count))


def counted(scores, threshold, weights=None):
    """The same by its definition: every film once with the finding and once without."""
    weights = np.ones(len(scores)) if weights is None else weights
    flagged = scores >= threshold
    having, without = weights * scores, weights * (1 - scores)
    both = np.concatenate([having, without])
    truth = np.repeat([1, 0], len(scores))
    return {
        "auc": roc_auc_score(truth, np.tile(scores, 2), sample_weight=both),
        "sensitivity": having[flagged].sum() / having.sum(),
        "specificity": without[~flagged].sum() / without.sum(),
    }


@pytest.mark.parametrize("ties", [False, True])
def test_it_is_scikit_learns_weighted_auc_of_films_counted_twice(ties):
    scores, patients = films(ties=ties)
    found = expected_performance(scores, patients, 0.4, known(), replicates=50, seed=1)
    carried = posteriors(scores, known())[1]
    both, truth = np.concatenate([carried, 1 - carried]), np.repeat([1, 0], len(scores))
    auc = roc_auc_score(truth, np.tile(scores, 2), sample_weight=both)
    assert found["auc"].value == pytest.approx(auc, abs=1e-12)
    flagged = scores >= 0.4
    assert found["sensitivity"].value == pytest.approx(carried[flagged].sum() / carried.sum(), abs=1e-12)
    assert found["share"].value == pytest.approx(carried.mean(), abs=0.01)


def test_the_intervals_hold_the_share_in_as_many_draws_as_they_say():
    held = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth = rng.random(300) < 0.1
        odds = rng.normal(np.where(truth, 2, -2), 2)
        calibration = np.arange(400) % 2
        own = Known(calibration, sigmoid(rng.normal(4 * calibration - 2, 2)), np.arange(400))
        scores = 1 / (1 + np.exp(-odds))
        found = expected_performance(scores, np.arange(300), 0.5, own, replicates=100, seed=seed)["share"]
        held.append(found.low <= 0.1 <= found.high)
    assert np.mean(held) >= 0.88


def test_a_share_that_changed_alone_changes_nothing_that_is_expected():
    """Half of the films before, a tenth after: the plain probabilities expect less."""
    rng = np.random.default_rng(3)
    truth = rng.random(5000) < 0.1
    scores = 1 / (1 + np.exp(-rng.normal(np.where(truth, 4, -4), np.sqrt(8))))
    labels = np.arange(2000) % 2
    calibration = 1 / (1 + np.exp(-rng.normal(8 * labels - 4, np.sqrt(8))))
    found = expected_performance(
        scores, np.arange(5000), 0.2, Known(labels, calibration, np.arange(2000)), replicates=100, seed=1
    )
    assert found["share"].value == pytest.approx(truth.mean(), abs=0.01)
    assert found["sensitivity"].value == pytest.approx((scores[truth] >= 0.2).mean(), abs=0.03)
    assert found["auc"].value == pytest.approx(roc_auc_score(truth, scores), abs=0.01)
    plain = counted(scores, 0.2)["sensitivity"]
    assert plain < found["sensitivity"].value - 0.05


def test_the_order_of_the_rows_changes_nothing():
    scores, patients = films()
    turned = expected_performance(scores[::-1], patients[::-1], 0.4, known(), replicates=50, seed=1)
    kept = expected_performance(scores, patients, 0.4, known(), replicates=50, seed=1)
    for name, interval in kept.items():
        assert turned[name].to_json() == pytest.approx(interval.to_json(), abs=1e-12)


def test_where_the_probabilities_hold_it_is_what_labels_show_on_average():
    scores, patients = films(2000)
    found = expected_performance(scores, patients, 0.4, known(), replicates=50, seed=1)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(200):
        truth = rng.random(len(scores)) < scores
        flagged = scores >= 0.4
        drawn.append((roc_auc_score(truth, scores), flagged[truth].mean(), (~flagged[~truth]).mean()))
    for name, value in zip(("auc", "sensitivity", "specificity"), np.mean(drawn, axis=0), strict=True):
        assert found[name].value == pytest.approx(value, abs=0.01)


def test_films_that_are_harder_to_tell_lower_it():
    sure, patients = films(400)
    unsure = 0.5 + (sure - 0.5) * 0.3
    easy, hard = (
        expected_performance(s, patients, 0.5, known(), replicates=200, seed=1) for s in (sure, unsure)
    )
    assert hard["auc"].high < easy["auc"].low


def test_scores_that_tell_nothing_leave_the_share_near_that_of_before():
    scores = np.full(200, known().share)
    share = posteriors(scores, known())[0]
    assert share == pytest.approx(known().share, abs=0.02)


@pytest.mark.parametrize("scores", [[0.5, np.nan], [0.5, 1.2], []])
def test_scores_that_are_no_probabilities_are_refused(scores):
    with pytest.raises(ValueError):
        expected_performance(scores, list(range(len(scores))), 0.5, known(), seed=0)


def test_calibration_films_of_one_class_are_refused():
    with pytest.raises(ValueError, match="one class only"):
        Known([1, 1], [0.5, 0.6], [0, 1])
