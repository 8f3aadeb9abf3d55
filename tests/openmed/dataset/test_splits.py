"""Splits: patients and near-duplicates never cross, shares hold, seeds repeat."""

import hashlib
import itertools
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from openmed.dataset.splits import LEFT_OUT, SPLITS, assign, group_patients
from openmed.errors import BadInput

SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}


def films_of(patients=400, seed=0):
    """About three films a patient, a quarter of the patients with label 0."""
    rng = random.Random(seed)
    rows = [
        {"group": f"p{number:04d}", "label": int(number % 4 > 0), "declared_split": ""}
        for number in range(patients)
        for _ in range(rng.randint(1, 5))
    ]
    return pd.DataFrame(rows)


def test_patients_joined_by_a_chain_of_duplicates_are_one_group():
    patients = pd.Series(["d", "b", "c", "a", "e", "b"], index=[10, 11, 12, 13, 14, 15])
    groups = group_patients(patients, np.array([[0, 1], [1, 2], [2, 3]]))
    assert groups.to_dict() == {10: "a", 11: "a", 12: "a", 13: "a", 14: "e", 15: "a"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=25), st.data())
def test_groups_are_the_connected_components(numbers, data):
    patients = pd.Series([f"p{number}" for number in numbers])
    position = st.integers(0, len(numbers) - 1)
    pairs = data.draw(st.lists(st.tuples(position, position), max_size=15))
    groups = group_patients(patients, np.array(pairs, np.int64).reshape(-1, 2))
    parts = [{name} for name in set(patients)]
    for i, j in pairs:
        joined = [part for part in parts if part & {patients[i], patients[j]}]
        parts = [part for part in parts if part not in joined] + [set().union(*joined)]
    expected = {name: min(part) for part in parts for name in part}
    assert list(groups) == [expected[name] for name in patients]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_group_is_in_two_splits(seed, draw):
    films = films_of(120, draw)
    films["split"] = assign(films, SHARES, seed)
    assert (films.groupby("group")["split"].nunique() == 1).all()
    assert set(films["split"]) == set(SPLITS)


def test_every_class_has_nearly_its_share_in_every_split():
    films = films_of(1000)
    films["split"] = assign(films, SHARES, 1)
    shares = films.groupby("label")["split"].value_counts(normalize=True)
    for label, (name, share) in itertools.product((0, 1), SHARES.items()):
        assert shares[label, name] == pytest.approx(share, abs=0.01)


def class_deviation(films, split):
    """Largest difference between the share of a class in a split and among all films."""
    counts = pd.crosstab(split, films["label"])
    shares = counts.div(counts.sum(axis=1), axis=0)
    return (shares - counts.sum() / len(films)).abs().to_numpy().max()


def by_sklearn(films, seed):
    """Ten folds of StratifiedGroupKFold: one for validation, one for calibration, two for the test."""
    folds = StratifiedGroupKFold(10, shuffle=True, random_state=seed)
    split = pd.Series("train", films.index)
    for name, (_, part) in zip(
        ("validation", "calibration", "test", "test"),
        folds.split(films, films["label"], films["group"]),
        strict=False,
    ):
        split.iloc[part] = name
    return split


def mixed_films(groups, seed):
    """One to eight films a group, of up to three classes."""
    rng = np.random.default_rng(seed)
    sizes, lean = rng.integers(1, 9, groups), rng.choice([0.05, 0.5, 0.9], groups)
    group = np.repeat(np.arange(groups), sizes)
    label = (rng.random(len(group)) < lean[group]).astype(int) + (rng.random(len(group)) < 0.1)
    return pd.DataFrame({"group": [f"g{n}" for n in group], "label": label, "declared_split": ""})


@pytest.mark.parametrize("films", [films_of(700), mixed_films(600, 1), mixed_films(150, 2)], ids=len)
def test_the_classes_are_as_balanced_as_by_stratified_group_k_fold(films):
    ours = [class_deviation(films, assign(films, SHARES, seed)) for seed in range(8)]
    theirs = [class_deviation(films, by_sklearn(films, seed)) for seed in range(8)]
    assert np.mean(ours) <= 1.1 * np.mean(theirs)


@pytest.mark.parametrize("groups, share", [(600, 0.05), (150, 0.15)])
def test_adding_patients_of_several_classes_moves_few_of_the_old_ones(groups, share):
    films = mixed_films(groups, 1)
    old = films[films["group"].map(lambda name: int(name[1:]) % 20 > 0)]
    moved = [(assign(old, SHARES, s) != assign(films, SHARES, s)[old.index]).mean() for s in range(8)]
    assert np.mean(moved) < share


