from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from openmed.errors import IntegrityError
from openmed.fitted.calibration import Calibration
from openmed.fitted.feature_statistics import FeatureStatistics
from openmed.inference.control import CONTROL_FILE, check_answers, check_control, write_control
from openmed.inference.export import answered_phantoms
from openmed.models.factory import ModelFactory
from tests.openmed.conftest import with_statistics


@pytest.fixture
def judged(tmp_path):
    model = ModelFactory.create("vit", timm_name="test_vit", image_size_px=32).eval()
    films = np.random.default_rng(0).integers(0, 256, (6, 32, 32)).astype(np.uint8)
    write_control(tmp_path / CONTROL_FILE, model, films)
    return model, tmp_path / CONTROL_FILE


def test_a_model_that_did_not_change_answers_the_same(judged):
    assert check_control(judged[1], judged[0]) == 0


def test_the_same_model_and_films_give_the_same_bytes(judged, tmp_path):
    films = np.random.default_rng(0).integers(0, 256, (6, 32, 32)).astype(np.uint8)
    write_control(tmp_path / "again", judged[0], films)
    assert (tmp_path / "again").read_bytes() == judged[1].read_bytes()


def test_a_model_that_answers_otherwise_is_refused(judged):
    model, path = judged
    with torch.no_grad():
        model.classifier().bias += torch.tensor([0.0, 0.1])
    with pytest.raises(IntegrityError, match="answers otherwise than when it was judged"):
        check_control(path, model)


def test_what_is_no_control_set_is_refused(judged, tmp_path):
    model, path = judged
    empty = tmp_path / "empty"
    write_control(empty, model, np.zeros((0, 32, 32), np.uint8))
    with pytest.raises(IntegrityError, match="answers otherwise"):
        check_control(empty, model)
    path.write_bytes(b"nothing")
    other = ModelFactory.create("vit", timm_name="test_vit", image_size_px=64)
    for predictor, file in ((model, path), (model, tmp_path / "absent"), (other, empty)):
        with pytest.raises(IntegrityError):
            check_control(file, predictor)


def test_a_model_that_sees_films_otherwise_is_refused(judged, tmp_path):
    model, path = judged
    films = np.random.default_rng(0).integers(0, 256, (6, 32, 32)).astype(np.uint8)
    with_statistics(model, films)
    with pytest.raises(IntegrityError, match="sees its control set otherwise"):
        check_control(path, model)
    write_control(path, model, films)
    assert check_control(path, model) == 0
    first, *others = model.statistics.depths
    model.statistics = FeatureStatistics([replace(first, rest=first.rest * 2), *others])
    with pytest.raises(IntegrityError, match="sees its control set otherwise"):
        check_control(path, model)


def curve(top):
    return ((-1.0, 1.0), (0.1, top))


CALIBRATED = Calibration("platt", (0.1, -0.1), (0.5, -0.5), 2)
STEPS = Calibration("isotonic", (0.0, 0.0), (0.0, 0.0), curves=(curve(0.9), curve(0.8)))
NAMES = ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize(
    ("noted", "given"),
    [
        ({"calibration": CALIBRATED}, {"calibration": replace(CALIBRATED, scale=2.01)}),
        ({"calibration": CALIBRATED}, {"calibration": replace(CALIBRATED, bias=(0.5, -0.499))}),
        ({"calibration": CALIBRATED}, {"calibration": replace(CALIBRATED, prior_correction=(0.1, 0.1))}),
        ({"calibration": STEPS}, {"calibration": replace(STEPS, curves=(curve(0.9), curve(0.81)))}),
        ({"calibration": CALIBRATED}, {"calibration": None}),
        ({"calibration": None}, {"calibration": CALIBRATED}),
        ({"class_names": NAMES}, {"class_names": NAMES[::-1]}),
        ({"class_names": NAMES}, {"class_names": ("NORMAL", "PNEUMONIB"), "positive": "PNEUMONIB"}),
        ({"positive": "PNEUMONIA"}, {"positive": "NORMAL"}),
    ],
)
def test_another_meaning_of_the_same_logits_is_refused(judged, noted, given):
    model = judged[0]
    model.spec = replace(model.spec, **noted)
    phantoms = answered_phantoms(model)
    check_answers(phantoms, model, "model.onnx")
    model.spec = replace(model.spec, **given)
    with pytest.raises(
        IntegrityError, match="the classes or the calibration of the model are not those noted"
    ):
        check_answers(phantoms, model, "model.onnx")
    older = {name: value for name, value in load(phantoms).items() if name != "meaning"}
    check_answers(save(older), model, "model.onnx")


def test_operating_points_may_change_and_the_meaning_stays(judged):
    model = judged[0]
    phantoms = answered_phantoms(model)
    model.spec = model.spec.with_threshold(0.3)
    check_answers(phantoms, model, "model.onnx")
