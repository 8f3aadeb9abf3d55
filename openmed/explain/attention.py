"""What a vision transformer attended to: attention rollout and its class-specific successor."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from openmed.errors import BadInput
from openmed.explain.gradcam import check_class
from openmed.models.base import evaluation_mode
from openmed.models.networks import timm
from openmed.models.vit import ViT


def rollout(model: ViT, x: Tensor) -> NDArray[np.float32]:
    """Attention rollout (Abnar & Zuidema, 2020, arXiv:2005.00928): one map for all classes.

    Attention is averaged over the heads, mixed half and half with the residual path and followed
    from the pooled tokens down to the patches. Fused attention stays on and never shows its
    weights, so they are computed beside it from the same queries and keys.

    Of input (N, 3, S, S), as `model.prepare` returns it: float32 (N, patches down, patches across) in 0..1,
    each film scaled from its own minimum to its own maximum; a film that is attended to evenly is all zero.

    Raises:
        BadInput: The network's attention or pooling is of a kind that cannot be followed.
    """
    return rollout_with_logits(model, x)[0]


@torch.inference_mode()
def rollout_with_logits(model: ViT, x: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Attention rollout as `rollout`, and the logits beside it, float32 (N, classes), of one pass."""
    layers = _attention_layers(model)
    attentions: list[Tensor] = []

    def record(layer: timm.layers.Attention) -> RemovableHandle:
        # Of the last block the class token's row is enough where the head sees nothing else.
        rows = 1 if layer is layers[-1] and model.network.global_pool == "token" else None
        return layer.qkv.register_forward_hook(
            lambda _module, _inputs, qkv: attentions.append(_head_mean_attention(layer, qkv, rows))
        )

    with evaluation_mode(model), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(record(layer))
        logits = model(x)
    relevance = _pooled_tokens(model, attentions[0])
    for attention in reversed(attentions):
        relevance = (relevance + relevance[..., : attention.shape[1]] @ attention) / 2
    return _patch_map(model, relevance), logits.float().cpu().numpy()


def gradient_attention(model: ViT, x: Tensor, class_index: int) -> NDArray[np.float32]:
    """Gradient-weighted attention (Chefer, Gur & Wolf, 2021, arXiv:2103.15679): a map for a class.

    Attention counts as far as its gradient says that it raised the class's logit; the positive
    parts are averaged over the heads and accumulated over the blocks with the identity.

    As `rollout`; a film in which nothing speaks for the class is all zero.

    Raises:
        BadInput: There is no such class, or the network's attention or pooling is of a kind that
            cannot be followed.
    """
    check_class(model, class_index)
    attentions, gradients = _attention_gradients(model, x, class_index)
    relevance = _pooled_tokens(model, attentions[0])
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        relevance = relevance + relevance @ (attention * gradient).relu().mean(dim=1)
    return _patch_map(model, relevance)


def _attention_gradients(model: ViT, x: Tensor, class_index: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attention weights (N, heads, T, T) of each block and the logit's gradient at them."""
    layers = _attention_layers(model)
    seen: list[Tensor] = []

    def record(_module: nn.Module, _inputs: tuple, attention: Tensor) -> Tensor:
        if not seen:
            # The graph starts here, so that a frozen network gives gradients as well.
            attention = attention.detach().requires_grad_()
            torch.set_grad_enabled(True)  # undone by the no_grad block below
        seen.append(attention)
        return attention

    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        with _visible(layers), ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.attn_drop.register_forward_hook(record))
            score = model(x)[:, class_index].sum()
        gradients = torch.autograd.grad(score, seen)
    return [attention.detach() for attention in seen], list(gradients)


def _attention_layers(model: ViT) -> list[timm.layers.Attention]:
    layers = [getattr(block, "attn", None) for block in model.network.blocks]
    for layer in layers:
        if not isinstance(layer, timm.layers.Attention):
            raise BadInput(
                f"the attention of {model.spec.timm_name} ({type(layer).__name__}) cannot be followed: "
                "choose a network with timm's plain attention"
            )
    if model.network.global_pool not in ("token", "avg"):
        raise BadInput(
            f"the pooling {model.network.global_pool!r} of {model.spec.timm_name} cannot be followed: "
            "set the model option `global_pool` to token or avg"
        )
    return layers


def _head_mean_attention(layer: timm.layers.Attention, qkv: Tensor, rows: int | None = None) -> Tensor:
    """Attention weights (N, rows or T, T), as the unfused path of `layer` computes them."""
    films, tokens, _ = qkv.shape
    queries, keys, _ = qkv.reshape(films, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys = layer.q_norm(queries[:, :, :rows]) * layer.scale, layer.k_norm(keys)
    # Film by film the weights of all heads stay in the processor's cache: half the time of one batch.
    scores = queries.new_empty(layer.num_heads, queries.shape[2], tokens)
    weights, means = torch.empty_like(scores), scores.new_empty(films, *scores.shape[1:])
    for q, k, mean in zip(queries, keys, means, strict=True):
        torch.bmm(q, k.mT, out=scores)
        torch.softmax(scores, dim=-1, out=weights)
        torch.mean(weights, dim=0, out=mean)
    return means


def _pooled_tokens(model: ViT, attention: Tensor) -> Tensor:
    """Share (N, 1, T) of each token in what the head sees: the class token, or all patches.

    An average may also take in the class token and registers.
    """
    shares = attention.new_zeros(attention.shape[0], 1, attention.shape[-1])
    if model.network.global_pool == "token":
        shares[..., 0] = 1
    else:
        first = 0 if model.network.pool_include_prefix else model.prefix_tokens
        shares[..., first:] = 1 / (attention.shape[-1] - first)
    return shares


def _patch_map(model: ViT, relevance: Tensor) -> NDArray[np.float32]:
    patches = relevance[:, 0, model.prefix_tokens :].float()
    lowest, highest = patches.amin(dim=1, keepdim=True), patches.amax(dim=1, keepdim=True)
    scaled = torch.where(highest > lowest, (patches - lowest) / (highest - lowest), 0.0)
    return scaled.view(-1, *model.grid).cpu().numpy()


@contextmanager
def _visible(layers: list[timm.layers.Attention]) -> Iterator[None]:
    """Switches fused attention off for a block: it computes no weights that could be read."""
    fused = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, was_fused in zip(layers, fused, strict=True):
            layer.fused_attn = was_fused
