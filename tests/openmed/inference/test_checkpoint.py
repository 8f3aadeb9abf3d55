import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import openmed
from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_file
from openmed.fitted.calibration import fit_calibration
from openmed.inference.checkpoint import load_model, read_spec, save_model, write_spec
from openmed.models.factory import ModelFactory


@pytest.fixture
def folder(make, tmp_path):
    save_model(tmp_path / "model", make("resnet50"))
    return tmp_path / "model"


def films_for(model):
    size = model.spec.image_size_px
    return np.random.default_rng(1).integers(0, 256, (2, size, size), dtype=np.uint8)


@pytest.mark.parametrize("architecture", ModelFactory.names())
def test_a_loaded_model_predicts_the_same_bits(make, tmp_path, architecture):
    model = make(architecture, class_names=("NORMAL", "BACTERIA", "VIRUS"), positive="VIRUS")
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.spec == model.spec
    assert type(loaded) is type(model)
    assert not loaded.training
    np.testing.assert_array_equal(loaded.predict(films_for(model)), model.predict(films_for(model)))


def test_a_model_folder_holds_exactly_two_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]


def test_the_hash_is_that_of_the_weights(make, tmp_path):
    digest = save_model(tmp_path, make("resnet50"))
    assert digest == sha256_file(tmp_path / "weights.safetensors") == read_spec(tmp_path)[1]


def test_saving_again_writes_the_same_bytes(make, tmp_path):
    assert save_model(tmp_path / "a", make("resnet50")) == save_model(tmp_path / "b", make("resnet50"))
    first, second = ((tmp_path / name / "model.json").read_bytes() for name in "ab")
    assert first == second


def test_a_threshold_is_written_beside_unchanged_weights(folder):
    spec, digest = read_spec(folder)
    write_spec(folder, spec.with_threshold(0.37), digest)
    assert load_model(folder).spec.threshold == 0.37


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic", "none"])
def test_a_calibrated_model_predicts_the_same_bits_when_loaded(make, tmp_path, method):
    model = make("resnet50")
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1, (300, 2))
    labels = (rng.normal(1, 1, 300) < np.diff(logits)[:, 0]).astype(int)
    calibration = fit_calibration(method, logits, labels, (0.2, -0.7))
    plain = model.predict(films_for(model))
    model.spec = model.spec.with_calibration(calibration).with_threshold(0.3)
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.spec == model.spec
    np.testing.assert_array_equal(loaded.predict(films_for(model)), model.predict(films_for(model)))
    assert np.abs(loaded.predict(films_for(model)) - plain).max() > 0.05


def test_a_model_folder_from_before_calibration_predicts_the_softmax(folder, make):
    content = json.loads((folder / "model.json").read_text())
    del content["spec"]["calibration"]
    (folder / "model.json").write_text(json.dumps(content))
    model = load_model(folder)
    np.testing.assert_array_equal(model.predict(films_for(model)), make("resnet50").predict(films_for(model)))


@pytest.mark.parametrize("place", [0.0, 0.01, 0.5, 0.999])
def test_one_flipped_byte_in_the_weights_is_found(folder, place):
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[int(place * len(content))] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors was changed"):
        load_model(folder)


def test_weights_cut_short_are_found(folder):
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        load_model(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(BadInput, match=r"holds no weights\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"spec": {}}', '{"spec": [], "weights_sha256": ""}'])
def test_a_folder_without_a_description_is_refused(folder, content):
    (folder / "model.json").unlink()
    if content is not None:
        (folder / "model.json").write_text(content)
    with pytest.raises(BadInput):
        load_model(folder)


def test_weights_that_do_not_fit_the_description_are_refused(folder):
    content = json.loads((folder / "model.json").read_text())
    content["spec"]["class_names"].append("VIRUS")
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match="does not fit"):
        load_model(folder)


def test_a_description_that_points_at_other_weights_opens_no_file(folder, tmp_path):
    """timm would unpickle a checkpoint that an option names."""
    torch.save({"anything": 1}, tmp_path / "evil.pth")
    content = json.loads((folder / "model.json").read_text())
    content["spec"]["model_options"] = {"checkpoint_path": str(tmp_path / "evil.pth")}
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="checkpoint_path"):
        load_model(folder)


def test_a_pickle_under_the_name_of_the_weights_is_never_opened(folder):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    torch.save(Trap(), folder / "weights.safetensors")
    spec, _ = read_spec(folder)
    write_spec(folder, spec, sha256_file(folder / "weights.safetensors"))
    with pytest.raises(IntegrityError, match="does not fit"):
        load_model(folder)


def test_nothing_in_the_library_pickles():
    pickling = re.compile(r"torch\.(save|load)\b|\b(pickle|joblib|dill|cloudpickle|shelve)\b")
    sources = Path(openmed.__file__).parent.rglob("*.py")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if pickling.search(line.split("#")[0])
    ]
    assert not found