def test_only_groups_next_to_a_cut_leave_the_order_of_their_hashes():
    films = films_of(1000)
    split = assign(films, SHARES, 3)
    groups = films["group"][films["label"] == 1].unique()
    ordered = sorted(groups, key=lambda name: hashlib.sha256(f"3:{name}".encode()).hexdigest())
    places = films.assign(split=split).drop_duplicates("group").set_index("group").loc[ordered, "split"]
    edges = places.index.get_indexer(places[places != places.shift()].index)
    assert set(places.iloc[:300]) == {"train"} and set(places.iloc[-50:]) == {"test"}
    assert len(edges) < 20


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    films = films_of()
    pd.testing.assert_series_equal(assign(films, SHARES, 3), assign(films, SHARES, 3))
    assert (assign(films, SHARES, 3) != assign(films, SHARES, 4)).mean() > 0.2


def test_the_order_of_the_rows_does_not_matter():
    films = films_of()
    shuffled = films.sample(frac=1, random_state=5)
    pd.testing.assert_series_equal(assign(shuffled, SHARES, 3).sort_index(), assign(films, SHARES, 3))


def test_the_order_of_the_rows_does_not_matter_for_groups_of_two_equally_rare_classes():
    rows = [(f"p{n}", label) for n in range(60) for label in (0, 1)]
    rows = [*rows, *((f"q{n}", n % 2) for n in range(40))]
    films = pd.DataFrame(rows, columns=["group", "label"]).assign(declared_split="")
    turned = films.iloc[::-1]
    pd.testing.assert_series_equal(assign(turned, SHARES, 3).sort_index(), assign(films, SHARES, 3))


def test_adding_patients_moves_few_of_the_old_ones():
    films = films_of(1000)
    before = assign(films, SHARES, 3)
    more = pd.DataFrame([{"group": f"new{n}", "label": n % 2, "declared_split": ""} for n in range(50)])
    after = assign(pd.concat([films, more], ignore_index=True), SHARES, 3)[: len(films)]
    assert (before != after).mean() < 0.05


def test_a_declared_test_set_is_used_as_it_is_and_its_patients_others_are_left_out():
    films = films_of()
    films["declared_split"] = "train"
    films.loc[films["group"] < "p0080", "declared_split"] = "test"
    leaking = films[films["group"] < "p0080"].groupby("group").tail(1).query("group < 'p0020'").index
    films.loc[leaking, "declared_split"] = "train"
    split = assign(films, SHARES, 0)
    assert (split[films["declared_split"] == "test"] == "test").all()
    tested = set(films.loc[films["declared_split"] == "test", "group"])
    expected = [index for index in leaking if films.loc[index, "group"] in tested]
    assert list(split.index[split == LEFT_OUT]) == expected
    assert set(split[~films["group"].isin(tested)]) == {"train", "validation", "calibration"}


def test_the_shares_of_the_rest_stay_in_proportion_beside_a_declared_test_set():
    films = films_of(1000)
    films.loc[films["group"] < "p0400", "declared_split"] = "test"
    rest = assign(films, SHARES, 0)[films["group"] >= "p0400"]
    assert (rest == "train").mean() == pytest.approx(0.6 / 0.8, abs=0.01)
    assert (rest == "test").sum() == 0


def test_declared_validation_and_test_sets_are_both_kept_and_share_no_group():
    films = films_of()
    films.loc[films["group"] < "p0150", "declared_split"] = "validation"
    films.loc[films["group"] < "p0080", "declared_split"] = "test"
    mixed = films[films["group"] == "p0007"].index
    films.loc[mixed[1:], "declared_split"] = "validation"
    split = assign(films, SHARES, 0)
    assert (split[films["declared_split"] == "test"] == "test").all()
    assert set(split[mixed[1:]]) <= {LEFT_OUT}
    validation = (films["declared_split"] == "validation") & ~films.index.isin(mixed)
    assert set(split[validation]) == {"validation"}
    assert set(split[films["declared_split"] == ""]) == {"train", "calibration"}


def test_a_group_of_two_classes_counts_for_the_rarer():
    films = films_of(300)
    mixed = pd.DataFrame([{"group": f"m{n}", "label": label} for n in range(100) for label in (1, 1, 2)])
    films = pd.concat([films, mixed.assign(declared_split="")], ignore_index=True)
    films["split"] = assign(films, SHARES, 0)
    shares = films[films["label"] == 2]["split"].value_counts(normalize=True)
    for name, share in SHARES.items():
        assert shares[name] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("declared", ["", "test"])
def test_a_split_without_a_class_is_refused_by_name(declared):
    films = films_of(8).assign(declared_split=declared)
    with pytest.raises(BadInput, match=r"the \w+ split has no film with label [01], of .* add films"):
        assign(films, SHARES, 0)
