"""Faults planted in a retraining: each is refused, and the champion stays."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json, sha256_bytes, write_json
from openmed.gates.gate import FAIL, INSUFFICIENT, OUTSIDE_PLAN, PASS
from openmed.inference.checkpoint import EXPORT_FILE, WEIGHTS_FILE, load_model, read_spec, write_spec
from openmed.inference.control import CONTROL_FILE, write_control
from openmed.inference.export import graph_bytes
from pipeline import ledger, registry
from pipeline.promotion import actions as promotion
from tests.pipeline.conftest import make_workspace, register

VIT = "artifacts/evaluate/vit"
MANY = ["train"] * 8 + ["validation"] * 4 + ["calibration"] * 4 + ["test"] * 60


@pytest.fixture(scope="module")
def ground(tmp_path_factory, migrated):
    """A registry with a champion."""
    root = tmp_path_factory.mktemp("faults")
    (root / "home").mkdir()
    shutil.copy(migrated, root / "home/mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(make_workspace(root / "champion", ("vit",)), "champion")
        decide("1")
    return root


@pytest.fixture
def home(ground, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(ground / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return ground / "home"


def decide(version):
    return promotion.promote(
        version, approved_by={"clinical": "Dr Adams"}, comment="", expected_champion=ledger.champion()
    )


def refused(workspace, request, gate, verdict):
    """Registers a retraining and sees that one gate, and the promotion, refuse it."""
    version = register(workspace, request.node.name.replace(" ", "-")).version
    judged = promotion.gate(version)
    gates = {found.name: found for found in [*judged.gates, *judged.comparison]}
    assert gates[gate].verdict == verdict, gates[gate]
    assert judged.verdict != PASS
    with pytest.raises(BadInput, match="cannot be promoted"):
        decide(version)
    assert ledger.champion() == "1"
    return gates[gate].reason


def scored(function):
    """A change of the scores: `function` gets labels and a random generator."""
    return lambda rows: rows.assign(score=function(rows["label"].to_numpy(), np.random.default_rng(0)))


def test_a_model_without_a_fault_passes_every_gate(home, tmp_path, request):
    version = register(make_workspace(tmp_path / "ws", ("vit",), seed=1), request.node.name).version
    judged = promotion.gate(version)
    assert {found.verdict for found in judged.gates} == {PASS} and judged.verdict == PASS
    assert any("films with the finding" in sentence for sentence in judged.limits)
    assert "What this test could and could not have shown" in judged.table_markdown


@pytest.mark.parametrize(
    ("scores", "gate"),
    [
        pytest.param(lambda labels, rng: rng.uniform(0.1, 0.9, len(labels)), "auc", id="shuffled labels"),
        pytest.param(lambda labels, _: np.full(len(labels), 0.9), "specificity", id="collapse to one class"),
        pytest.param(
            lambda labels, rng: 0.7 - 0.4 * labels + rng.uniform(0, 0.1, len(labels)),
            "auc vs champion",
            id="worse model",
        ),
    ],
)
def test_a_bad_model_is_refused(home, tmp_path, request, scores, gate):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=2, splits=MANY, change=scored(scores))
    refused(workspace, request, gate, FAIL)


def test_a_model_that_found_a_leaked_label_is_refused(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=3)
    metrics = read_json(workspace / VIT / "metrics.json")
    metrics["stress"]["lungs hidden"]["auc"] = 0.99
    write_json(workspace / VIT / "metrics.json", metrics)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["evaluation"]["stress"]["max_auc_without_lungs"] = 0.9
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    reason = refused(workspace, request, "shortcuts", FAIL)
    assert "With both lungs hidden its AUC is 0.990" in reason


def at_worst_site(workspace, share, worst, floor):
    """Says what the worst simulated site made of a share, and what the plan asks for."""
    metrics = read_json(workspace / VIT / "metrics.json")
    metrics["sites"]["test"]["worst"][share] = worst
    write_json(workspace / VIT / "metrics.json", metrics)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["evaluation"]["stress"]["site_floors"][share] = floor
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))


def test_a_model_that_fails_at_one_simulated_site_is_refused(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=15)
    worst = {"value": 0.31, "low": 0.2, "high": 0.45, "site": "gamma 1.7"}
    at_worst_site(workspace, "specificity", worst, 0.6)
    reason = refused(workspace, request, "robustness specificity", FAIL)
    assert "At the worst simulated site (gamma 1.7) the specificity is 0.310" in reason


def test_a_plan_of_before_there_were_sites_is_read_and_gives_no_evidence(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=17)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    stress = plan["protocol"]["evaluation"]["stress"]
    del stress["site_floors"]
    stress["max_loss"] = 0.05
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    assert "older than simulated sites" in refused(workspace, request, "robustness", INSUFFICIENT)


def test_too_few_films_at_the_worst_site_are_no_evidence(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=16)
    worst = {"value": 0.9, "low": 0.55, "high": 1.0, "site": "flat"}
    at_worst_site(workspace, "sensitivity", worst, 0.8)
    refused(workspace, request, "robustness sensitivity", INSUFFICIENT)


def test_a_model_that_misses_the_findings_of_one_hospital_is_refused(home, tmp_path, request):
    west = np.arange(len(MANY)) // 2 % 6 >= 4

    def missed(rows):
        return rows.assign(
            score=rows["score"].mask(west[rows.index] & (rows["label"] == 1) & (rows["split"] == "test"), 0.1)
        )

    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=9, splits=MANY, change=missed)
    manifest = workspace / "artifacts/validate/manifest.parquet"
    films = pd.read_parquet(manifest)
    films.assign(source=np.where(west, "west", "east")).to_parquet(manifest)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    subgroups = plan["protocol"]["evaluation"]["subgroups"]
    subgroups |= {"min_films": 5, "floors": {"sensitivity": 0.75, "specificity": 0.0}}
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    reason = refused(workspace, request, "subgroups", FAIL)
    assert "source west" in reason and "source east" not in reason


def test_a_training_of_nan_gives_scores_that_are_no_probabilities_and_no_verdict(tmp_path):
    with pytest.raises(ValueError, match="scores must be probabilities"):
        make_workspace(
            tmp_path / "ws", ("vit",), change=scored(lambda labels, _: np.full(len(labels), np.nan))
        )


def test_test_films_that_drifted_from_those_of_the_threshold_are_refused(home, tmp_path, request):
    def dimmer(rows):
        return rows.assign(score=np.where(rows["split"] == "test", rows["score"] / 2, rows["score"]))

    splits = ["train"] * 8 + ["validation"] * 4 + ["calibration"] * 40 + ["test"] * 60
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=4, splits=splits, change=dimmer)
    reason = refused(workspace, request, "threshold transfer", FAIL)
    assert reason.endswith("which chance does not explain: the two differ in kind.")


def test_a_changed_preprocessing_is_outside_the_plan(home, tmp_path, request):
    changed = {"preprocess": {"image_size_px": {"vit": 48}}}
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=5, **changed)
    reason = refused(workspace, request, "change plan", OUTSIDE_PLAN)
    assert "preprocess.image_size_px.vit was not set and is 48" in reason


@pytest.mark.parametrize("file", [f"model/{WEIGHTS_FILE}", "model/model.json", "predictions.parquet"])
def test_what_was_swapped_after_the_evaluation_is_not_registered(home, tmp_path, file):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=6)
    shutil.copy(make_workspace(tmp_path / "other", ("vit",), seed=7) / VIT / file, workspace / VIT / file)
    with pytest.raises(IntegrityError, match="is not what evaluate@vit wrote"):
        registry.register_candidates(workspace, run_key="swapped", revision="abc")


def test_an_export_that_decides_otherwise_than_its_model_is_refused(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=12, films_seed=12)
    other = load_model(make_workspace(tmp_path / "other", ("vit",), seed=13) / VIT / "model")
    folder, graph = workspace / VIT / "model", graph_bytes(other)
    (folder / EXPORT_FILE).write_bytes(graph)
    write_spec(folder, *read_spec(folder), sha256_bytes(graph))
    films = np.random.default_rng(0).integers(0, 256, (8, 32, 32)).astype(np.uint8)
    # An export without phantoms is of before: nothing but this gate holds it against the weights.
    write_control(workspace / VIT / CONTROL_FILE, load_model(folder), films)
    assert "export of this vit decides otherwise" in refused(workspace, request, "export", FAIL)


def test_a_changed_threshold_is_refused(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=8)
    for name in ("metrics.json", "model/model.json"):
        path = workspace / VIT / name
        path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": 0.4'))
    version = register(workspace, request.node.name).version
    with pytest.raises(IntegrityError, match=r"the threshold of version \d+ is 0\.4"):
        decide(version)
    assert ledger.champion() == "1"


def test_a_cut_test_set_is_refused(home, tmp_path, request):
    def easy(rows):
        return rows[~((rows["split"] == "test") & (np.arange(len(rows)) % 3 == 0))]

    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=9, change=easy)
    assert "are not those of the split" in refused(workspace, request, "leakage", FAIL)


def test_patients_in_training_and_test_are_refused(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=10)
    path = workspace / "artifacts/split/split.parquet"
    split = pd.read_parquet(path)
    split.loc[split["split"] == "train", "patient"] = split.loc[split["split"] == "test", "patient"].iloc[0]
    split.to_parquet(path)
    assert "1 patients are in more than one split" in refused(workspace, request, "leakage", FAIL)


def test_films_under_two_labels_that_were_left_out_are_no_leak(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=10)
    path = workspace / "artifacts/split/split.parquet"
    split = pd.read_parquet(path)
    # Each of a patient who has a film in training too.
    split.loc[[0, 2], "split"] = "left_out"
    split.to_parquet(path)
    judged = promotion.gate(register(workspace, request.node.name).version)
    (found,) = [gate for gate in judged.gates if gate.name == "leakage"]
    assert found.verdict == PASS, found


def test_too_many_looks_at_one_test_set_are_outside_the_plan(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=11)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["evaluation"]["looks"] = 1
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    reason = refused(workspace, request, "looks", OUTSIDE_PLAN)
    assert "the plan allows 1: set new test films aside" in reason


def test_a_changed_plan_counts_only_once_a_person_has_adopted_it(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=12, films_seed=12)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["modifications"]["settings"].append("evaluate.*")
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    assert "adopt it first" in refused(workspace, request, "change plan", OUTSIDE_PLAN)
    version = registry.list_versions()[0].version
    with pytest.raises(BadInput, match="needs a reason"):
        ledger.adopt(version, by="Dr Adams", reason="")
    ledger.adopt(version, by="Dr Adams", reason="the calibration may be tuned")
    assert promotion.gate(version).verdict == PASS
    assert "its change plan was adopted by Dr Adams" in ledger.story(version)[-1][1]


def test_floors_below_those_of_the_plan_are_outside_it(home, tmp_path, request):
    workspace = make_workspace(tmp_path / "ws", ("vit",), seed=13, floors={"auc": 0.5})
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["evaluation"]["floors"] = {"auc": 0.6, "sensitivity": 0.5}
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    reason = refused(workspace, request, "change plan", OUTSIDE_PLAN)
    assert "The floor of auc is 0.5, but the plan asks for 0.6" in reason
    assert "the floor of sensitivity is not set" in reason
