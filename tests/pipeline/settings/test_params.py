"""Settings are read once, whole and typed; what cannot be meant is refused."""

import pytest
import torch
import yaml
from pydantic import ValidationError

from openmed.errors import BadInput
from openmed.fitted.calibration import METHODS
from pipeline.settings.params import load_params, load_stages
from pipeline.stages.train import create_model, section_of, train_settings
from tests.conftest import ROOT, write_params

SHIPPED = ("params.yaml", "params.production.yaml")


def changed(params, place, value):
    *above, last = place.split(".")
    section = params
    for name in above:
        section = section[name]
    section[last] = value
    return params


def load(folder, params):
    write_params(folder, params)
    return load_params(folder / "params.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_settings_are_understood(name):
    params = load_params(ROOT / name)
    assert params.architectures == ("resnet50", "vit", "inceptionv3")
    for architecture in params.architectures:
        phases = train_settings(params, architecture).phases
        assert [phase.name for phase in phases] == ["head", "finetune"]
        assert phases[1].epochs > 0


def test_settings_cannot_be_changed_once_read():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.run.seed = 1


@pytest.mark.parametrize(
    "place", ["speed", "run.speed", "split.seed", "train.vit.head.rate", "train.resnet50.augment.sharpen"]
)
def test_an_unknown_key_is_refused_by_name(tmp_path, params, place):
    with pytest.raises(BadInput, match=f"{place}: Extra inputs are not permitted"):
        load(tmp_path, changed(params, place, 1))


@pytest.mark.parametrize("place", ["run", "run.seed", "train.vit.finetune.blocks", "task.positive"])
def test_a_missing_key_is_refused_by_name(tmp_path, params, place):
    *above, last = place.split(".")
    section = params
    for name in above:
        section = section[name]
    del section[last]
    with pytest.raises(BadInput, match=f"{place}: Field required"):
        load(tmp_path, params)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("run.seed", -1),
        ("run.threads", 0),
        ("run.device", "tpu"),
        ("task.classes", ["PNEUMONIA"]),
        ("validate.max_quarantined_share", 1.5),
        ("split.near_duplicate_bits", 65),
        ("split.max_conflicting_share", 1.5),
        ("preprocess.image_size_px.vit", 8),
        ("resample.strategy", "smote"),
        ("train.vit.batch_films", 1),
        ("train.vit.label_smoothing", 1),
        ("train.vit.head.learning_rate", 0),
        ("train.vit.head.learning_rate", float("inf")),
        ("train.vit.weight_decay", float("nan")),
        ("train.vit.finetune.epochs", -1),
        ("train.vit.augment.rotate_degrees", 90),
        ("evaluate.target_sensitivity", 0),
        ("evaluate.calibration", "sigmoid"),
        ("evaluate.confidence", 1),
        ("evaluate.replicates", 10),
        ("evaluate.floors", {}),
        ("evaluate.floors.auc", 1.1),
        ("explain.examples", 0),
        ("triage.shown_films", 0),
        ("promotion.margins.auc", -0.1),
    ],
)
def test_an_impossible_value_is_refused_by_place(tmp_path, params, place, value):
    with pytest.raises(BadInput, match=rf"params\.yaml: {place}"):
        load(tmp_path, changed(params, place, value))


def test_smote_on_films_is_refused_with_the_reason_and_the_place_where_it_is_allowed(tmp_path, params):
    with pytest.raises(
        BadInput, match="mixes the pixels of different patients into films that no patient has"
    ):
        load(tmp_path, changed(params, "resample.strategy", "smote"))
    with pytest.raises(BadInput, match=r"train\.<architecture>\.head\.oversampling"):
        load(tmp_path, params)


@pytest.mark.parametrize("method", METHODS)
def test_every_calibration_that_the_library_knows_is_a_setting(tmp_path, params, method):
    assert load(tmp_path, changed(params, "evaluate.calibration", method)).evaluate.calibration == method


@pytest.mark.parametrize("value", [0, "half"])
def test_blocks_are_all_or_a_number_from_one(tmp_path, params, value):
    with pytest.raises(BadInput, match=r"train\.vit\.finetune\.blocks"):
        load(tmp_path, changed(params, "train.vit.finetune.blocks", value))


@pytest.mark.parametrize(
    "shares",
    [
        {"train": 0.5, "validation": 0.2, "calibration": 0.2, "test": 0.2},
        {"train": 0.6, "validation": 0.2, "test": 0.2},
    ],
)
def test_shares_that_are_not_a_whole_of_four_are_refused(tmp_path, params, shares):
    with pytest.raises(BadInput, match=r"split: .*add up to 1"):
        load(tmp_path, changed(params, "split.shares", shares))


@pytest.mark.parametrize(
    "task",
    [
        {"classes": ["NORMAL", "PNEUMONIA"], "positive": "COVID"},
        {"classes": ["NORMAL", "NORMAL"], "positive": "NORMAL"},
    ],
)
def test_a_finding_that_is_no_class_and_equal_classes_are_refused(tmp_path, params, task):
    with pytest.raises(BadInput, match="`positive` must be one of `classes`"):
        load(tmp_path, changed(params, "task", task))


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ({"COVID": {}}, "`evaluate.findings` names COVID: it takes other classes than `task.positive`"),
        ({"PNEUMONIA": {}}, "`evaluate.findings` names PNEUMONIA"),
        ({"NORMAL": {"floors": {"auc": 1.5}}}, r"findings\.NORMAL: floors\.auc: Input should be less"),
        ({"NORMAL": {"confidence": 0.9}}, r"findings\.NORMAL: confidence is no setting of a single finding"),
    ],
)
def test_a_further_finding_is_another_class_with_settings_of_a_finding(tmp_path, params, findings, said):
    with pytest.raises(BadInput, match=said):
        load(tmp_path, changed(params, "evaluate.findings", findings))


