"""Grad-CAM: where a CNN looked for a class (Selvaraju et al., 2017, arXiv:1610.02391)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openmed.errors import BadInput
from openmed.models.base import BaseModel, evaluation_mode


def grad_cam(model: BaseModel, x: Tensor, class_index: int) -> NDArray[np.float32]:
    """Grad-CAM of a batch at the layer that the model names as its explanation target.

    Each channel is weighted by the mean gradient of the class's logit over its map; the weighted
    sum keeps what speaks for the class. Trainable and frozen networks give the same map, and the
    model's modes, gradients and hooks are left as they were.

    Of a CNN and input (N, 3, S, S), as `model.prepare` returns it: float32 (N, h, w) in 0..1, each film
    divided by its own maximum; a film in which nothing speaks for the class is all zero.

    Raises:
        BadInput: The layer is not in the network or gives no maps, or there is no such class.
    """
    return grad_cam_with_logits(model, x, class_index)[0]


def grad_cam_with_logits(
    model: BaseModel, x: Tensor, class_index: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Grad-CAM as `grad_cam`, and the logits that it explains, float32 (N, classes), of one pass."""
    check_class(model, class_index)
    layer = _target_layer(model)
    # An explanation may be asked for inside a block that has gradients switched off.
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        if layer is model.blocks()[-1]:
            maps, logits = _through_head(model, x)
        else:
            maps, logits = _through_network(model, layer, x)
        with torch.enable_grad():
            score = logits[:, class_index].sum()
        (gradients,) = torch.autograd.grad(score, maps)
    weights = gradients.mean(dim=(2, 3))
    cam = torch.einsum("nc,nchw->nhw", weights, maps.detach()).relu().float()
    highest = cam.amax(dim=(1, 2), keepdim=True)
    scaled = torch.where(highest > 0, cam / highest, 0.0)
    return scaled.cpu().numpy(), logits.detach().float().cpu().numpy()


def check_class(model: BaseModel, class_index: int) -> None:
    """Refuses a label that the model does not have, with BadInput."""
    classes = model.spec.class_names
    if not 0 <= class_index < len(classes):
        raise BadInput(f"class {class_index} does not exist: the model knows 0 to {len(classes) - 1}")


def _target_layer(model: BaseModel) -> nn.Module:
    try:
        return model.network.get_submodule(model.spec.explanation_layer)
    except AttributeError:
        raise BadInput(
            f"the network {model.spec.timm_name} has no layer {model.spec.explanation_layer!r} to explain: "
            "set `explanation_layer` in model.json to one that it has"
        ) from None


def _through_head(model: BaseModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Last maps and logits, with a graph over the head alone: no backward through the network."""
    maps = _leaf(model.features(x), model)
    with torch.enable_grad():
        return maps, model.head(maps)


def _through_network(model: BaseModel, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """An inner layer's maps and the logits, with a graph that starts at the layer."""
    outputs: list[Tensor] = []

    def start_graph(_layer: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        outputs.append(_leaf(output, model))
        torch.set_grad_enabled(True)  # undone by the caller's no_grad block
        return outputs[-1].clone()  # the next layer may work in place, which a leaf forbids

    with layer.register_forward_hook(start_graph):
        logits = model(x)
    if len(outputs) != 1:
        raise BadInput(f"layer {model.spec.explanation_layer!r} runs {len(outputs)} times a film, not once")
    return outputs[0], logits


def _leaf(maps: Tensor, model: BaseModel) -> Tensor:
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        raise BadInput(
            f"layer {model.spec.explanation_layer!r} gives no maps (N, C, h, w), which Grad-CAM needs: "
            "explain this model by its attention"
        )
    return maps.detach().requires_grad_()
