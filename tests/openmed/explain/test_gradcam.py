import dataclasses

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from openmed.errors import BadInput
from openmed.explain.gradcam import grad_cam, grad_cam_with_logits
from openmed.models.factory import ModelFactory


def explained_at(model, layer):
    model.spec = dataclasses.replace(model.spec, explanation_layer=layer)
    return model


def films_of(size, count=5):
    return np.random.default_rng(1).integers(0, 256, (count, size, size), dtype=np.uint8)


def of_the_other_package(model, x, class_index):
    """Its raw maps, before it enlarges them, normalised as ours."""
    layer = model.network.get_submodule(model.spec.explanation_layer)
    with GradCAM(model=model, target_layers=[layer]) as cam:
        targets = [ClassifierOutputTarget(class_index)] * len(x)
        cam(input_tensor=x, targets=targets)
        taken = cam.activations_and_grads
        activations, gradients = taken.activations[0].numpy(), taken.gradients[0].numpy()
        raw = np.maximum(cam.get_cam_image(x, layer, targets, activations, gradients), 0)
    highest = raw.max(axis=(1, 2), keepdims=True)
    return np.divide(raw, highest, out=np.zeros_like(raw), where=highest > 0)


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2", "layer1", "act1"])
@pytest.mark.parametrize("class_index", [0, 1])
def test_resnet_maps_equal_those_of_pytorch_grad_cam(resnet, films, layer, class_index):
    model = explained_at(resnet, layer)
    x = model.prepare(films)
    ours = grad_cam(model, x, class_index)
    assert ours.max() == 1
    np.testing.assert_allclose(ours, of_the_other_package(model, x, class_index), atol=1e-3)


@pytest.mark.parametrize("layer", ["Mixed_7c", "Mixed_6e", "Mixed_5d"])
def test_inception_maps_equal_those_of_pytorch_grad_cam(inception, layer):
    model = explained_at(inception, layer)
    x = model.prepare(films_of(96, 2))
    ours = grad_cam(model, x, 1)
    assert ours.max() == 1
    np.testing.assert_allclose(ours, of_the_other_package(model, x, 1), atol=1e-3)


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_a_film_gets_the_same_map_alone_and_in_a_batch(resnet, films, layer):
    model = explained_at(resnet, layer)
    batch = grad_cam(model, model.prepare(films), 1)
    alone = np.concatenate([grad_cam(model, model.prepare(film[None]), 1) for film in films])
    np.testing.assert_allclose(batch, alone, atol=1e-5)


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_a_map_comes_with_its_prediction(resnet, films, layer):
    model = explained_at(resnet, layer)
    x = model.prepare(films)
    maps, logits = grad_cam_with_logits(model, x, 1)
    np.testing.assert_array_equal(maps, grad_cam(model, x, 1))
    np.testing.assert_allclose(model.spec.probabilities(logits), model.predict(films), atol=1e-6)


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_maps_are_float32_within_zero_and_one(resnet, films, layer):
    maps = grad_cam(explained_at(resnet, layer), resnet.prepare(films), 1)
    assert maps.dtype == np.float32
    assert maps.shape[0] == len(films)
    assert maps.min() >= 0
    assert maps.max() == 1


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_a_frozen_network_gives_the_same_map(resnet, films, layer):
    model = explained_at(resnet, layer)
    trainable = grad_cam(model, model.prepare(films), 1)
    model.requires_grad_(False)
    np.testing.assert_array_equal(grad_cam(model, model.prepare(films), 1), trainable)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_a_map_can_be_drawn_where_gradients_are_switched_off(resnet, films, layer, off):
    model = explained_at(resnet, layer)
    expected = grad_cam(model, model.prepare(films), 1)
    with off():
        np.testing.assert_array_equal(grad_cam(model, model.prepare(films), 1), expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_the_model_is_left_as_it_was(resnet, films, layer):
    model = explained_at(resnet, layer)
    model.train()
    model.network.layer1.eval()
    model.network.fc.weight.grad = torch.ones_like(model.network.fc.weight)
    modes = [module.training for module in model.modules()]
    running = model.network.state_dict()["layer2.0.bn1.running_mean"].clone()
    grad_cam(model, model.prepare(films), 1)
    assert [module.training for module in model.modules()] == modes
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["network.fc.weight"]
    assert torch.equal(model.network.fc.weight.grad, torch.ones_like(model.network.fc.weight))
    assert torch.equal(model.network.state_dict()["layer2.0.bn1.running_mean"], running)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_hook_is_removed_when_the_network_fails(resnet):
    model = explained_at(resnet, "layer2")
    with pytest.raises(RuntimeError):
        grad_cam(model, torch.zeros(1, 5, 64, 64), 1)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_a_class_that_nothing_speaks_for_has_a_map_of_zeros(resnet, films, layer):
    model = explained_at(resnet, layer)
    torch.nn.init.zeros_(model.network.fc.weight)
    assert not grad_cam(model, model.prepare(films), 1).any()


def test_an_unknown_layer_is_named(resnet, films):
    with pytest.raises(BadInput, match="no layer 'layer9'"):
        grad_cam(explained_at(resnet, "layer9"), resnet.prepare(films), 1)


@pytest.mark.parametrize("class_index", [2, -1])
def test_an_unknown_class_is_refused(resnet, films, class_index):
    with pytest.raises(BadInput, match=f"class {class_index} does not exist"):
        grad_cam(resnet, resnet.prepare(films), class_index)


def test_a_layer_without_maps_is_refused(vit, resnet, films):
    with pytest.raises(BadInput, match="gives no maps"):
        grad_cam(explained_at(vit, "blocks.0"), vit.prepare(films), 1)
    with pytest.raises(BadInput, match="gives no maps"):
        grad_cam(explained_at(resnet, "fc"), resnet.prepare(films), 1)


def test_a_layer_that_never_runs_is_refused(resnet, films):
    resnet.network.spare = torch.nn.Identity()
    with pytest.raises(BadInput, match="runs 0 times"):
        grad_cam(explained_at(resnet, "spare"), resnet.prepare(films), 1)


def test_a_third_class_is_explained():
    model = ModelFactory.create(
        "resnet50",
        timm_name="test_resnet",
        image_size_px=32,
        class_names=("NORMAL", "BACTERIA", "VIRUS"),
        positive="VIRUS",
    )
    assert grad_cam(model, model.prepare(films_of(32)), 2).shape == (5, 8, 8)
