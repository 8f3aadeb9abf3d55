import numpy as np
import pytest
import torch

from openmed.errors import BadInput
from openmed.explain.attention import gradient_attention, rollout, rollout_with_logits
from openmed.models.factory import ModelFactory

VARIANTS = {
    "class token": {},
    "normed queries and keys": {"qk_norm": True},
    "registers": {"reg_tokens": 3},
    "averaged patches": {"global_pool": "avg", "class_token": False},
    "averaged patches beside a class token and registers": {"global_pool": "avg", "reg_tokens": 3},
    "averaged with the class token": {"global_pool": "avg", "pool_include_prefix": True},
    "registers without a class token": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
}


def make(options):
    model = ModelFactory.create("vit", timm_name="test_vit", image_size_px=64, model_options=options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".qkv.weight" in name or "head.weight" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return make(request.param)


def collected(model, x, class_index):
    """Attention (block, head, T, T) of one film and its gradient, from the plain unfused path."""
    kept = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        kept.append(output)

    attentions = [block.attn for block in model.network.blocks]
    handles = [attention.attn_drop.register_forward_hook(keep) for attention in attentions]
    for attention in attentions:
        attention.fused_attn = False
    model(x)[0, class_index].backward()
    for attention, handle in zip(attentions, handles, strict=True):
        attention.fused_attn = True
        handle.remove()
    model.zero_grad()
    return [(one[0].detach().double().numpy(), one.grad[0].double().numpy()) for one in kept]


def patches_of(model, joint):
    """The pooled tokens' row of a joint (T, T) matrix as a map scaled to 0..1."""
    first = model.network.num_prefix_tokens
    pooled = 0 if model.network.pool_include_prefix else first
    row = joint[0] if model.network.global_pool == "token" else joint[pooled:].mean(0)
    row = row[first:]
    return ((row - row.min()) / (row.max() - row.min())).reshape(4, 4)


def reference_rollout(model, x):
    joint = None
    for attention, _ in collected(model, x, 0):
        mixed = 0.5 * attention.mean(0) + 0.5 * np.eye(attention.shape[-1])
        mixed /= mixed.sum(-1, keepdims=True)
        joint = mixed if joint is None else mixed @ joint
    return patches_of(model, joint)


def reference_gradient_attention(model, x, class_index):
    joint = None
    for attention, gradient in collected(model, x, class_index):
        joint = np.eye(attention.shape[-1]) if joint is None else joint
        joint = joint + np.maximum(attention * gradient, 0).mean(0) @ joint
    return patches_of(model, joint)


def test_rollout_equals_an_independent_implementation(model, films):
    x = model.prepare(films)
    expected = np.stack([reference_rollout(model, one[None]) for one in x])
    np.testing.assert_allclose(rollout(model, x), expected, atol=1e-4)


def test_a_rollout_comes_with_its_prediction(model, films):
    x = model.prepare(films)
    maps, logits = rollout_with_logits(model, x)
    np.testing.assert_array_equal(maps, rollout(model, x))
    np.testing.assert_allclose(model.spec.probabilities(logits), model.predict(films), atol=1e-6)


@pytest.mark.parametrize("class_index", [0, 1])
def test_gradient_attention_equals_an_independent_implementation(model, films, class_index):
    x = model.prepare(films)
    expected = np.stack([reference_gradient_attention(model, one[None], class_index) for one in x])
    np.testing.assert_allclose(gradient_attention(model, x, class_index), expected, atol=1e-3)


def test_the_classes_have_different_maps(films):
    model = make({})
    x = model.prepare(films)
    assert np.abs(gradient_attention(model, x, 0) - gradient_attention(model, x, 1)).max() > 0.1


METHODS = {"rollout": rollout, "gradient_attention": lambda model, x: gradient_attention(model, x, 1)}


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def method(request):
    return request.param


def test_maps_are_float32_within_zero_and_one(method, films):
    model = make({})
    maps = method(model, model.prepare(films))
    assert maps.dtype == np.float32
    assert maps.shape == (len(films), 4, 4)
    assert maps.min() == 0
    assert maps.max() == 1


def test_a_film_gets_the_same_map_alone_and_in_a_batch(method, films):
    model = make({})
    batch = method(model, model.prepare(films))
    alone = np.concatenate([method(model, model.prepare(film[None])) for film in films])
    np.testing.assert_allclose(batch, alone, atol=1e-4)


def test_a_frozen_model_gives_the_same_map(method, films):
    model = make({})
    trainable = method(model, model.prepare(films))
    model.requires_grad_(False)
    np.testing.assert_array_equal(method(model, model.prepare(films)), trainable)


def test_a_map_can_be_drawn_where_gradients_are_switched_off(method, films):
    model = make({})
    expected = method(model, model.prepare(films))
    with torch.inference_mode():
        np.testing.assert_array_equal(method(model, model.prepare(films)), expected)


def test_the_model_is_left_as_it_was(method, films):
    model = make({}).train()
    model.network.blocks[0].attn.fused_attn = False
    model.network.norm.eval()
    modes = [module.training for module in model.modules()]
    fused = [block.attn.fused_attn for block in model.network.blocks]
    assert any(fused)
    method(model, model.prepare(films))
    assert [block.attn.fused_attn for block in model.network.blocks] == fused
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_model_is_left_as_it_was_when_the_network_fails(method):
    model = make({})
    with pytest.raises(RuntimeError):
        method(model, torch.zeros(1, 5, 64, 64))
    assert all(block.attn.fused_attn for block in model.network.blocks)
    assert not any(module._forward_hooks for module in model.modules())


def test_rollout_runs_the_network_once_and_with_fused_attention(films, monkeypatch):
    model = make({})
    fused = torch.nn.functional.scaled_dot_product_attention
    calls = []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *inputs, **options: calls.append(1) or fused(*inputs, **options),
    )
    rollout(model, model.prepare(films))
    assert len(calls) == len(model.network.blocks)


def test_a_class_that_nothing_speaks_for_has_a_map_of_zeros(films):
    model = make({})
    torch.nn.init.zeros_(model.network.head.weight)
    assert not gradient_attention(model, model.prepare(films), 1).any()


def test_an_unknown_class_is_refused(films):
    model = make({})
    with pytest.raises(BadInput, match="class 2 does not exist"):
        gradient_attention(model, model.prepare(films), 2)


def test_a_pooling_that_cannot_be_followed_is_refused(method, films):
    model = make({"global_pool": "map", "class_token": False})
    with pytest.raises(BadInput, match="pooling 'map'"):
        method(model, model.prepare(films))


def test_an_attention_that_cannot_be_followed_is_refused(method, films):
    model = make({"attn_layer": "diff"})
    with pytest.raises(BadInput, match="DiffAttention"):
        method(model, model.prepare(films))
