"""The profile of a data version: what it keeps, and how two versions' patients are matched."""

import numpy as np
import pandas as pd
import pytest

from openmed.dataset.profile import COLUMNS, added_films, age_band, link_patients, profile_films


def films(patients, hashes):
    return pd.DataFrame({"patient": patients, "sha256": hashes})


def test_a_profile_keeps_accepted_films_and_neither_path_nor_reason():
    manifest = pd.DataFrame(
        {
            **{name: [1.0, 2.0, 3.0] for name in COLUMNS},
            "label": [0, 1, 1],
            "status": ["accepted", "quarantined", "accepted"],
            "path": "films/DOE.png",
            "reason": "",
            "view": ["PA", "", "AP"],
        }
    )
    found = profile_films(manifest, ("NORMAL", "PNEUMONIA"))
    assert list(found.columns) == [*COLUMNS, "view"]
    assert list(found["label"]) == ["NORMAL", "PNEUMONIA"] and list(found["mean"]) == [1.0, 3.0]


def test_of_an_age_only_the_band_is_kept():
    manifest = pd.DataFrame({name: [1.0] * 5 for name in COLUMNS} | {"label": 0, "status": "accepted"})
    manifest["age_years"] = pd.array([0, 1, 17, 65, None], "Int64")
    found = profile_films(manifest, ("NORMAL", "PNEUMONIA"))
    assert list(found["age_band"]) == ["below 2", "below 2", "2 to 17", "65 and older", ""]
    assert "age_years" not in found


@pytest.mark.parametrize(
    ("years", "band"), [(2, "2 to 17"), (18, "18 to 39"), (64, "40 to 64"), (90, "65 and older")]
)
def test_a_band_begins_with_its_first_year(years, band):
    assert age_band(years) == band


def test_patients_who_share_a_film_are_the_same_whatever_their_names():
    old = films(["p1", "p1", "p2", "p3"], ["a", "b", "c", "d"])
    new = films(["Anna", "Anna", "p1", "Carl"], ["b", "x", "y", "d"])
    first, second = link_patients(old, new)
    assert first["patient"].nunique() == 3
    assert second["patient"].iloc[0] == second["patient"].iloc[1] == first["patient"].iloc[0]
    assert second["patient"].iloc[3] == first["patient"].iloc[3]
    # An equal name alone proves nothing: the registry's numbers mean nothing outside one retraining.
    assert second["patient"].iloc[2] not in set(first["patient"])
    assert old["patient"].iloc[0] == "p1"


def test_patients_are_joined_over_any_number_of_shared_films():
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 60, 400)
    hashes = np.array([f"h{number}" for number in range(400)])
    kept = rng.random(400) < 0.7
    first, second = link_patients(films(owner, hashes), films(1000 + owner[kept], hashes[kept]))
    expected = first["patient"].to_numpy()[kept]
    np.testing.assert_array_equal(second["patient"], expected)
    assert pd.Series(expected).groupby(owner[kept]).nunique().max() == 1
    assert first["patient"].nunique() == len(set(owner))


def test_neither_names_nor_order_change_the_numbers_of_patients():
    old = films(["p1", "p1", "p2", "p3"], ["a", "b", "c", "d"])
    new = films(["Anna", "Anna", "p1", "Carl"], ["b", "x", "y", "d"])
    first, second = link_patients(old, new)
    turned, other = link_patients(old[::-1], new[::-1].assign(patient=["C", "p", "A", "A"]))
    assert list(first["patient"]) == list(turned["patient"][::-1]) == [0, 0, 1, 2]
    assert list(second["patient"]) == list(other["patient"][::-1]) == [0, 0, 3, 2]


def test_added_films_are_those_of_new_content():
    old, new = films(["p", "p"], ["a", "b"]), films(["q", "q", "q"], ["b", "c", "c"])
    assert list(added_films(old, new)["sha256"]) == ["c", "c"]
