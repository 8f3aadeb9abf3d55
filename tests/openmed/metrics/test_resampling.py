import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from openmed.metrics import resampling
from openmed.metrics.classification import METRICS
from openmed.metrics.resampling import Ranking, cohort, multiplicities


def draws(group, replicates, seed):
    return np.concatenate(list(multiplicities(group, replicates, seed)))


def test_patients_are_grouped_by_what_their_films_show():
    labels = np.array([0, 1, 0, 1, 1, 0])
    group = cohort(labels, ["d", "b", "a", "c", "d", "a"])
    # a: only without, then b and c: only with, then d: both.
    assert group.strata == (1, 2, 1)
    assert group.patients == 4
    assert group.patient_of_film.tolist() == [3, 1, 0, 2, 3, 0]


def test_each_stratum_keeps_its_number_of_patients():
    labels = np.array([0] * 7 + [1] * 5 + [0, 1])
    group = cohort(labels, [*range(12), 12, 12])
    drawn = draws(group, 500, 3)
    assert drawn.shape == (500, 13)
    assert np.all(drawn[:, :7].sum(axis=1) == 7)
    assert np.all(drawn[:, 7:12].sum(axis=1) == 5)
    assert np.all(drawn[:, 12] == 1)


def test_every_patient_is_drawn_once_on_average():
    drawn = draws(cohort(np.zeros(20, int), np.arange(20)), 20_000, 1)
    # The multiplicity is binomial (20, 1/20), with a variance of 0.95.
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=4 * np.sqrt(0.95 / 20_000))
    np.testing.assert_allclose(drawn.var(axis=0), 0.95, rtol=0.1)


def test_the_size_of_a_chunk_does_not_change_the_draws(monkeypatch):
    labels = np.array([0, 1, 0, 1, 1, 0, 1])
    group = cohort(labels, ["a", "b", "c", "b", "c", "d", "e"])
    whole = draws(group, 50, 7)
    monkeypatch.setattr(resampling, "_CHUNK_BYTES", 3 * 8 * len(labels))
    chunks = list(multiplicities(group, 50, 7))
    assert [len(chunk) for chunk in chunks] == [3] * 16 + [2]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_a_chunk_stays_small_however_many_films_and_resamples():
    for films in (10, 5_000, 60_000):
        group = cohort(np.arange(films) % 2, np.arange(films))
        chunk = next(multiplicities(group, 1_000_000, 0))
        assert chunk.nbytes <= max(1 << 20, 8 * films)


@pytest.mark.parametrize(
    ("patients", "message"),
    [
        (["a"], "2 labels but patients of shape"),
        (["a", None], "none missing, found type object"),
        ([1.0, np.nan], "none missing, found type float64"),
    ],
)
def test_wrong_patients_are_refused(patients, message):
    with pytest.raises(ValueError, match=message):
        cohort(np.array([0, 1]), patients)


def test_text_of_a_data_frame_column_is_accepted():
    group = cohort(np.array([0, 1]), np.array(["b", "a"], dtype=object))
    assert group.patient_of_film.tolist() == [0, 1]


def sklearn_values(labels, scores, flags, weights):
    """Every metric by scikit-learn, with weights; NaN where it would make a value up."""
    keep = weights > 0
    labels, scores, flags, weights = labels[keep], scores[keep], flags[keep], weights[keep]
    w = {"sample_weight": weights}
    both = len(set(labels)) == 2
    found, lacked, raised, quiet = labels.any(), not labels.all(), flags.any(), not flags.all()
    nan = float("nan")
    m = sklearn_metrics
    return {
        "accuracy": m.accuracy_score(labels, flags, **w),
        "f1": m.f1_score(labels, flags, **w) if found and raised else nan,
        "sensitivity": m.recall_score(labels, flags, **w) if found else nan,
        "specificity": m.recall_score(labels, flags, pos_label=0, **w) if lacked else nan,
        "ppv": m.precision_score(labels, flags, **w) if raised else nan,
        "npv": m.precision_score(labels, flags, pos_label=0, **w) if quiet else nan,
        "auc": m.roc_auc_score(labels, scores, **w) if both else nan,
        "average_precision": m.average_precision_score(labels, scores, **w) if both else nan,
        "brier": m.brier_score_loss(labels, scores, pos_label=1, **w),
    }


rows = st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=15).filter(lambda films: any(film[2] for film in films)))
def test_weighted_metrics_equal_sklearn_with_sample_weight(films):
    labels, scores, weights = (np.array(column) for column in zip(*films, strict=True))
    scores = scores / 5
    group = cohort(labels, np.arange(len(labels)))
    drawn = np.zeros((1, group.patients))
    drawn[0, group.patient_of_film] = weights
    mine = Ranking.of(labels, scores, 0.5, group).metrics(drawn)
    expected = sklearn_values(labels, scores, scores >= 0.5, weights)
    assert mine.keys() == METRICS.keys() == expected.keys()
    assert {name: values[0] for name, values in mine.items()} == pytest.approx(
        expected, abs=1e-12, nan_ok=True
    )
