"""Drift: distances against other implementations, no shift between halves, planted shifts seen."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance
from sklearn.metrics import roc_auc_score

from openmed.metrics.resampling import cohort, multiplicities
from openmed.monitoring import drift
from openmed.monitoring.drift import MIN_PATIENTS, Limits, compare, verdict
from openmed.monitoring.two_sample import domain_scores, share_differences, wasserstein
from pipeline.settings.params import load_params
from tests.conftest import ROOT

LIMITS = {
    name: Limits(found.moderate, found.large)
    for name, found in load_params(ROOT / "params.yaml").drift.limits.items()
}


COLUMNS = ["sha256", "patient", "label", "mean"]


def archive(seed=0, patients=400, numbers=0):
    """Films of patients who differ from each other more than their own films do."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    count = len(patient)
    style = rng.normal(size=(patients, 12))
    features = (style[patient] + 0.3 * rng.normal(size=(count, 12))).astype(np.float32)
    return pd.DataFrame(
        {
            "sha256": [f"{seed}-{number}" for number in range(count)],
            "patient": patient + numbers,
            "label": np.where(rng.random(patients)[patient] < 0.7, "PNEUMONIA", "NORMAL"),
            "mean": 120 + 18 * style[patient, 0] + rng.normal(size=count),
            "std": 56 + 9 * style[patient, 1] + rng.normal(size=count),
            "width": 1000 + 100 * rng.integers(0, 5, count),
            "height": 900 + 100 * rng.integers(0, 5, count),
            "bits": 8,
            "embedding": list(features),
            "manufacturer": np.where(rng.random(patients)[patient] < 0.5, "A", "B"),
        }
    )


def shifts(reference, new, **options):
    found = compare(reference, new, LIMITS, **({"replicates": 200, "seed": 3} | options))
    return {shift.aspect: shift for shift in found}


@pytest.fixture(scope="module")
def old():
    return archive()


@pytest.fixture(scope="module")
def later():
    return archive(1, numbers=1000)


def resampled_films(drawn, group, membership, side):
    """Row numbers of the films of one side, each as often as its patient was drawn."""
    return np.repeat(
        np.arange(len(membership)), (drawn[group.patient_of_film] * (membership == side)).astype(int)
    )


@pytest.fixture(scope="module")
def both(old, later):
    films = pd.concat([old, later], ignore_index=True)
    membership = np.repeat([0, 1], [len(old), len(later)])
    group = cohort(membership, films["patient"].to_numpy())
    return films, membership, group, next(multiplicities(group, 5, seed=9))


def test_the_wasserstein_distance_is_that_of_scipy_in_every_resample(both):
    films, membership, group, drawn = both
    values = films["mean"].to_numpy().round()
    values[::7] = np.nan
    found = wasserstein(values, membership, group)(drawn)
    for row, distance in zip(drawn, found, strict=True):
        sides = [values[resampled_films(row, group, membership, side)] for side in (0, 1)]
        expected = wasserstein_distance(*(side[np.isfinite(side)] for side in sides))
        assert distance == pytest.approx(expected, rel=1e-10)


def test_differences_of_shares_are_those_of_counting_in_every_resample(both):
    films, membership, group, drawn = both
    codes, names = pd.factorize(films["label"], sort=True)
    found = share_differences(codes, membership, group)(drawn)
    for row, differences in zip(drawn, found, strict=True):
        old, new = (films["label"][resampled_films(row, group, membership, side)] for side in (0, 1))
        expected = [(new == name).mean() - (old == name).mean() for name in names]
        np.testing.assert_allclose(differences, expected, atol=1e-12)


def test_no_film_is_scored_by_a_model_that_saw_its_patient():
    films = pd.concat([archive(0, 40), archive(1, 40, numbers=1000)], ignore_index=True)
    membership = (films["patient"] >= 1000).to_numpy().astype(int)
    group = cohort(membership, films["patient"].to_numpy())
    # The patient is the only feature: what the model saw tells the set, what it did not tells nothing.
    own = np.eye(group.patients, dtype=np.float32)[group.patient_of_film]
    scores = domain_scores(own, membership, group, 0)
    assert len(set(np.round(scores, 4))) == 5 and scores.min() >= 0 and scores.max() <= 1


def test_the_auc_is_that_of_scikit_learn_on_the_same_scores(old, later, both):
    films, membership, group, _ = both
    scores = domain_scores(np.stack(films["embedding"]), membership, group, 3)
    assert shifts(old, later)["embedding"].interval.value == pytest.approx(roc_auc_score(membership, scores))


def test_values_are_the_plain_distances_of_the_two_tables(old, later):
    found = shifts(old, later)
    expected = wasserstein_distance(old["mean"], later["mean"]) / old["mean"].std(ddof=0)
    assert found["brightness"].interval.value == pytest.approx(expected)
    sides = [np.log2(table[["width", "height"]].min(axis=1)) for table in (old, later)]
    assert found["resolution"].interval.value == pytest.approx(wasserstein_distance(*sides))
    counts = [table["label"].value_counts(normalize=True) for table in (old, later)]
    share = found["class share"]
    assert share.interval.value == pytest.approx((counts[1] - counts[0]).abs().sum() / 2)
    assert share.shares["NORMAL"].reference == pytest.approx(counts[0]["NORMAL"])
    assert share.shares["NORMAL"].difference.value == pytest.approx((counts[1] - counts[0])["NORMAL"])


