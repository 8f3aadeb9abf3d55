"""Batched augmentation: what happens to a film is drawn once, for every device alike.

OpenCV does it film by film on the CPU; on any other device a few operations on the whole batch give the same
films within one grey level.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from openmed.perturbations.hidden_parts import lung_mask
from openmed.training.changes import LEVELS, Changes, draw_changes
from openmed.training.settings import Augmentation

# The edge between a film's lungs and another's surroundings, in film widths.
_SOFT_EDGE = 0.03
_ERASED = 0.5


def augment(films: Tensor, settings: Augmentation, share: slice = slice(None)) -> Tensor:
    """Changes each film at random.

    In this order: gamma, the surroundings of another film, rotation with shift, scale, aspect and crop, loss
    of resolution, blur, contrast and brightness, noise, a grey square. Random numbers come from torch's CPU
    generator, so that a run is the same on any device within one grey level, and bit for bit on one machine,
    whatever the number of threads.

    The films are uint8 or float (N, S, S), a whole batch; uint8 is scaled to 0..1. Those outside the share
    only lend their surroundings.

    Returns:
        float32 (n, S, S) in 0..1, on the films' device. What is moved in from outside repeats the border.
    """
    changes = draw_changes(len(films), settings, share)
    change = _change_on_cpu if films.device.type == "cpu" else _change_on_device
    return change(films, changes, settings)


def _change_on_device(films: Tensor, changes: Changes, settings: Augmentation) -> Tensor:
    device, size = films.device, films.shape[-1]
    c = Changes(**{name: value.to(device, non_blocking=True) for name, value in vars(changes).items()})
    bright = _of_each(c.gamma)
    batch = _unit(films[c.film]).pow(bright) if settings.gamma else _unit(films[c.film])
    if settings.context:
        mask, other = _constant(device, _mask, size), _unit(films[c.partner])
        batch = batch * mask + (other.pow(bright) if settings.gamma else other) * (1 - mask)
    grid = affine_grid(c.affine, [len(batch), 1, size, size], align_corners=False)
    batch = grid_sample(batch[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    for levels, largest, soften in ((c.coarse, settings.coarse, _coarsen), (c.blur, settings.blur, _blur)):
        if largest:
            operator = _constant(device, _operators, soften, largest, size)[levels]
            batch = operator @ batch @ operator.mT
    batch = batch * _of_each(c.gain) + _of_each(batch.mean((1, 2)) * (1 - c.gain) + c.offset)
    if settings.noise:
        at = torch.arange(size, device=device)
        rows, columns = (start[:, None] + at for start in _noise_starts(c, size))
        field = _constant(device, _noise_field, size)
        batch = batch + field[rows[:, :, None], columns[:, None, :]] * _of_each(c.noise)
    if settings.erase:
        left, top, right, bottom = _in_whole_pixels(c.erased, size).T[:, :, None]
        at = torch.arange(size, device=device)
        rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
        batch = batch.masked_fill(rows[:, :, None] & columns[:, None, :], _ERASED)
    return batch.clamp_(0, 1)


@lru_cache(maxsize=32)
def _constant(device: torch.device, make: Callable[..., np.ndarray], *arguments: object) -> Tensor:
    return torch.from_numpy(make(*arguments)).to(device)


def _unit(films: Tensor) -> Tensor:
    return films.float() / 255 if films.dtype == torch.uint8 else films.float()


def _of_each(values: Tensor) -> Tensor:
    return values[:, None, None]


def _change_on_cpu(films: Tensor, changes: Changes, settings: Augmentation) -> Tensor:
    """As on a device, but film by film, each while it is in the cache, by as many threads as torch has."""
    pixels, size = films.numpy(), films.shape[-1]
    drawn = {name: value.numpy() for name, value in vars(changes).items()}
    drawn["affine"] = _in_pixels(changes.affine, size)
    drawn["erased"] = _in_whole_pixels(changes.erased, size).numpy()
    drawn["noise_at"] = torch.stack(_noise_starts(changes, size), 1).numpy()
    changed = np.empty((len(changes.film), size, size), np.float32)

    def change(positions: range) -> None:
        for k in positions:
            _change_film(pixels, {name: values[k] for name, values in drawn.items()}, settings, changed[k])

    threads = torch.get_num_threads()
    others = [_pool().submit(change, range(first, len(changed), threads)) for first in range(1, threads)]
    change(range(0, len(changed), threads))
    for other in others:
        other.result()
    return torch.from_numpy(changed)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="augment")


def _change_film(pixels: np.ndarray, c: Mapping[str, Any], settings: Augmentation, out: np.ndarray) -> None:
    """Writes one film of a batch (N, S, S), changed as drawn for it, to float32 (S, S)."""
    size = len(out)
    film = _grey(pixels[c["film"]], c["gamma"])
    if c["partner"] != c["film"]:
        mask = _mask(size)
        film = cv2.blendLinear(film, _grey(pixels[c["partner"]], c["gamma"]), mask, 1 - mask)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(film, c["affine"], (size, size), dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    if settings.coarse:
        out[:] = _coarsen(out, _strength(c["coarse"], settings.coarse), axes=2)
    if settings.blur:
        out[:] = _blur(out, _strength(c["blur"], settings.blur), axes=2)
    middle = cv2.mean(out)[0]
    np.multiply(out, np.float32(c["gain"]), out=out)
    np.add(out, np.float32(middle * (1 - c["gain"]) + c["offset"]), out=out)
    if settings.noise:
        row, column = c["noise_at"]
        field = _noise_field(size)[row : row + size, column : column + size]
        cv2.scaleAdd(field, float(c["noise"]), out, dst=out)
    if settings.erase:
        left, top, right, bottom = c["erased"]
        out[top:bottom, left:right] = _ERASED
    np.clip(out, 0, 1, out=out)


def _grey(film: np.ndarray, gamma: np.float32) -> np.ndarray:
    """Grey levels in 0..1, float32, to the power of gamma."""
    if film.dtype != np.uint8:
        return film.astype(np.float32) if gamma == 1 else np.power(film, gamma, dtype=np.float32)
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return cv2.LUT(film, levels if gamma == 1 else np.power(levels, gamma))


def _in_pixels(affine: Tensor, size: int) -> np.ndarray:
    """The same maps for positions counted in pixels, float64 (N, 2, 3), as OpenCV takes them."""
    maps = affine.double().numpy()
    middle = (size - 1) / 2
    maps[:, :, 2] = maps[:, :, 2] * size / 2 + middle - middle * maps[:, :, :2].sum(2)
    return maps


def _in_whole_pixels(shares: Tensor, size: int) -> Tensor:
    return (shares * size).round().long()


@lru_cache(maxsize=8)
def _mask(size: int) -> NDArray[np.float32]:
    """1 where the lungs usually lie, 0 outside, float32 (S, S), with a soft edge."""
    mask = lung_mask(size).astype(np.float32)
    return cv2.GaussianBlur(mask, (0, 0), _SOFT_EDGE * size, borderType=cv2.BORDER_REPLICATE)


def _strength(level: int, largest: float) -> float:
    return largest * float(level) / (LEVELS - 1)


def _coarsen(film: np.ndarray, share: float, *, axes: int) -> np.ndarray:
    """Takes away a share of the resolution, downwards and, with two axes, across."""
    height, width = film.shape
    small = max(1, round(height * (1 - share)))
    if small == height:
        return film
    shrunk = cv2.resize(film, (small if axes == 2 else width, small), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)


def _blur(film: np.ndarray, share: float, *, axes: int) -> np.ndarray:
    """Blurs by a Gaussian of a share of the side, downwards and, with two axes, across."""
    sigma_px = share * len(film)
    if sigma_px < 0.1:
        return film
    down = cv2.getGaussianKernel(2 * round(3 * sigma_px) + 1, sigma_px, cv2.CV_32F)
    across = down if axes == 2 else np.ones((1, 1), np.float32)
    return cv2.sepFilter2D(film, cv2.CV_32F, across, down, borderType=cv2.BORDER_REPLICATE)


def _operators(soften: Callable[..., np.ndarray], largest: float, size: int) -> NDArray[np.float32]:
    """What softens a column at each level, float32 (LEVELS, S, S): both axes in turn soften a film."""
    identity = np.eye(size, dtype=np.float32)
    return np.stack([soften(identity, _strength(level, largest), axes=1) for level in range(LEVELS)])


@lru_cache(maxsize=8)
def _noise_field(size: int) -> NDArray[np.float32]:
    """Normal noise, float32 (2 S, 2 S), the same in every run: a film gets some window of it."""
    return np.random.default_rng(0).standard_normal((2 * size, 2 * size), np.float32)


def _noise_starts(changes: Changes, size: int) -> tuple[Tensor, Tensor]:
    """First row and column of each film's window of the noise, int64 (N,)."""
    column, row = (changes.noise_at * size).long().T
    return row, column
