"""Expected performance: against scikit-learn, against loops, and against labels that were drawn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from openmed.metrics.label_free import expected_performance
from openmed.metrics.resampling import cohort, multiplicities


def films(count=300, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.5, 0.8, count)
    return (scores.round(1) if ties else scores), np.arange(count) // 3


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
    found = expected_performance(scores, patients, 0.4, replicates=50, seed=1)
    for name, value in counted(scores, 0.4).items():
        assert found[name].value == pytest.approx(value, abs=1e-12)


def test_the_intervals_are_percentiles_over_resampled_patients():
    scores, patients = films()
    found = expected_performance(scores, patients, 0.4, replicates=200, confidence=0.9, seed=3)
    group = cohort(np.zeros(len(scores), int), patients)
    drawn = np.concatenate(list(multiplicities(group, 200, 3)))
    looped = [counted(scores, 0.4, row[group.patient_of_film]) for row in drawn]
    for name, interval in found.items():
        low, high = np.quantile([each[name] for each in looped], (0.05, 0.95))
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_the_order_of_the_rows_changes_nothing():
    scores, patients = films()
    turned = expected_performance(scores[::-1], patients[::-1], 0.4, replicates=50, seed=1)
    kept = expected_performance(scores, patients, 0.4, replicates=50, seed=1)
    for name, interval in kept.items():
        assert turned[name].to_json() == pytest.approx(interval.to_json(), abs=1e-12)


def test_where_the_probabilities_hold_it_is_what_labels_show_on_average():
    scores, patients = films(2000)
    found = expected_performance(scores, patients, 0.4, replicates=50, seed=1)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(200):
        truth = rng.random(len(scores)) < scores
        flagged = scores >= 0.4
        drawn.append((roc_auc_score(truth, scores), flagged[truth].mean(), (~flagged[~truth]).mean()))
    for name, value in zip(("auc", "sensitivity", "specificity"), np.mean(drawn, axis=0), strict=True):
        assert found[name].value == pytest.approx(value, abs=0.003)


def test_films_that_are_harder_to_tell_lower_it():
    sure, patients = films(400)
    unsure = 0.5 + (sure - 0.5) * 0.3
    easy, hard = (expected_performance(s, patients, 0.5, replicates=200, seed=1) for s in (sure, unsure))
    assert hard["auc"].high < easy["auc"].low


def test_what_is_not_expected_at_all_has_no_number():
    found = expected_performance(np.zeros(30), np.arange(30), 0.5, replicates=20, seed=0)
    assert np.isnan(found["auc"].value) and np.isnan(found["sensitivity"].value)
    assert found["specificity"].value == 1.0


@pytest.mark.parametrize("scores", [[0.5, np.nan], [0.5, 1.2], []])
def test_scores_that_are_no_probabilities_are_refused(scores):
    with pytest.raises(ValueError):
        expected_performance(scores, list(range(len(scores))), 0.5, seed=0)
