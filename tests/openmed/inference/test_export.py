"""The exported graph: the same decisions, the same bytes, nothing of this machine, nothing unchecked."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from openmed.errors import BadInput, IntegrityError
from openmed.inference import export
from openmed.inference.checkpoint import load_model, read_spec, save_model, write_spec
from openmed.inference.control import CONTROL_FILE
from openmed.inference.export import check_parity, export_onnx, finish_export, graph_bytes
from openmed.inference.session import (
    ExportedModel,
    called_classes,
    count_called,
    load_exported,
    load_predictor,
    runtime,
)
from openmed.models.factory import ModelFactory
from tests.conftest import ROOT
from tests.openmed.conftest import small, with_statistics


def films_of(spec, count=12):
    """Soft blots: to a network with random weights one film of noise looks like another."""
    blots = np.random.default_rng(3).integers(0, 256, (count, 4, 4), dtype=np.uint8)
    size = (spec.image_size_px, spec.image_size_px)
    return np.array([cv2.resize(blot, size) for blot in blots], np.uint8).reshape(count, *size)


def telling(architecture, **options):
    """A small network whose probabilities of films spread over 0..1, with a threshold amid them."""
    model = small(architecture, **options).eval()
    films = films_of(model.spec, 40)
    # Batch norms that have seen films: at their start a random InceptionV3 answers in millions.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():
        model(model.prepare(films))
    model.eval()
    with torch.no_grad():
        odds = torch.from_numpy(model.predict(films)).double().log()
        scale = 0.5 / odds.diff(dim=1).std()
        head = model.classifier()
        head.weight *= scale
        head.bias -= scale * odds.mean(0).float()
    scores = np.sort(model.predict(films)[:, model.spec.positive_index])
    model.spec = model.spec.with_threshold(float(scores[19] + scores[20]) / 2)
    assert np.ptp(scores) > 0.3
    return model


@pytest.fixture(scope="module", params=ModelFactory.names())
def folder(request, tmp_path_factory):
    """An exported model folder of each architecture; only to be read."""
    folder = tmp_path_factory.mktemp(request.param)
    model = telling(request.param)
    save_model(folder, model)
    export_onnx(model, folder, films_of(model.spec))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    """Its model and its export."""
    return load_model(folder), load_exported(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    model = telling("vit")
    save_model(folder, model)
    export_onnx(model, folder, films_of(model.spec))
    return folder


@pytest.fixture
def copy(vit, tmp_path):
    """A small exported folder to change."""
    return shutil.copytree(vit, tmp_path / "model")


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_the_export_decides_as_the_model_does(loaded, count):
    model, exported = loaded
    films = films_of(model.spec, count)
    expected, found = model.predict(films), exported.predict(films, batch_films=16)
    assert found.shape == (count, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    threshold = model.spec.threshold
    np.testing.assert_array_equal(found[:, 1] >= threshold, expected[:, 1] >= threshold)
    assert count < 40 or 0 < (found[:, 1] >= threshold).sum() < count


def test_one_film_is_answered_as_it_is_among_many(loaded):
    exported = loaded[1]
    films = films_of(exported.spec)
    alone = np.concatenate([exported.predict(film[None]) for film in films])
    np.testing.assert_allclose(alone, exported.predict(films), atol=1e-6)


def test_the_graph_takes_grey_bytes_and_holds_its_weights(folder):
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    onnx.checker.check_model(graph, full_check=True)
    (films,), (logits,) = graph.graph.input, graph.graph.output
    size = read_spec(folder)[0].image_size_px
    assert (films.name, films.type.tensor_type.elem_type) == ("films", onnx.TensorProto.UINT8)
    assert [dim.dim_param or dim.dim_value for dim in films.type.tensor_type.shape.dim] == ["n", size, size]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert {tensor.data_location for tensor in graph.graph.initializer} == {onnx.TensorProto.DEFAULT}
    files = {"control.safetensors", "model.json", "model.onnx", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == files


def test_the_file_tells_nothing_of_the_machine_that_made_it(folder):
    graph = onnx.load(folder / "model.onnx")
    assert not graph.doc_string and not graph.metadata_props and not graph.graph.doc_string
    for node in graph.graph.node:
        assert not node.doc_string and not node.metadata_props
    for tensor in graph.graph.initializer:
        tensor.ClearField("raw_data")
    told = [str(ROOT), sys.prefix, sys.base_prefix, str(Path(torch.__file__).parent), str(Path.home())]
    told += ["site-packages", ".py", "forward", "Traceback"]
    content = graph.SerializeToString()
    assert b"films" in content and not [text for text in told if text.encode() in content]


def test_exporting_again_writes_the_same_bytes(copy):
    """Other processes do too: test_whole_road.py holds the DAGs' models against those of `dvc repro`."""
    before = {name: (copy / name).read_bytes() for name in ("model.json", "model.onnx", CONTROL_FILE)}
    model = load_model(copy)
    (copy / "model.onnx").unlink()
    export_onnx(model, copy, films_of(model.spec))
    assert before == {name: (copy / name).read_bytes() for name in before}


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", CONTROL_FILE])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_flipped_byte_is_found_before_use(copy, name, place):
    content = bytearray((copy / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        load_predictor(copy)


def test_a_missing_graph_is_found(copy):
    (copy / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx is missing or was changed"):
        load_predictor(copy)


def test_a_graph_that_the_description_does_not_name_is_never_loaded(copy):
    write_spec(copy, *read_spec(copy))
    (copy / "model.onnx").write_bytes(b"anything")
    assert runtime(load_predictor(copy)) == "pytorch cpu"
    with pytest.raises(BadInput, match="was never exported"):
        load_exported(copy)


@pytest.mark.parametrize("graph", [b"", b"no graph at all"])
def test_a_graph_that_is_none_is_refused(vit, graph, capfd):
    with pytest.raises(IntegrityError, match="does not hold a graph"):
        ExportedModel(read_spec(vit)[0], graph)
    assert capfd.readouterr() == ("", "")


def with_letters_that_are_none(graph):
    return graph.replace(b"MatMul", b"Mat\xff\xfel")


def with_an_endless_constant(graph):
    model = onnx.load_from_string(graph)
    model.graph.initializer[0].dims[:] = [2**63 - 1]
    return model.SerializeToString()


@pytest.mark.parametrize("damage", [with_letters_that_are_none, with_an_endless_constant])
def test_a_damaged_graph_is_refused_without_a_word_of_the_runtime(copy, capfd, damage):
    graph = (copy / "model.onnx").read_bytes()
    assert damage(graph) != graph
    with pytest.raises(IntegrityError, match="does not hold a graph"):
        ExportedModel(read_spec(copy)[0], damage(graph))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("absolute", [True, False])
def test_a_graph_opens_no_other_file(copy, monkeypatch, absolute):
    graph = onnx.load(copy / "model.onnx")
    (bias,) = [tensor for tensor in graph.graph.initializer if tensor.name.endswith("head.bias")]
    (copy / "outside").write_bytes(bias.raw_data)
    location = str(copy / "outside") if absolute else "outside"
    onnx.external_data_helper.set_external_data(bias, location)
    bias.ClearField("raw_data")
    monkeypatch.chdir(copy)
    with pytest.raises(IntegrityError, match="does not hold a graph"):
        ExportedModel(read_spec(copy)[0], graph.SerializeToString())


def test_the_exported_graph_is_chosen_on_a_cpu_and_pytorch_elsewhere(copy):
    assert runtime(load_predictor(copy)) == runtime(load_predictor(copy, "cpu")) == "onnxruntime"
    assert runtime(load_predictor(copy, "meta")) == "pytorch meta"


def test_a_folder_from_before_exports_still_loads(make, tmp_path):
    save_model(tmp_path, make("resnet50"))
    assert set(json.loads((tmp_path / "model.json").read_text())) == {"spec", "weights_sha256"}
    assert runtime(load_predictor(tmp_path)) == "pytorch cpu"


def test_the_session_uses_as_many_threads_as_pytorch(copy):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = load_exported(copy)._session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "films", [np.zeros((1, 8, 8), np.uint8), np.zeros((1, 32, 32), np.float32), np.zeros((32, 32), np.uint8)]
)
def test_films_of_another_size_or_type_are_refused(copy, films):
    with pytest.raises(ValueError, match=r"films must be uint8 \(N, 32, 32\)"):
        load_exported(copy).predict(films)


def test_an_export_of_other_weights_is_refused(copy):
    model, exported = load_model(copy), load_exported(copy)
    films = films_of(model.spec, 40)
    assert check_parity(model, exported, films) <= 1e-4
    with torch.no_grad():
        model.classifier().bias[1] += 0.01  # moves probabilities by up to 0.0025
    with pytest.raises(IntegrityError, match=r"differ by up to \d\.\de-03 \(1e-04 is allowed\)"):
        check_parity(model, exported, films)


def test_a_flipped_decision_is_refused_however_small_the_difference(copy):
    model, exported = load_model(copy), load_exported(copy)
    films = films_of(model.spec)
    score = float(exported.predict(films)[3, 1])
    model.spec = model.spec.with_threshold(score)
    with torch.no_grad():
        model.classifier().bias[1] -= 1e-5
    with pytest.raises(IntegrityError, match="decides otherwise on 1 of 12 films"):
        check_parity(model, exported, films)


def test_answers_that_are_no_numbers_are_refused(copy):
    model, exported = load_model(copy), load_exported(copy)
    with torch.no_grad():
        model.classifier().bias[0] = np.nan
    with pytest.raises(IntegrityError, match="numbers that are not finite"):
        check_parity(model, exported, films_of(model.spec))


def test_a_refused_export_leaves_the_model_as_it_was(make, tmp_path, monkeypatch):
    """Another model's graph stands in for an exporter that goes wrong."""
    model, other = telling("vit"), graph_bytes(telling("vit", seed=1))
    save_model(tmp_path, model)
    before = (tmp_path / "model.json").read_bytes()
    monkeypatch.setattr(export, "graph_bytes", lambda model: other)
    assert finish_export(tmp_path, films_of(model.spec)).startswith("not exported, so predictions stay in")
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "weights.safetensors"}
    assert (tmp_path / "model.json").read_bytes() == before


def test_parity_without_films_proves_nothing(copy):
    with pytest.raises(ValueError, match="without films"):
        check_parity(load_model(copy), load_exported(copy), films_of(read_spec(copy)[0], 0))


def test_without_the_finding_the_most_probable_other_class_is_called(make):
    spec = make("vit", class_names=("NORMAL", "PNEUMONIA", "COVID")).spec
    answers = np.array([[0.1, 0.6, 0.3], [0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
    assert called_classes(spec, answers, 0.7).tolist() == [2, 1, 0]
    assert called_classes(spec, answers, None).tolist() == [1, 1, 0]


def test_of_several_findings_the_one_clearest_above_its_threshold_is_called(make):
    spec = make("vit", class_names=("NORMAL", "BACTERIA", "VIRUS"), positive="BACTERIA").spec
    spec = spec.with_threshold(0.5, {"VIRUS": 0.2})
    answers = np.array(
        [
            [0.45, 0.40, 0.15],  # none is reached
            [0.15, 0.45, 0.40],  # only the threshold of VIRUS
            [0.05, 0.60, 0.35],  # both: 1.5 times the odds of one, 2.15 of the other
            [0.00, 0.80, 0.20],  # both: 4 times the odds of BACTERIA, 1 of VIRUS
        ]
    )
    assert called_classes(spec, answers, 0.5).tolist() == [0, 2, 2, 1]
    # Whichever finding is asked for, a film is called the same.
    asked = spec.of_finding("VIRUS")
    assert called_classes(asked, answers, asked.threshold).tolist() == [0, 2, 2, 1]
    assert count_called(spec, np.array([0, 1, 1, 2]), answers, 0.5) == {
        "NORMAL": {"NORMAL": 1, "BACTERIA": 0, "VIRUS": 0},
        "BACTERIA": {"NORMAL": 0, "BACTERIA": 0, "VIRUS": 2},
        "VIRUS": {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 0},
    }


def test_where_every_class_is_a_finding_and_none_is_reached_the_most_probable_is_called(make):
    spec = make("vit", class_names=("BACTERIA", "VIRUS"), positive="VIRUS").spec
    spec = spec.with_threshold(0.9, {"BACTERIA": 0.9})
    assert called_classes(spec, np.array([[0.6, 0.4], [0.3, 0.7], [0.95, 0.05]]), 0.9).tolist() == [0, 1, 0]


@pytest.fixture(scope="module", params=ModelFactory.names())
def knowing(request, tmp_path_factory):
    """An exported model folder with feature statistics, and its model; only to be read."""
    folder = tmp_path_factory.mktemp(request.param)
    model = telling(request.param)
    with_statistics(model, films_of(model.spec, 20))
    save_model(folder, model)
    export_onnx(model, folder, films_of(model.spec))
    return folder, model


def test_an_export_sees_films_as_far_from_the_known_as_the_model(knowing):
    folder, model = knowing
    films = np.random.default_rng(0).integers(0, 256, (9, *films_of(model.spec).shape[1:]), dtype=np.uint8)
    expected, found = model.assess(films), load_exported(folder).assess(films, batch_films=4)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-3)
    np.testing.assert_array_equal(load_model(folder).assess(films)[1], expected[1])
    np.testing.assert_array_equal(load_exported(folder).predict(films), found[0])
    assert len(load_exported(folder).assess(films[:0])[1]) == 0 == len(model.assess(films[:0])[1])


def test_only_a_graph_with_statistics_has_features(knowing, folder):
    outputs = [
        [each.name for each in onnx.load(each_folder / "model.onnx").graph.output]
        for each_folder in (knowing[0], folder)
    ]
    assert outputs == [["logits", "features"], ["logits"]]


def test_a_graph_without_the_features_its_model_has_statistics_of_is_refused(knowing, folder):
    model = knowing[1]
    with pytest.raises(IntegrityError, match="gives no features"):
        ExportedModel(model.spec, (folder / "model.onnx").read_bytes(), model.statistics)


def test_an_export_that_sees_films_otherwise_is_refused(knowing):
    folder, model = knowing
    first, *others = model.statistics.depths
    moved = type(model.statistics)([replace(first, scale=first.scale * 1.2), *others])
    exported = ExportedModel(model.spec, (folder / "model.onnx").read_bytes(), moved)
    with pytest.raises(IntegrityError, match="sees films otherwise"):
        check_parity(model, exported, films_of(model.spec))


@pytest.mark.parametrize("load", [load_model, load_exported])
def test_changed_or_missing_statistics_are_refused(knowing, tmp_path, load):
    copy = shutil.copytree(knowing[0], tmp_path / "copy")
    path = copy / "statistics.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"statistics\.safetensors is missing or was changed"):
        load(copy)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"statistics\.safetensors is missing or was changed"):
        load(copy)
