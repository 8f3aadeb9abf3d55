"""Heat maps over films, by the method that suits the architecture."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from openmed.errors import BadInput
from openmed.explain.attention import gradient_attention, rollout
from openmed.explain.gradcam import grad_cam
from openmed.models.base import BaseModel
from openmed.models.vit import ViT

_BATCH_FILMS = 32

_Methods = dict[str, Callable[[BaseModel, Tensor, int], np.ndarray]]
_CNN_METHODS: _Methods = {"grad_cam": grad_cam}
_VIT_METHODS: _Methods = {
    "gradient_attention": gradient_attention,
    "rollout": lambda model, x, _class_index: rollout(model, x),
}


def explain(
    model: BaseModel, films: NDArray[np.uint8], class_index: int, method: str = "auto"
) -> dict[str, NDArray[np.float32]]:
    """Draws heat maps of what spoke for a class.

    Of films uint8 (N, S, S), S being the model's input size, by all methods of the architecture ("auto") or
    one of `methods(model)`. Rollout is the same for every label.

    Returns:
        By method, the primary one first: float32 (N, S, S) in 0..1, enlarged bilinearly.

    Raises:
        BadInput: The method does not suit the architecture, or there is no such class.
    """
    known = methods(model)
    if method != "auto" and method not in known:
        raise BadInput(
            f"{method!r} does not explain {model.spec.architecture}: choose auto or {', '.join(known)}"
        )
    chosen = known if method == "auto" else (method,)
    size = model.spec.image_size_px
    maps = {name: np.zeros((len(films), size, size), np.float32) for name in chosen}
    for start in range(0, len(films), _BATCH_FILMS):
        batch = slice(start, start + _BATCH_FILMS)
        x = model.prepare(films[batch])
        for name in chosen:
            maps[name][batch] = enlarge(_methods(model)[name](model, x, class_index), size)
    return maps


def methods(model: BaseModel) -> tuple[str, ...]:
    """Names of the methods that suit a model, the primary one first."""
    return tuple(_methods(model))


def enlarge(maps: np.ndarray, size: int) -> NDArray[np.float32]:
    """Enlarges float32 maps (N, h, w) bilinearly to (N, size, size)."""
    batch = torch.from_numpy(maps)[:, None]
    return functional.interpolate(batch, (size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def _methods(model: BaseModel) -> _Methods:
    return _VIT_METHODS if isinstance(model, ViT) else _CNN_METHODS
