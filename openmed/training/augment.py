"""Batched augmentation: one affine resampling and one grey-level change for each film."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from openmed.training.settings import Augmentation


def augment(films: Tensor, settings: Augmentation) -> Tensor:
    """Changes each film at random.

    Random numbers come from torch's CPU generator, so that a run is the same on any device.

    Args:
        films: uint8 or float (N, S, S); uint8 is scaled to 0..1.
        settings: Largest changes.

    Returns:
        float32 (N, S, S) in 0..1. What is moved in from outside repeats the border.
    """
    batch = films.float() / 255 if films.dtype == torch.uint8 else films.float()
    affine = _affine(len(batch), settings).to(batch.device)
    grid = affine_grid(affine, [len(batch), 1, *batch.shape[1:]], align_corners=False)
    moved = grid_sample(batch[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    gain = 1 + _uniform(len(batch), settings.contrast).to(batch.device)
    offset = _uniform(len(batch), settings.brightness).to(batch.device)
    middle = moved.mean((1, 2), keepdim=True)
    return ((moved - middle) * gain[:, None, None] + middle + offset[:, None, None]).clamp(0, 1)


def _affine(n: int, settings: Augmentation) -> Tensor:
    angle = _uniform(n, settings.rotate_degrees) * (math.pi / 180)
    scale = 1 + _uniform(n, settings.scale)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    mirror = torch.ones(n)
    if settings.flip:
        mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    # The grid spans -1..1, so a shift of one side length is 2.
    right, down = 2 * _uniform(n, settings.shift), 2 * _uniform(n, settings.shift)
    rows = [torch.stack([cos * mirror, -sin, right], 1), torch.stack([sin * mirror, cos, down], 1)]
    return torch.stack(rows, 1)


def _uniform(n: int, largest: float) -> Tensor:
    return (torch.rand(n) * 2 - 1) * largest
