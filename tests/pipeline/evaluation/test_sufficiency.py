"""What later stages need of every class is counted in split, and agrees with what they refuse."""

import numpy as np
import pandas as pd
import pytest

from openmed.dataset.sampling import smote_features
from openmed.dataset.splits import SPLITS
from openmed.errors import BadInput
from openmed.fitted.abstention import fit_abstention
from openmed.fitted.calibration import fit_calibration
from openmed.fitted.feature_statistics import fit_statistics
from pipeline.evaluation.rules import Rules, check_floors
from pipeline.evaluation.sufficiency import check_classes
from pipeline.settings.params import Params
from tests.conftest import run_stages, write_params

CLASSES = ("NORMAL", "PNEUMONIA")


def films_of(counts, patients=None):
    """Films of each class in each split, each of a patient of its own unless `patients` says how many."""
    rows = [
        {
            "split": split,
            "label": label,
            "patient": f"{split}{label}-{n % ((patients or {}).get(split) or 999)}",
        }
        for split in SPLITS
        for label, count in enumerate(counts.get(split, (20, 20)))
        for n in range(count)
    ]
    return pd.DataFrame(rows).assign(id=[f"{n:016x}" for n in range(len(rows))])


def settings(params, **evaluate):
    params["evaluate"] |= {"abstention_coverage": None, "unlike_share": None} | evaluate
    return Params.model_validate(params)


def refused_by_library(function, *arguments):
    try:
        function(*arguments)
    except BadInput:
        return True
    return False


@pytest.mark.parametrize(("method", "needed"), [("platt", 5), ("temperature", 5), ("isotonic", 50)])
def test_calibration_is_refused_from_the_number_on_at_which_it_refuses_itself(params, method, needed):
    own = settings(params, calibration=method)
    for count in (needed - 1, needed):
        films = films_of({"calibration": (60, count)})
        labels = films.loc[films["split"] == "calibration", "label"].to_numpy()
        logits = np.random.default_rng(0).normal(size=(len(labels), 2))
        assert refused_by_library(fit_calibration, method, logits, labels, (0, 0)) == (count < needed)
        if count == needed:
            check_classes(films, own)
        else:
            found = (
                rf"PNEUMONIA has {count} calibration films and {method} calibration needs {needed}: give more"
            )
            with pytest.raises(BadInput, match=f"{found}.*change split.shares or evaluate.calibration$"):
                check_classes(films, own)


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19)])
def test_abstention_counts_patients_and_agrees_with_the_library(params, coverage, needed):
    own = settings(params, abstention_coverage=coverage)
    for people in (needed - 1, needed):
        films = films_of({"calibration": (60, 60)}, {"calibration": people})
        part = films[films["split"] == "calibration"]
        even = np.full((len(part), 2), 0.5)
        refused = refused_by_library(fit_abstention, part["label"], even, part["patient"], coverage)
        assert refused == (people < needed)
        if people == needed:
            check_classes(films, own)
        else:
            with pytest.raises(
                BadInput, match=rf"NORMAL has {people} calibration patients and abstention .*{needed};"
            ):
                check_classes(films, own)


def test_all_that_is_missing_is_in_one_sentence_with_how_many_films_would_do(params):
    own = settings(params, abstention_coverage=0.9)
    with pytest.raises(BadInput) as refusal:
        check_classes(films_of({"calibration": (24, 1)}), own)
    share = own.split.shares["calibration"]
    assert str(refusal.value) == (
        "too few films of a class: PNEUMONIA has 1 calibration film and platt calibration needs 5; PNEUMONIA "
        "has 1 calibration patient and abstention with a coverage of 0.9 needs 9: give more films of "
        f"PNEUMONIA (about {int(np.ceil(9 / share))} patients of a class in all) or change split.shares, "
        "evaluate.calibration or evaluate.abstention_coverage"
    )


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_needs_each_class(params, split):
    with pytest.raises(BadInput, match=f"NORMAL has 0 {split} films and every stage needs 1"):
        check_classes(films_of({split: (0, 30)}), settings(params))


def test_smote_needs_six_training_films_of_each_class(params):
    params["train"]["vit"]["head"] |= {"oversampling": "smote", "epochs": 1}
    own = settings(params)
    for count in (5, 6):
        labels = np.repeat([0, 1], [20, count])
        features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
        assert refused_by_library(smote_features, features, labels, 0) == (count < 6)
    check_classes(films_of({"train": (20, 6)}), own)
    with pytest.raises(
        BadInput, match=r"PNEUMONIA has 5 train films and SMOTE needs 6.*train\.vit.head.oversampling"
    ):
        check_classes(films_of({"train": (20, 5)}), own)


def test_the_statistics_of_unlike_films_need_different_training_films(params):
    own = settings(params, unlike_share=0.03)
    for count in (5, 6):
        features = [np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)]
        assert refused_by_library(fit_statistics, features, np.arange(count) % 2) == (count < 6)
    films = films_of({"train": (4, 2)})
    check_classes(films, own)
    films.loc[1, "id"] = films.loc[0, "id"] + "-2"
    with pytest.raises(BadInput, match="the train split has 5 films without copies, and 6 are needed"):
        check_classes(films, own)


def test_a_floor_that_a_faultless_model_could_not_reach_is_refused(params):
    params["evaluate"] |= {"floors": {"auc": 0.8}, "target_sensitivity": 0.95}
    rules = Rules.of_each(params, "params.yaml")
    check_floors(films_of({"test": (60, 60)}), CLASSES, rules)
    with pytest.raises(
        BadInput, match=r"PNEUMONIA: on 2 test films with PNEUMONIA and 60 without even .* auc"
    ):
        check_floors(films_of({"test": (60, 2)}), CLASSES, rules)


def test_split_refuses_what_evaluate_would_refuse_and_names_the_class(workspace, params):
    params["evaluate"]["calibration"] = "isotonic"
    write_params(workspace, params)
    with pytest.raises(
        BadInput, match=r"(NORMAL|PNEUMONIA) has \d+ calibration films and isotonic .* needs 50"
    ):
        run_stages(workspace, ["split"])


def test_a_class_without_usable_films_is_refused_in_split_by_its_name(workspace):
    manifest = pd.read_parquet(workspace / "artifacts/validate/manifest.parquet")
    manifest.loc[manifest["label"] == 1, "status"] = "quarantined"
    manifest.to_parquet(workspace / "artifacts/validate/manifest.parquet")
    with pytest.raises(
        BadInput, match="the train split has no film of class PNEUMONIA, of which there are 0"
    ):
        run_stages(workspace, ["split"])
