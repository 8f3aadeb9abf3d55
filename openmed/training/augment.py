"""Batched augmentation: one affine resampling and one grey-level change for each film.

What happens to a film is defined once; OpenCV does it film by film on the CPU, `grid_sample` for the whole
batch on any other device.
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from openmed.training.settings import Augmentation


def augment(films: Tensor, settings: Augmentation, *, before: int = 0) -> Tensor:
    """Changes each film at random.

    Random numbers come from torch's CPU generator, so that a run is the same on any device within one
    grey level, and bit for bit on one machine, whatever the number of threads. Each film takes its
    numbers in turn: a batch gives the same films when it is cut into parts.

    Args:
        films: uint8 or float (N, S, S); uint8 is scaled to 0..1.
        settings: Largest changes.
        before: Films of the same batch that come before these, whose numbers are passed over.

    Returns:
        float32 (N, S, S) in 0..1, on the films' device. What is moved in from outside repeats the border.
    """
    draws = _draw(before + len(films))[before:]
    gain, offset = 1 + draws[:, 4] * settings.contrast, draws[:, 5] * settings.brightness
    change = _change_on_cpu if films.device.type == "cpu" else _change_on_device
    return change(films, _affine(draws, settings), gain, offset)


def _draw(n: int) -> Tensor:
    """float32 (n, 7) in -1..1: rotation, scale, shift right, shift down, contrast, brightness, mirror."""
    return torch.rand(n, 7) * 2 - 1


def _affine(draws: Tensor, settings: Augmentation) -> Tensor:
    """Where each pixel of the result comes from, (N, 2, 3), in coordinates that span -1..1."""
    angle = draws[:, 0] * math.radians(settings.rotate_degrees)
    scale = 1 + draws[:, 1] * settings.scale
    cos, sin = angle.cos() * scale, angle.sin() * scale
    # A shift of one side length is 2 here.
    right, down = 2 * settings.shift * draws[:, 2], 2 * settings.shift * draws[:, 3]
    mirror = torch.where(draws[:, 6] < 0, -1.0, 1.0) if settings.flip else torch.ones(len(draws))
    rows = [torch.stack([cos * mirror, -sin, right], 1), torch.stack([sin * mirror, cos, down], 1)]
    return torch.stack(rows, 1)


def _change_on_device(films: Tensor, affine: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    batch = films.float() / 255 if films.dtype == torch.uint8 else films.float()
    affine, gain, offset = (t.to(batch.device, non_blocking=True) for t in (affine, gain, offset))
    grid = affine_grid(affine, [len(batch), 1, *batch.shape[1:]], align_corners=False)
    moved = grid_sample(batch[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    middle = moved.mean((1, 2))
    return moved.mul_(gain[:, None, None]).add_((middle * (1 - gain) + offset)[:, None, None]).clamp_(0, 1)


def _change_on_cpu(films: Tensor, affine: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """As on a device, but film by film, each while it is in the cache."""
    given = (films if films.dtype == torch.uint8 else films.float()).numpy()
    changed = np.empty(given.shape, np.float32)
    matrices = _in_pixels(affine, given.shape[-1])
    # One thread: a film of 224 px takes 0.2 ms, and on two busy cores handing films over cost more.
    for film, matrix, *levels, out in zip(
        given, matrices, gain.tolist(), offset.tolist(), changed, strict=True
    ):
        _change_film(film, matrix, *levels, out)
    return torch.from_numpy(changed)


def _in_pixels(affine: Tensor, size: int) -> np.ndarray:
    """The same maps for positions counted in pixels, float64 (N, 2, 3), as OpenCV takes them."""
    maps = affine.double().numpy()
    middle = (size - 1) / 2
    maps[:, :, 2] = maps[:, :, 2] * size / 2 + middle - middle * maps[:, :, :2].sum(2)
    return maps


def _change_film(film: np.ndarray, matrix: np.ndarray, gain: float, offset: float, out: np.ndarray) -> None:
    if film.dtype == np.uint8:
        film = np.multiply(film, np.float32(1 / 255), dtype=np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(film, matrix, film.shape[::-1], dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    middle = cv2.mean(out)[0]
    np.multiply(out, np.float32(gain), out=out)
    np.add(out, np.float32(middle * (1 - gain) + offset), out=out)
    np.clip(out, 0, 1, out=out)
