"""Three classes, two of them findings: real tiny networks from the films to a promoted version."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import confusion_matrix, roc_auc_score

from openmed.errors import BadInput
from openmed.files import write_json, write_text
from openmed.gates.gate import INSUFFICIENT, OUTSIDE_PLAN, PASS
from pipeline import registry
from pipeline.evaluation.rules import Rules, check_floors
from pipeline.inference import assemble, evaluate_source, predict_films
from pipeline.promotion import actions as promotion
from pipeline.promotion import reproduce
from pipeline.promotion.documents import write_documents
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.external import external_looks
from pipeline.promotion.gates.soundness import soundness_gates
from pipeline.registry import scoring
from tests.conftest import run_stages, write_params
from tests.pipeline.conftest import crown, register

# Names that MLflow does not take, and of which one is the other with what pandas puts behind a column.
REST, VIRAL = "viral, mild_other", "viral, mild"
CLASSES = [REST, VIRAL, "COVID"]
FURTHER = {VIRAL: {"target_sensitivity": 0.8, "floors": {"auc": 0.3, "sensitivity": 0.1}}}


@pytest.fixture(scope="module")
def three(toy, tmp_path_factory):
    """The toy with a third class, run through to its pages; only to be read."""
    root = tmp_path_factory.mktemp("three")
    folder = root / "project"
    shutil.copytree(toy, folder)
    films = pd.read_csv(folder / "data/films.csv", dtype=str, keep_default_na=False)
    odd = films["patient"].str[-1].isin(list("13579"))
    films["label"] = films["label"].map({"NORMAL": REST, "PNEUMONIA": VIRAL})
    films.loc[(films["label"] == VIRAL) & odd, "label"] = "COVID"
    films.to_csv(folder / "data/films.csv", index=False)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["task"] = {"classes": CLASSES, "positive": "COVID"}
    params["evaluate"]["findings"] = FURTHER
    params["split"]["max_conflicting_share"] = 0.05
    params["train"]["resnet50"]["finetune"]["epochs"] = 1
    params["architectures"] = ["resnet50"]
    write_params(folder, params)
    (folder / "data.dvc").write_text("outs:\n- {md5: 0123456789abcdef0123456789abcdef.dir, path: data}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENMED_HOME", str(root / "home"))
        stages = ["train@resnet50", "evaluate@resnet50", "external@resnet50", "explain@resnet50"]
        run_stages(folder, ["validate", "split", "preprocess", "resample", *stages])
    return root, folder


@pytest.fixture
def within(three, monkeypatch):
    root, folder = three
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENMED_HOME", str(root / "home"))
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    return folder


@pytest.fixture(scope="module")
def version(three, migrated):
    """The version of the three classes in a registry of its own."""
    root, folder = three
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENMED_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copy(migrated, root / "home")
        return register(folder, "first").version


def read(folder, name):
    return json.loads((folder / "artifacts" / name).read_text())


def test_each_finding_is_measured_against_all_other_classes_on_the_same_films(within):
    metrics = read(within, "evaluate/resnet50/metrics.json")
    predictions = pd.read_parquet(within / "artifacts/evaluate/resnet50/predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    for name, found in {"COVID": metrics, **metrics["findings"]}.items():
        has, score = test["label"] == CLASSES.index(name), test[f"probability_{name}"]
        assert found["positive"] == name
        assert found["test"]["auc"]["value"] == pytest.approx(roc_auc_score(has, score))
        assert found["test"]["sensitivity"]["value"] == pytest.approx(
            (score[has] >= found["threshold"]).mean()
        )
        assert found["test"]["specificity"]["value"] == pytest.approx(
            (score[~has] < found["threshold"]).mean()
        )
        assert set(found) > {"sites", "stress", "reliability", "prevalence"}


def test_nothing_assumes_two_classes(within):
    predictions = pd.read_parquet(within / "artifacts/evaluate/resnet50/predictions.parquet")
    assert np.allclose(predictions[[f"probability_{name}" for name in CLASSES]].sum(axis=1), 1, atol=1e-5)
    assert np.allclose(predictions["score"], predictions["probability_COVID"])
    spec = read(within, "evaluate/resnet50/model/model.json")["spec"]
    assert len(spec["calibration"]["bias"]) == 3


def test_each_finding_reaches_its_own_target_on_calibration_films(within):
    metrics = read(within, "evaluate/resnet50/metrics.json")
    predictions = pd.read_parquet(within / "artifacts/evaluate/resnet50/predictions.parquet")
    calibration = predictions[predictions["split"] == "calibration"]
    found = metrics["findings"][VIRAL]
    has = calibration["label"] == CLASSES.index(VIRAL)
    scores = calibration.loc[has, f"probability_{VIRAL}"]
    assert (scores >= found["threshold"]).mean() >= found["target_sensitivity"] == 0.8
    # The next film above would miss the target.
    above = scores[scores >= found["threshold"]].min()
    assert (scores > above).mean() < 0.8
    spec = read(within, "evaluate/resnet50/model/model.json")["spec"]
    assert spec["further_thresholds"] == {VIRAL: found["threshold"]}


def test_the_confusion_matrix_counts_the_classes_that_are_called(within):
    metrics = read(within, "evaluate/resnet50/metrics.json")
    predictions = pd.read_parquet(within / "artifacts/evaluate/resnet50/predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    points = {"COVID": metrics["threshold"], VIRAL: metrics["findings"][VIRAL]["threshold"]}

    def call(film):
        odds = {
            name: film[f"probability_{name}"] / (1 - film[f"probability_{name}"]) / (point / (1 - point))
            for name, point in points.items()
            if film[f"probability_{name}"] >= point
        }
        return max(odds, key=odds.get) if odds else REST

    called = [CLASSES.index(call(film)) for film in test.to_dict("records")]
    shown = np.array([list(row.values()) for row in metrics["confusion"].values()])
    assert shown.tolist() == confusion_matrix(test["label"], called, labels=range(3)).tolist()
    assert metrics["called_rightly"]["value"] == pytest.approx(np.mean(called == test["label"]))


def test_the_report_has_the_map_checks_the_curves_and_the_examples_of_each_finding(within):
    explained = read(within, "explain/resnet50/explain.json")
    further = explained["findings"][VIRAL]
    assert further["faithfulness"].keys() == explained["faithfulness"].keys()
    for example in (*explained["examples"], *further["examples"]):
        for picture in example["pictures"].values():
            assert (within / "artifacts/explain/resnet50/examples" / picture).is_file()
    shared = {film["id"] for film in explained["examples"]} & {film["id"] for film in further["examples"]}
    first = {film["id"]: film["pictures"]["grad_cam"] for film in explained["examples"]}
    assert shared and all(
        film["pictures"]["grad_cam"] != first[film["id"]]
        for film in further["examples"]
        if film["id"] in shared
    )
    page = (within / "artifacts/explain/resnet50/report.html").read_text()
    assert f"COVID and {VIRAL} on chest films" in page
    assert "Which class is called" in page
    for name in ("COVID", VIRAL):
        assert f"{name} against all other classes" in page
        assert f"{name}: Sensitivity is" in page
    assert page.count('alt="Receiver operating characteristic"') == 2


def test_the_gates_of_a_registered_version_name_each_finding(within, version):
    assert [link.problem for link in registry.verify(version)] == [None] * 12
    judged = promotion.gate(version)
    names = [gate.name for gate in judged.gates]
    each = ("auc", "threshold transfer", "calibration", "net benefit", "subgroups", "shortcuts")
    assert {f"{finding}: {name}" for finding in ("COVID", VIRAL) for name in each} <= set(names)
    assert {"leakage", "looks", "export", "unlike films", "external"} <= set(names)
    assert all(gate.reason.startswith(gate.finding) for gate in judged.gates if gate.finding)
    assert any(sentence.startswith(f"{VIRAL}: ") for sentence in judged.limits)


def test_a_model_that_lacks_a_finding_of_its_settings_is_no_version_to_decide_on(three, store, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(three[1], folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["evaluate"]["findings"][REST] = {}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    version = register(folder, "other").version
    problems = [link.problem for link in registry.verify(version) if link.problem]
    assert problems == [
        f"params.yaml of version {version} looks for COVID, {VIRAL}, {REST}, but its model does not"
    ]


def test_a_version_asked_for_a_finding_has_its_scores_threshold_and_limits(within, version):
    evidence = Evidence.of(version)
    asked = evidence.of_finding(VIRAL)
    assert (asked.spec.positive, asked.spec.threshold) == (
        VIRAL,
        evidence.spec.further_thresholds[VIRAL],
    )
    assert np.allclose(asked.test["score"], asked.test[f"probability_{VIRAL}"], atol=1e-7)
    assert asked.rules.floors == {"auc": 0.3, "sensitivity": 0.1}
    assert asked.measured.threshold == asked.spec.threshold
    with pytest.raises(BadInput, match=f"looks for COVID, {VIRAL}, not for {REST}"):
        evidence.of_finding(REST)


def with_plan(version, tmp_path, **findings):
    """The evidence on a version under a plan that asks these of its findings."""
    evidence, plan = Evidence.of(version), tmp_path / "change_plan.yaml"
    content = yaml.safe_load(evidence.plan_file.read_text())
    content["protocol"]["evaluation"]["findings"] = findings
    plan.write_text(yaml.safe_dump(content))
    return replace(evidence, plan_file=plan)


def test_a_finding_of_the_plan_is_missed_even_where_it_names_the_first_too(within, version, tmp_path):
    judged = soundness_gates(with_plan(version, tmp_path, COVID={}, **{REST: {}}), None, [])
    (found,) = [gate for gate in judged if gate.name == "change plan"]
    assert found.verdict == OUTSIDE_PLAN
    assert found.reason.endswith(f"the plan asks for the finding {REST}, which was not looked for.")


def test_each_finding_must_have_the_external_sets_that_its_plan_requires(within, version, tmp_path):
    asked = {"external": {"required": True, "min_films": 5, "sets": {}}}
    gates = external_looks(with_plan(version, tmp_path, **{VIRAL: asked}))
    said = {gate.name: gate.verdict for gate in gates}
    assert said == {"COVID: external": PASS, f"{VIRAL}: external": INSUFFICIENT}


def test_training_again_is_the_same_only_where_it_is_for_each_finding(within, version, tmp_path):
    metrics = read(within, "evaluate/resnet50/metrics.json")
    metrics["findings"][VIRAL]["test"]["auc"]["value"] += 0.1
    write_json(tmp_path / "metrics.json", metrics)
    write_text(tmp_path / "model/weights.safetensors", "others")
    compared = reproduce._compared(tmp_path, version, registry.get_version(version).tags)
    assert compared["agreement"] == reproduce.DIFFERENT
    assert f"{VIRAL}: auc" in compared["metrics"]


def test_a_challenger_is_compared_with_the_champion_on_each_finding(within, version):
    crown(version)
    second = register(within, "second").version
    judged = promotion.show(second, workspace=within)
    compared = [gate.name for gate in judged.comparison]
    assert {f"{name}: auc vs champion" for name in ("COVID", VIRAL)} <= set(compared)
    assert all(gate.value == 0 for gate in judged.comparison)
    page = Path(judged.review).read_text()
    assert f"{VIRAL} against all other classes" in page and "Which class is called" in page
    titles = [line for line in judged.films_markdown.splitlines() if line.startswith(f"**{VIRAL}: ")]
    assert len(titles) == 4


def test_a_finding_that_the_champion_does_not_look_for_is_judged_by_its_floors_alone(
    within, version, monkeypatch
):
    real = scoring.read_json

    def edited(changes):
        monkeypatch.setattr(scoring, "read_json", lambda path: real(path) | changes)

    second = register(within, "second").version
    edited({"further_thresholds": {}})
    judged = promotion.gate(second)
    assert {gate.finding for gate in judged.comparison} == {"COVID"}
    assert f"Champion 1 does not look for {VIRAL}." in judged.note
    edited({"further_thresholds": {VIRAL: 0.5, "EFFUSION": 0.5}})
    judged = promotion.gate(second)
    assert judged.comparison == [] and judged.verdict != PASS
    assert "looks for EFFUSION, which this version does not" in judged.note


def test_documents_state_each_finding(within, version, tmp_path):
    write_documents(version, tmp_path)
    text = "\n".join(path.read_text() for path in tmp_path.glob("*.md"))
    assert f"COVID, {VIRAL}" in text and f"; {VIRAL} 0." in text


def test_a_model_answers_with_every_finding(within):
    address = str(within / "artifacts/evaluate/resnet50/model")
    films = sorted((within / "data").rglob("*.png"))[:6]
    metrics = read(within, "evaluate/resnet50/metrics.json")
    points = {"COVID": metrics["threshold"], VIRAL: metrics["findings"][VIRAL]["threshold"]}
    for answer in predict_films(assemble([address]), films):
        assert answer.thresholds == points
        assert list(answer.probabilities) == CLASSES
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer.probability == answer.probabilities["COVID"]


def test_evaluating_a_source_shows_each_finding_and_what_is_called(within, tmp_path):
    manifest = pd.read_parquet(within / "artifacts/validate/manifest.parquet").groupby("label").head(4)
    for film in manifest.itertuples():
        target = tmp_path / CLASSES[film.label] / f"{film.id}{(within / film.path).suffix}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((within / "data" / film.path).read_bytes())
    address = str(within / "artifacts/evaluate/resnet50/model")
    result = evaluate_source(assemble([address]), tmp_path, replicates=100).to_json()
    assert result["n"] == 12 and list(result["findings"]) == [VIRAL]
    assert [sum(row.values()) for row in result["confusion"].values()] == [4, 4, 4]
    counts = result["findings"][VIRAL]["counts"]
    assert counts["tp"] + counts["fn"] == 4 and counts["tn"] + counts["fp"] == 8


def test_what_a_further_finding_does_not_name_it_shares_with_the_first(within):
    params = yaml.safe_load((within / "params.yaml").read_text())
    first, further = Rules.of_each(params, "params.yaml").values()
    assert further.target_sensitivity == 0.8 and first.target_sensitivity != 0.8
    assert further.confidence == first.confidence
    params["evaluate"]["findings"] = {VIRAL: {}}
    assert Rules.of(params, "params.yaml", VIRAL) == Rules.of(params, "params.yaml")


def test_floors_that_the_films_of_a_further_finding_cannot_show_are_refused_with_its_name(within):
    params = yaml.safe_load((within / "params.yaml").read_text())
    params["evaluate"]["findings"][VIRAL] = {"floors": {"sensitivity": 0.9}, "target_sensitivity": 0.91}
    films = pd.read_parquet(within / "artifacts/split/split.parquet")
    with pytest.raises(BadInput, match=rf"^{VIRAL}: on .* test films with {VIRAL} a sensitivity of exactly"):
        check_floors(films, CLASSES, Rules.of_each(params, "params.yaml"))