def test_there_are_no_further_findings_unless_they_are_named(tmp_path, params):
    assert "findings" not in params["evaluate"] and load(tmp_path, params).evaluate.findings == {}
    named = {"NORMAL": {"target_specificity": None, "floors": {"auc": 0.6}}}
    loaded = load(tmp_path, changed(params, "evaluate.findings", named))
    assert loaded.model_dump()["evaluate"]["findings"] == named


@pytest.mark.parametrize("place", ["train", "preprocess.image_size_px"])
def test_an_architecture_without_settings_is_refused_by_name(tmp_path, params, place):
    section = params
    for name in place.split("."):
        section = section[name]
    del section["vit"]
    with pytest.raises(BadInput, match="'vit' needs entries"):
        load(tmp_path, params)


def test_an_architecture_that_is_not_in_the_settings_is_refused_with_those_that_are():
    with pytest.raises(BadInput, match=r"train\.vgg.*resnet50, vit, inceptionv3"):
        section_of(load_params(ROOT / "params.yaml"), "vgg")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"run: [", "cannot be read"),
        (b"run: \xff\xfe", "cannot be read"),
        (b"", "the file: "),
        (b"- run", "the file: "),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content, problem):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=problem) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(BadInput, match="does not exist: run this in the project's folder"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(("name", "size"), [("resnet50", 224), ("vit", 224), ("inceptionv3", 299)])
def test_production_builds_each_architecture_at_its_published_size(tmp_path, name, size):
    params = yaml.safe_load((ROOT / "params.production.yaml").read_text())
    assert params["train"][name]["weights"] == "imagenet"
    params["train"][name]["weights"] = "none"  # the shape without the download
    with torch.device("meta"):
        spec = create_model(load(tmp_path, params), name).spec
    assert (spec.architecture, spec.image_size_px) == (name, size)
    assert spec.class_names == ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("name", SHIPPED)
def test_no_key_has_a_name_that_dvc_keeps_for_itself(name):
    """DVC drops keys called size or nfiles when it compares settings with its lock file."""

    def keys(content):
        for key, value in content.items() if isinstance(content, dict) else ():
            yield key
            yield from keys(value)

    assert not {"size", "nfiles"} & set(keys(yaml.safe_load((ROOT / name).read_text())))


def test_limits_of_drift_are_complete_and_in_order(tmp_path, params):
    limits = params["drift"]["limits"]
    limits["intensity"] = {"moderate": 0.8, "large": 0.7}
    with pytest.raises(BadInput, match=r"drift.limits.intensity: .*`moderate` must not be above `large`"):
        load(tmp_path, params)
    del limits["intensity"]
    with pytest.raises(BadInput, match=r"drift.limits: "):
        load(tmp_path, params)


@pytest.mark.parametrize("seed", [2**32, 2**40, -1])
def test_a_seed_that_no_library_takes_is_refused(tmp_path, params, seed):
    with pytest.raises(BadInput, match=r"run\.seed: Input should be (less|greater)"):
        load(tmp_path, changed(params, "run.seed", seed))


def test_the_largest_seed_reaches_every_library(tmp_path, params):
    import numpy as np
    from sklearn.utils import check_random_state

    seed = load(tmp_path, changed(params, "run.seed", 2**32 - 1)).run.seed
    np.random.default_rng(seed).random()
    check_random_state(seed).rand()
    torch.manual_seed(seed)


def keys(content, above=""):
    if not isinstance(content, dict) or above.endswith("model_options"):
        return {above}
    return {above}.union(*(keys(value, f"{above}.{name}") for name, value in content.items()))


@pytest.mark.parametrize("name", ["params", "change_plan"])
def test_sample_and_production_set_the_same_things(name):
    # Two whole files, not one with an overlay: DVC tracks, a version stores and `weights pull` pins one file.
    sample, production = (
        yaml.safe_load((ROOT / f"{name}{kind}.yaml").read_text()) for kind in ("", ".production")
    )
    assert keys(sample) == keys(production)
    assert sample != production


def test_films_are_not_mapped_unless_the_settings_say_over_how_many_tasks(tmp_path, params):
    params.pop("stages")
    assert load(tmp_path, params).stages.map_over == 1
    assert load_stages(tmp_path / "params.yaml").map_over == 1
    assert load(tmp_path, params | {"stages": {"map_over": 1024}}).stages.map_over == 1024
    # The other settings do not matter to the DAG.
    (tmp_path / "params.yaml").write_text("stages: {map_over: 7}\nother: 1\n")
    assert load_stages(tmp_path / "params.yaml").map_over == 7


@pytest.mark.parametrize("value", [0, 1025, 1.5, True, None, "all"])
def test_no_more_tasks_than_airflow_maps_over(tmp_path, params, value):
    with pytest.raises(BadInput, match=r"params\.yaml: stages\.map_over: "):
        load(tmp_path, params | {"stages": {"map_over": value}})
    with pytest.raises(BadInput, match=r"params\.yaml: stages\.map_over: "):
        load_stages(tmp_path / "params.yaml")


def test_where_films_are_measured_is_no_parameter_of_a_stage():
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    read = {each.partition(".")[0] for stage in graph.values() for each in stage.get("params", [])}
    assert "validate" in read and "stages" not in read
