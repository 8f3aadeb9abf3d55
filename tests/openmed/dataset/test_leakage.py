"""The firewall: each way of leaking is planted, and is repaired with proof or stops the run."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmed.dataset import leakage
from openmed.dataset.splits import LEFT_OUT, SPLITS, assign, group_patients
from openmed.errors import BadInput

NO_PAIRS = np.zeros((0, 2), np.int64)
SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}


def films_of(*rows, **columns):
    """Rows are (content, hash, patient, label)."""
    films = pd.DataFrame(rows, columns=["sha256", "perceptual_hash", "patient", "label"])
    films.insert(0, "id", [f"film{place}" for place in range(len(films))])
    films["path"] = [f"films/train/{place}.png" for place in range(len(films))]
    return films.assign(declared_split="", **columns)


def many(count=300):
    return films_of(*[(f"s{n}", f"h{n}", f"DOE^{n // 2}", int(n // 2 % 4 > 0)) for n in range(count)])


def test_copies_are_counted_by_what_they_are_and_the_patients_are_joined():
    films = films_of(
        *[("s0", "h0", "DOE", 0), ("s0", "h0", "ROE", 0), ("s2", "h2", "DOE", 0), ("s3", "h3", "POE", 0)],
        ("s4", "h4", "COE", 0),
    )
    pairs = np.array([[0, 1], [0, 2], [2, 3], [3, 4]])
    same = np.array([True, True, True, False])
    films["group"] = group_patients(films["patient"], pairs[same])
    found = leakage.copies(films, pairs, same)
    assert (found.outcome, found.found) == ("repaired", 2)
    assert found.films == ("film0", "film1", "film2", "film3")
    assert found.detail == (
        "3 pairs: 1 exact, 2 near and confirmed on the pixels; 1 were alike by their hash alone. "
        "2 pairs are between patients, 1 of them exact; 3 patients became 1 groups"
    )


def test_copies_under_one_patient_are_no_leak():
    films = films_of(("s0", "h0", "DOE", 0), ("s0", "h0", "DOE", 0), group="DOE")
    found = leakage.copies(films, np.array([[0, 1]]), np.array([True]))
    assert (found.outcome, found.found, found.films) == ("clean", 0, ())


def test_one_content_under_two_labels_is_left_out():
    films = films_of(("s0", "h", "a", 0), ("s1", "g", "b", 1), ("s0", "h", "c", 1), ("s3", "f", "d", 0))
    out, found = leakage.label_conflicts(films, NO_PAIRS, 0.5)
    assert out.tolist() == [True, False, True, False]
    assert (found.outcome, found.found, found.films) == ("repaired", 2, ("film0", "film2"))
    assert "2 by equal content, 0 by their pixels" in found.detail


def test_copies_of_a_film_under_two_labels_are_left_out_with_it():
    rows = [("s0", "h", "a", 0), ("s1", "h", "b", 1), ("s2", "h", "c", 1), ("s2", "h", "d", 1)]
    films = films_of(*rows, ("s4", "g", "e", 0), ("s5", "g", "f", 0))
    out, found = leakage.label_conflicts(films, np.array([[0, 1], [1, 2], [4, 5]]), 0.9)
    assert out.tolist() == [True, True, True, True, False, False]
    assert "0 by equal content, 4 by their pixels" in found.detail


def test_too_many_films_under_two_labels_stop_the_run_and_are_named():
    films = films_of(
        ("s0", "h", "DOE", 0), ("s0", "h", "ROE", 1), ("s2", "g", "POE", 1), ("s3", "f", "POE", 0)
    )
    assert leakage.label_conflicts(films, NO_PAIRS, 0.5)[1].found == 2
    with pytest.raises(
        BadInput, match=r"2 of 4 films .*max_conflicting_share` 0\.49 .*film0, film1"
    ) as error:
        leakage.label_conflicts(films, NO_PAIRS, 0.49)
    assert "OE" not in str(error.value)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), max_size=12), st.data())
def test_pairs_across_labels_are_those_that_a_loop_over_all_films_finds(rows, data):
    """Contents 0 to 2 of hashes 0 to 3, hash 0 near hash 1 and hash 2 near hash 3, under labels 0 and 1."""
    films = films_of(*[(f"{h}-{content}", str(h), "a", label) for h, content, label in rows])
    first = films.drop_duplicates("perceptual_hash").set_index("perceptual_hash")["id"]
    place = {name: int(film.removeprefix("film")) for name, film in first.items()}
    pairs = [[place[h], n] for n, h in enumerate(films["perceptual_hash"]) if place[h] != n]
    pairs += [sorted((place[a], place[b])) for a, b in ("01", "23") if a in place and b in place]
    found = leakage.pairs_across_labels(films, np.array(sorted(pairs), np.int64).reshape(-1, 2))
    columns = films[["sha256", "label"]].to_numpy().tolist()
    near = {frozenset(pair) for pair in ("0", "1", "2", "3", "01", "23")}
    expected = {
        frozenset((tuple(a), tuple(b)))
        for a in columns
        for b in columns
        if a[1] != b[1] and a[0] != b[0] and frozenset(a[0][0] + b[0][0]) in near
    }
    got = [frozenset((tuple(columns[i]), tuple(columns[j]))) for i, j in found]
    assert set(got) == expected
    assert len(got) == len(expected)


def test_a_patient_of_two_labels_is_recorded():
    films = films_of(("s0", "h0", "DOE", 0), ("s1", "h1", "DOE", 1), ("s2", "h2", "ROE", 1))
    found = leakage.patients_of_several_labels(films)
    assert (found.outcome, found.found, found.films) == ("recorded", 1, ("film0", "film1"))
    assert "1 of 2 patients" in found.detail


@pytest.mark.parametrize(
    ("declared", "outcome"), [(1, "repaired"), (2, "repaired"), (3, "clean"), (0, "clean")]
)
def test_a_declared_validation_set_below_one_percent_becomes_training_films(declared, outcome):
    films = many(300)
    films.loc[: declared - 1, "declared_split"] = "validation"
    split, found = leakage.usable_validation(films)
    assert found.outcome == outcome
    assert (split == "validation").sum() == (declared if outcome == "clean" else 0)
    assert (split == "train").sum() == found.found == (declared if outcome == "repaired" else 0)


def test_a_validation_folder_that_the_import_gave_up_is_recorded():
    films = many(300).assign(declared_split="train")
    films.loc[:15, "path"] = [f"films/validation/NORMAL/{n}.png" for n in range(16)]
    split, found = leakage.usable_validation(films)
    assert (found.outcome, found.found, len(found.films)) == ("repaired", 16, 16)
    assert "16 lie in a validation folder" in found.detail
    assert set(split) == {"train"}


def test_films_left_out_beside_a_declared_set_are_recorded_apart_from_those_under_two_labels():
    films = films_of(*[(f"s{n}", f"h{n}", "DOE", 0) for n in range(3)], split=["test", LEFT_OUT, LEFT_OUT])
    found = leakage.declared_overlap(films, np.array([False, False, True]))
    assert (found.outcome, found.found, found.films) == ("repaired", 1, ("film1",))


def test_a_patient_in_two_splits_stops_the_run_without_being_named():
    films = many().assign(split="train")
    assert leakage.verify_patients(films).outcome == "clean"
    films.loc[0, "split"] = LEFT_OUT
    assert leakage.verify_patients(films).detail == "each of 150 patients is in one split"
    films.loc[0, "split"] = "test"
    with pytest.raises(BadInput, match=r"1 patient\(s\) are in two splits, with film film0, film1") as error:
        leakage.verify_patients(films)
    assert "DOE" not in str(error.value)


def test_a_chain_of_copies_in_two_splits_stops_the_run():
    films = many(4).assign(split=["test", LEFT_OUT, "test", "train"])
    assert leakage.verify_copies(films, np.array([[0, 1], [1, 2]])).outcome == "clean"
    with pytest.raises(BadInput, match="copies of a film are in two splits, film film0, film2, film3"):
        leakage.verify_copies(films, np.array([[0, 1], [1, 2], [1, 3]]))


@pytest.mark.parametrize("declared", [{}, {"test": 60}, {"test": 60, "validation": 40}])
def test_what_the_split_assigns_passes(declared):
    films, start = many(600), 0
    for name, count in declared.items():
        films.loc[start : start + count, "declared_split"] = name
        start += count + 1
    pairs = np.array([[n, n + 7] for n in range(0, 500, 50)])
    films["group"] = group_patients(films["patient"], pairs)
    films["split"] = assign(films, SHARES, 1)
    assert leakage.verify_patients(films).outcome == leakage.verify_copies(films, pairs).outcome == "clean"
    overlap = leakage.declared_overlap(films, np.zeros(len(films), bool))
    assert overlap.outcome == ("repaired" if declared else "clean")


def test_training_rows_may_repeat_but_come_from_the_training_split():
    split = pd.DataFrame({"id": list("abcde"), "split": [*SPLITS, LEFT_OUT]})
    assert leakage.verify_training_rows(pd.DataFrame({"id": list("aaa")}), split) == 3
    for name in "bcde":
        with pytest.raises(
            BadInput, match=f"2 training rows are of films outside .*, film {name}: run resample"
        ):
            leakage.verify_training_rows(pd.DataFrame({"id": ["a", name, name]}), split)
    with pytest.raises(BadInput, match="1 training rows are of films that the split does not know, film z"):
        leakage.verify_training_rows(pd.DataFrame({"id": ["a", "z"]}), split)


def test_a_long_list_of_films_is_cut_in_a_sentence():
    split = pd.DataFrame({"id": ["a"], "split": ["train"]})
    rows = pd.DataFrame({"id": [f"x{n}" for n in range(9)]})
    with pytest.raises(BadInput, match="film x0, x1, x2, x3, x4 and 4 more: run"):
        leakage.verify_training_rows(rows, split)


def test_a_finding_is_plain_json():
    found = leakage.patients_of_several_labels(many())
    content = json.loads(json.dumps(found.to_json()))
    assert list(content) == ["check", "outcome", "found", "detail", "films"]
