import numpy as np
import pytest
import torch

from openmed.fitted.calibration import Calibration
from openmed.models.base import evaluation_mode


def test_prepared_films_are_normalised_in_three_channels(make, films):
    model = make("resnet50")
    x = model.prepare(films)
    assert x.dtype == torch.float32
    expected = (films[:, None] / 255 - np.reshape(model.spec.mean, (1, 3, 1, 1))) / np.reshape(
        model.spec.std, (1, 3, 1, 1)
    )
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)


def test_films_scaled_to_one_are_prepared_as_grey_levels_are(make, films):
    model = make("resnet50")
    torch.testing.assert_close(model.prepare(torch.from_numpy(films).float() / 255), model.prepare(films))


@pytest.mark.parametrize("shape", [(32, 32), (2, 31, 32), (2, 32, 64), (2, 3, 32, 32)])
def test_films_of_another_size_are_refused(make, shape):
    with pytest.raises(ValueError, match=r"films must be \(N, 32, 32\)"):
        make("resnet50").prepare(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int16, np.int64, bool])
def test_films_of_another_type_are_refused(make, dtype):
    with pytest.raises(ValueError, match="uint8 or float"):
        make("resnet50").prepare(np.zeros((2, 32, 32), dtype))


@pytest.mark.parametrize("classes", [("NORMAL", "PNEUMONIA"), ("NORMAL", "BACTERIA", "VIRUS")])
@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_predictions_are_the_softmax_of_the_logits(make, films, architecture, classes):
    model = make(architecture, class_names=classes, positive=classes[-1])
    probabilities = model.predict(films)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (5, len(classes))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    logits = model.eval()(model.prepare(films)).detach().double().numpy()
    powers = np.exp(logits)
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_logits_are_what_the_network_says(make, films):
    model = make("vit", class_names=("NORMAL", "BACTERIA", "VIRUS"), positive="VIRUS")
    logits = model.logits(films, batch_films=2)
    assert logits.dtype == np.float32 and logits.shape == (5, 3)
    np.testing.assert_allclose(logits, model.eval()(model.prepare(films)).detach().numpy(), atol=1e-5)
    assert model.logits(films[:0]).shape == (0, 3)


def test_a_calibration_changes_the_probabilities_and_not_the_logits(make, films):
    model = make("resnet50")
    logits = model.logits(films)
    model.spec = model.spec.with_calibration(Calibration("platt", (0.0, -1.0), (0.5, -0.5), 3.0, films=40))
    np.testing.assert_array_equal(model.logits(films), logits)
    powers = np.exp(3 * (logits.astype(float) - np.array([0, 1])) + [0.5, -0.5])
    np.testing.assert_allclose(model.predict(films), powers / powers.sum(1, keepdims=True), atol=1e-6)


def test_predictions_do_not_depend_on_the_batch(make):
    films = np.random.default_rng(0).integers(0, 256, (35, 32, 32), dtype=np.uint8)
    model = make("resnet50")
    np.testing.assert_allclose(model.predict(films), model.predict(films, batch_films=4), atol=1e-6)


def test_no_films_give_no_predictions(make):
    assert make("resnet50").predict(np.zeros((0, 32, 32), np.uint8)).shape == (0, 2)


def test_predicting_leaves_the_modes_of_a_frozen_backbone_alone(make, films):
    model = make("resnet50").train()
    model.network.layer1.eval()
    modes = [module.training for module in model.modules()]
    running = model.network.layer2[0].bn1.running_mean.clone()
    model.predict(films)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.network.layer2[0].bn1.running_mean, running)


def test_the_modes_are_restored_when_a_prediction_fails(make):
    model = make("resnet50").train()
    with pytest.raises(ValueError, match="films must be"):
        model.predict(np.zeros((1, 8, 8), np.uint8))
    assert all(module.training for module in model.modules())


def test_evaluation_mode_holds_for_the_block_only(make):
    model = make("resnet50").train()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_normalisation_constants_are_not_among_the_weights(make):
    assert all(name.startswith("network.") for name in make("resnet50").state_dict())
