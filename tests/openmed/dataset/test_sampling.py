"""Resampling draws rows; it invents none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmed.dataset.sampling import STRATEGIES, resample_rows, smote_features
from openmed.errors import BadInput

LABELS = np.array([0] * 20 + [1] * 61 + [2] * 35)[np.random.default_rng(0).permutation(116)]


def counts(strategy, labels=LABELS, seed=0):
    return list(np.bincount(labels[resample_rows(labels, strategy, seed)]))


def test_over_repeats_up_to_the_largest_class_and_keeps_every_row():
    assert counts("over") == [61, 61, 61]
    assert set(resample_rows(LABELS, "over", 0)) == set(range(116))


def test_under_drops_down_to_the_smallest_class_and_repeats_nothing():
    assert counts("under") == [20, 20, 20]
    rows = resample_rows(LABELS, "under", 0)
    assert len(set(rows)) == len(rows)


def test_none_keeps_the_rows():
    np.testing.assert_array_equal(resample_rows(LABELS, "none", 0), np.arange(116))


def test_weighted_draws_as_many_rows_with_equal_expected_counts():
    labels = np.repeat([0, 1], [500, 4500])
    drawn = counts("weighted", labels)
    assert sum(drawn) == 5000
    assert abs(drawn[0] - 2500) < 5 * np.sqrt(5000 * 0.25)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 4]), min_size=2, max_size=60).filter(lambda labels: len(set(labels)) > 1),
    st.sampled_from(STRATEGIES),
    st.integers(0, 2**31),
)
def test_only_given_rows_come_back_sorted_and_the_seed_fixes_them(labels, strategy, seed):
    labels = np.array(labels)
    rows = resample_rows(labels, strategy, seed)
    assert rows.dtype == np.int64 and (np.diff(rows) >= 0).all()
    assert rows.min() >= 0 and rows.max() < len(labels)
    np.testing.assert_array_equal(rows, resample_rows(labels, strategy, seed))
    if strategy in ("over", "under"):
        assert len(set(np.unique(labels[rows], return_counts=True)[1])) == 1


@pytest.mark.parametrize("strategy", ["over", "under", "weighted"])
def test_another_seed_draws_other_rows(strategy):
    assert not np.array_equal(resample_rows(LABELS, strategy, 1), resample_rows(LABELS, strategy, 2))


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match="unknown resampling strategy 'smote': choose one of over, under"):
        resample_rows(LABELS, "smote", 0)


@pytest.mark.parametrize("strategy", ["over", "under", "weighted"])
def test_a_single_class_cannot_be_balanced(strategy):
    with pytest.raises(BadInput, match="at least two classes"):
        resample_rows(np.zeros(5, int), strategy, 0)


FEATURES = (np.random.default_rng(4).normal(0, 1, (116, 6)) + LABELS[:, None]).astype(np.float32)


def test_smote_fills_every_class_up_and_keeps_the_given_features_first():
    features, labels = smote_features(FEATURES, LABELS, 0)
    assert list(np.bincount(labels)) == [61, 61, 61]
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features[:116], FEATURES)
    np.testing.assert_array_equal(labels[:116], LABELS)


def test_each_invented_point_lies_between_two_neighbours_of_its_class():
    features, labels = smote_features(FEATURES, LABELS, 0)
    for point, label in zip(features[116:], labels[116:], strict=True):
        own = FEATURES[label == LABELS].astype(float)
        off = []
        for film in own:
            near = own[np.argsort(np.linalg.norm(own - film, axis=1))[1:6]] - film
            share = np.clip((near @ (point - film)) / (near**2).sum(axis=1), 0, 1)
            off.append(np.linalg.norm(film + share[:, None] * near - point, axis=1).min())
        assert min(off) < 1e-5


def test_the_seed_alone_fixes_what_smote_invents():
    first, again, other = (smote_features(FEATURES, LABELS, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("films", [[5, 40], [0, 40]])
def test_smote_refuses_a_class_of_too_few_films(films):
    labels = np.repeat([0, 1], films)
    with pytest.raises(BadInput, match=r"at least 6 training films each, found .*: set oversampling: none"):
        smote_features(FEATURES[: len(labels)], labels, 0)


def test_smote_refuses_broken_features():
    with pytest.raises(ValueError, match="as many rows"):
        smote_features(FEATURES[1:], LABELS, 0)
    broken = FEATURES.copy()
    broken[3, 2] = np.inf
    with pytest.raises(BadInput, match="finite"):
        smote_features(broken, LABELS, 0)
