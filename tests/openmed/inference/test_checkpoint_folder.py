"""A model folder is checked as a whole: what cannot be a model is refused with one sentence."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_file
from openmed.fitted.abstention import Abstention
from openmed.fitted.calibration import Calibration
from openmed.fitted.feature_statistics import DepthStatistics, FeatureStatistics
from openmed.inference.checkpoint import load_model, read_spec, save_model, write_spec
from openmed.inference.control import CONTROL_FILE
from openmed.inference.export import export_onnx
from openmed.inference.session import load_exported, load_predictor, runtime
from tests.openmed.conftest import small, with_statistics

NAN, INF = float("nan"), float("inf")
PLATT = Calibration("platt", (0.1, -0.1), (0.5, -0.5), 1.7, films=90)


def noise(count, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder as the evaluate stage leaves it; only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    model = small("vit", class_names=("NORMAL", "BACTERIA", "VIRUS"), positive="BACTERIA").eval()
    model.spec = model.spec.with_calibration(Calibration("platt", (0.1, -0.1, 0.0), (0.5, -0.5, 0.0), 1.7))
    model.spec = model.spec.with_threshold(0.4, {"VIRUS": 0.3})
    model.spec = replace(model.spec, abstention=Abstention(0.9, (0.1, 0.2, 0.3), (20, 30, 40)))
    with_statistics(model, noise(20))
    save_model(folder, model)
    export_onnx(model, folder, noise(6))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "model")


def edit(folder, **fields):
    """Writes fields of the spec; `part__field` is one of a part of it."""
    content = json.loads((folder / "model.json").read_text())
    for name, value in fields.items():
        *parts, last = name.split("__")
        target = content["spec"]
        for part in parts:
            target = target[part]
        target[last] = value
    (folder / "model.json").write_text(json.dumps(content))


def name_export(folder):
    """Puts the hash of the graph that lies there into the description."""
    content = json.loads((folder / "model.json").read_text())
    content["export_sha256"] = sha256_file(folder / "model.onnx")
    (folder / "model.json").write_text(json.dumps(content))


WRONG = [
    *(("image_size_px", value) for value in (0, -64, 15, 2049, 10**9, 10**400, "64", None, True, 64.0, [64])),
    *(
        ("mean", value)
        for value in ([0.5] * 2, [0.5] * 4, "abc", [NAN, 0.5, 0.5], [True] * 3, [2, 0, 0], None)
    ),
    *(("std", value) for value in ([0.2], "abc", [0, 0.2, 0.2], [-1, 0.2, 0.2], [INF] * 3, ["0.2"] * 3, {})),
    *(("threshold", value) for value in (NAN, INF, -INF, 2, -1, True, "0.5", [0.5], 1e-400 + 1.0000001)),
    *(("further_thresholds", {"VIRUS": value}) for value in (NAN, INF, 2, -1, True, "0.5", None)),
    *(("further_thresholds", value) for value in ([0.5], "x", 3, {"COVID": 0.5})),
    *(
        ("class_names", value)
        for value in ([], ["NORMAL"], ["", "BACTERIA", "VIRUS"], [1, 2, 3], "NORMAL", None)
    ),
    *(
        ("model_options", value)
        for value in ("x", [1], {"depth": 10**6}, {"depth": NAN}, {"x": {"y": 1}}, None)
    ),
    *(
        (name, value)
        for name in ("architecture", "timm_name", "explanation_layer")
        for value in (None, 3, ["vit"])
    ),
    *(("min_side_px", value) for value in (0, -1, True, 1.5, "32", None)),
    *(("calibration__scale", value) for value in (NAN, INF, 0, -1, True, "1", None)),
    *(("calibration__bias", value) for value in ([NAN, 0, 0], [0, 0], "abc", [True, 0, 0], [10**400, 0, 0])),
    *(("calibration__prior_correction", value) for value in ([INF, 0, 0], [0], None)),
    *(("calibration__films", value) for value in (-1, True, 1.5)),
    *(("abstention__coverage", value) for value in (NAN, 0, 1, 2, True, "0.9")),
    *(
        ("abstention__lowest", value)
        for value in ([NAN, 0, 0], [2, 0, 0], [-0.1, 0, 0], [0, 0], [True, 0, 0])
    ),
    *(("abstention__patients", value) for value in ([-1, 1, 1], [1.5, 1, 1], [1, 1], 3, [True, 1, 1])),
    *(("novelty__limit", value) for value in (NAN, INF, True, "1", None)),
    *(("novelty__share", value) for value in (NAN, 0, 1, True)),
    *(("novelty__patients", value) for value in (0, -1, 1.5, True)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_that_cannot_be_is_refused_and_named(copy, name, value):
    edit(copy, **{name: value})
    with pytest.raises(BadInput) as refused:
        load_predictor(copy)
    word = "further|threshold" if name == "further_thresholds" else name.split("_")[0]
    assert re.search(word, str(refused.value))
    assert len(str(refused.value)) < 200 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "", "{", "null", "\0", '{"spec": {}, "weights_sha256": null}', '{"spec": 1' + "0" * 5000],
)
def test_a_description_that_is_no_json_of_a_model_is_refused(copy, text):
    (copy / "model.json").write_text(text)
    with pytest.raises(BadInput):
        load_predictor(copy)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_not_finite_are_refused(copy, value):
    weights = load_file(copy / "weights.safetensors")
    weights["head.weight"][1, 3] = value
    save_file(weights, copy / "weights.safetensors")
    write_spec(copy, read_spec(copy)[0], sha256_file(copy / "weights.safetensors"))
    with pytest.raises(IntegrityError, match=r"holds numbers that are not finite, in head\.weight"):
        load_model(copy)


def constant(logits, *, films="films", output="logits", size=32, features=None):
    """A graph that gives every film the same logits."""
    outputs = [(output, np.array(logits, np.float32))]
    outputs += [("features", np.zeros(features, np.float32))] if features else []
    nodes = [helper.make_node("Shape", [films], ["shape"], end=1)]
    constants, infos = [], []
    for name, row in outputs:
        constants += [helper.make_tensor(f"{name}.row", TensorProto.FLOAT, (1, len(row)), row)]
        constants += [helper.make_tensor(f"{name}.width", TensorProto.INT64, (1,), [len(row)])]
        nodes += [helper.make_node("Concat", ["shape", f"{name}.width"], [f"{name}.shape"], axis=0)]
        nodes += [helper.make_node("Expand", [f"{name}.row", f"{name}.shape"], [name])]
        infos += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", len(row)))]
    given = helper.make_tensor_value_info(films, TensorProto.UINT8, ("n", size, size))
    graph = helper.make_graph(nodes, "constant", [given], infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "options",
    [
        {"logits": [9.0, -9.0, -9.0]},
        {"logits": [1.0, 2.0]},
        {"logits": [1.0, 2.0, 3.0], "films": "filmz"},
        {"logits": [1.0, 2.0, 3.0], "output": "logitz"},
        {"logits": [1.0, 2.0, 3.0], "size": 64},
        {"logits": [NAN] * 3},
        {"logits": [1.0, 2.0, 3.0], "features": 7},
    ],
)
def test_a_graph_that_says_something_else_is_refused_although_the_description_names_it(copy, options):
    width = load_model(copy).statistics.width
    (copy / "model.onnx").write_bytes(constant(**{"features": width, **options}))
    name_export(copy)
    with pytest.raises(IntegrityError, match=r"model\.onnx|not finite"):
        load_predictor(copy)


def test_the_graph_of_other_weights_of_the_same_network_is_refused(copy, tmp_path):
    other = small("vit", class_names=("NORMAL", "BACTERIA", "VIRUS"), positive="BACTERIA", seed=1).eval()
    other.spec = other.spec.with_threshold(0.5)
    with_statistics(other, noise(20))
    save_model(tmp_path / "other", other)
    export_onnx(other, tmp_path / "other", noise(6))
    shutil.copy(tmp_path / "other/model.onnx", copy)
    name_export(copy)
    with pytest.raises(
        IntegrityError, match=r"model\.onnx answers the films in control\.safetensors otherwise"
    ):
        load_predictor(copy)


def test_features_that_hide_unlike_films_are_refused(copy):
    graph = onnx.load(copy / "model.onnx")
    (node,) = [node for node in graph.graph.node if "features" in node.output]
    node.output[:] = ["features.true"]
    half = helper.make_tensor("half", TensorProto.FLOAT, (), [0.5])
    graph.graph.initializer.append(half)
    graph.graph.node.append(helper.make_node("Mul", ["features.true", "half"], ["features"]))
    (copy / "model.onnx").write_bytes(graph.SerializeToString())
    name_export(copy)
    with pytest.raises(IntegrityError, match=r"model\.onnx answers"):
        load_predictor(copy)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_a_changed_preprocessing_is_found_by_pytorch_too(copy, field):
    edit(copy, **{field: [0.4, 0.4, 0.4]})
    with pytest.raises(IntegrityError, match=r"weights\.safetensors answers"):
        load_model(copy)


def test_a_folder_whose_export_came_without_phantoms_predicts_in_pytorch(copy):
    """As those of before: nothing holds such an export against the weights."""
    expected = load_exported(copy).predict(noise(5))
    content = json.loads((copy / "model.json").read_text())
    del content["control_sha256"]
    (copy / "model.json").write_text(json.dumps(content))
    (copy / CONTROL_FILE).unlink()
    predictor = load_predictor(copy)
    assert runtime(predictor) == "pytorch cpu"
    np.testing.assert_allclose(predictor.predict(noise(5)), expected, atol=1e-4)


def test_the_phantoms_of_a_folder_are_nobodys_films_and_few(copy):
    held = load_file(copy / CONTROL_FILE)
    assert held["films"].shape == (2, 32, 32) and held["films"].dtype == np.uint8
    model = load_model(copy)
    np.testing.assert_allclose(held["logits"], model.logits(held["films"]), atol=1e-4)
    assert np.ptp(held["logits"], axis=0).max() > 0.01, "phantoms must be told apart"


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_phantoms_that_are_none_are_refused(copy, content):
    if content is None:
        save_file({"films": np.zeros((2, 32, 32), np.uint8)}, copy / CONTROL_FILE)
    else:
        (copy / CONTROL_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"control\.safetensors is missing or was changed"):
        load_predictor(copy)
    spec, weights_sha256 = read_spec(copy)
    digests = sha256_file(copy / "model.onnx"), sha256_file(copy / CONTROL_FILE)
    write_spec(copy, spec, weights_sha256, *digests)
    with pytest.raises(IntegrityError, match=r"control\.safetensors is no control set"):
        load_predictor(copy)


@pytest.mark.parametrize("logits", [[NAN, 1.0], [INF, 1.0], [-INF, 1.0], [3e38, -3e38]])
def test_an_answer_that_is_no_number_is_an_error(make, logits):
    """The last is finite, but not once the calibration has scaled it."""
    spec = make("vit").spec.with_calibration(Calibration("platt", (0.0, 0.0), (0.0, 0.0), 1e300))
    with pytest.raises(IntegrityError, match="answers with numbers that are not finite"):
        spec.probabilities(np.array([[0.0, 1.0], logits]))


def test_a_network_that_answers_nan_is_an_error_wherever_it_is_asked(make):
    model = make("vit").eval()
    with torch.no_grad():
        model.classifier().bias[0] = NAN
    for ask in (model.predict, model.assess):
        with pytest.raises(IntegrityError, match="not finite"):
            ask(noise(2))


MAY_BE_ZERO = ("means", "directions")
BROKEN = [
    (part, value)
    for part in DepthStatistics.__dataclass_fields__
    for value in (NAN, INF, "zero", "shape")
    if (part, value) not in [(part, "zero") for part in MAY_BE_ZERO]
]


@pytest.mark.parametrize(("part", "value"), BROKEN)
def test_statistics_that_distances_cannot_be_made_of_are_refused(finished, part, value):
    parts = load_file(finished / "statistics.safetensors")
    changed = parts[f"0.{part}"]
    if value == "shape":
        parts[f"0.{part}"] = np.concatenate([changed, changed], axis=-1)
    else:
        changed.flat[0] = 0 if value == "zero" else value
    depths = [
        DepthStatistics(*(parts[f"{number}.{name}"] for name in DepthStatistics.__dataclass_fields__))
        for number in range(len(parts) // 5)
    ]
    with pytest.raises(IntegrityError, match=r"statistics\.safetensors holds impossible numbers"):
        FeatureStatistics.from_bytes(FeatureStatistics(depths).to_bytes())