@pytest.mark.parametrize("seed", range(6))
def test_two_draws_of_the_same_patients_do_not_differ(seed):
    found = shifts(archive(2 * seed + 10), archive(2 * seed + 11, numbers=1000))
    assert verdict(list(found.values())) == "none"
    for shift in found.values():
        if shift.verdict == "none":
            assert shift.interval.low <= shift.interval.value <= shift.interval.high


def test_the_interval_holds_the_true_distance_about_as_often_as_it_says():
    # The new films are brighter by one standard deviation of a known distribution.
    inside = 0
    for seed in range(40):
        reference, new = archive(200 + seed, 120), archive(300 + seed, 120, numbers=1000)
        new["mean"] += 18.0
        brightness = shifts(reference[COLUMNS], new[COLUMNS])["brightness"].interval
        truth = 18.0 / reference["mean"].std(ddof=0)
        inside += brightness.low <= truth <= brightness.high
    # 38 of 40 are expected; fewer than 33 would happen once in 200 times.
    assert inside >= 33


PLANTED = {
    "brightness": lambda films: films.assign(mean=films["mean"] + 30),
    "contrast": lambda films: films.assign(std=films["std"] * 0.7),
    "resolution": lambda films: films.assign(width=films["width"] // 2, height=films["height"] // 2),
    "manufacturer": lambda films: films.assign(manufacturer="C"),
    "bits": lambda films: films.assign(bits=16),
    "embedding": lambda films: films.assign(embedding=[-cells for cells in films["embedding"] + 1.5]),
    "class share": lambda films: films[films["label"] == "NORMAL"],
}


@pytest.mark.parametrize("aspect", PLANTED)
def test_a_planted_shift_is_large_in_its_own_aspect_alone(old, later, aspect):
    found = shifts(old, PLANTED[aspect](later))
    assert {name for name, shift in found.items() if shift.verdict == "large"} == {aspect}


def test_one_class_twice_as_often_is_a_moderate_shift(old, later):
    normal = later[later["label"] == "NORMAL"]
    found = shifts(old, pd.concat([later, normal.assign(sha256=normal["sha256"] + "x")]))
    assert found["class share"].verdict == "moderate"


def test_few_odd_films_are_no_large_shift_and_very_few_are_not_judged(old, later):
    patients = later["patient"].unique()
    few = PLANTED["brightness"](later[later["patient"].isin(patients[: MIN_PATIENTS - 1])])
    found = shifts(old, few)
    assert {shift.verdict for shift in found.values()} == {"not measured"}
    assert found["brightness"].reason.startswith(
        f"only {MIN_PATIENTS - 1} patients of the new films have mean"
    )
    # Two bright patients among many move the mean a little, within what resampling allows.
    mixed = later.assign(mean=later["mean"].where(~later["patient"].isin(patients[:2]), 250.0))
    assert shifts(old, mixed)["brightness"].verdict == "none"


def test_what_one_version_does_not_tell_is_not_measured(old, later):
    found = shifts(old.drop(columns=["manufacturer", "embedding"]), later.assign(view=""))
    assert {name for name, shift in found.items() if shift.verdict == "not measured"} == {
        "source",
        "manufacturer",
        "view",
        "sex",
        "age",
        "embedding",
    }
    assert found["sex"].reason == "neither version tells sex of its films"
    assert np.isnan(found["view"].interval.value)
    assert found["view"].to_json()["value"] is None


def test_films_that_do_not_tell_are_left_out_of_the_shares(old, later):
    quiet = later.assign(manufacturer=later["manufacturer"].where(np.arange(len(later)) % 3 > 0, ""))
    assert shifts(old, quiet)["manufacturer"].verdict == "none"


def test_a_version_that_contains_the_other_is_compared_on_the_same_patients(old, later):
    same = shifts(old, old)
    for name in ("class share", "manufacturer", "brightness", "contrast", "resolution"):
        assert same[name].interval.high < 1e-9
    assert same["embedding"].interval.value == pytest.approx(0.5, abs=0.02)
    grown = pd.concat([old, PLANTED["brightness"](later).head(60)])
    alone = shifts(old, PLANTED["brightness"](later).head(60))
    assert shifts(old, grown)["brightness"].interval.value < alone["brightness"].interval.value / 4
    assert alone["brightness"].verdict == "large"


def test_the_same_seed_gives_the_same_numbers_whatever_the_order_of_the_rows(old, later):
    first, again = shifts(old, later), shifts(old, later)
    assert first == again
    shuffled = shifts(old, later.sample(frac=1, random_state=0))
    for name in ("class share", "brightness", "resolution"):
        assert shuffled[name].interval.low == pytest.approx(first[name].interval.low, abs=1e-12)
    assert shifts(old, later, seed=4) != first


def test_the_worst_verdict_stands(old, later):
    found = list(shifts(old, PLANTED["brightness"](later)).values())
    assert verdict(found) == "large"
    assert verdict([shift for shift in found if shift.verdict == "not measured"]) == "not measured"


def test_a_large_archive_is_thinned_by_patients_the_same_ones_on_both_sides(old, later, monkeypatch):
    monkeypatch.setattr(drift, "MAX_PATIENTS", 100)
    grown = pd.concat([old, later], ignore_index=True)
    first, second = drift._thinned(old, grown, seed=0)
    assert first["patient"].nunique() == second["patient"].nunique() == 100
    for thin, table in ((first, old), (second, grown)):
        whole = table[table["patient"].isin(thin["patient"])]
        pd.testing.assert_frame_equal(thin, whole)
    shared = set(second["patient"]) & set(old["patient"])
    assert shared <= set(first["patient"]) and len(shared) > 30
    assert verdict(list(shifts(old, later).values())) == "none"
    assert shifts(old, PLANTED["brightness"](later))["brightness"].verdict == "large"
