"""What augmentation does to each film of a batch, in numbers drawn at random."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from openmed.training.settings import Augmentation

LEVELS = 16
"""Steps from no loss of resolution, or no blur, to the largest: a device keeps an operator for each."""

_NAMES = (
    *("rotate", "scale", "right", "down", "contrast", "brightness", "mirror", "aspect", "gamma"),
    *("crop", "crop_right", "crop_down", "coarse", "blur", "noise", "noise_right", "noise_down"),
    *("erase", "erase_right", "erase_down", "context", "partner"),
)


@dataclass(frozen=True)
class Changes:
    """Numbers for N films, float32 on the CPU unless said otherwise, in the order in which they are applied.

    Attributes:
        film: int64 (N,) position in the batch of the film itself.
        gamma: (N,) exponent of the grey levels.
        partner: int64 (N,) position in the batch of the film that gives what lies outside the lungs; the
            film's own position leaves it as it is.
        affine: (N, 2, 3) where each pixel of the result comes from, in coordinates that span -1..1.
        coarse: int64 (N,) level of the loss of resolution, 0 to LEVELS - 1.
        blur: int64 (N,) level of the blur, 0 to LEVELS - 1.
        gain: (N,) factor about the film's mean.
        offset: (N,) added to it.
        noise: (N,) standard deviation of the noise, as a share of the grey range.
        noise_at: (N, 2) where in a field of noise the film's lies, right and down, 0..1.
        erased: (N, 4) left, top, right and bottom of what is greyed out, in shares of the side.
    """

    film: Tensor
    gamma: Tensor
    partner: Tensor
    affine: Tensor
    coarse: Tensor
    blur: Tensor
    gain: Tensor
    offset: Tensor
    noise: Tensor
    noise_at: Tensor
    erased: Tensor


def draw_changes(films: int, settings: Augmentation, share: slice) -> Changes:
    """Draws what happens to a share of a batch of so many films.

    Random numbers come from torch's CPU generator. Those of the whole batch are drawn whatever the share, so
    that a film changes alike whoever works on it.
    """
    drawn = (torch.rand(films, len(_NAMES)) * 2 - 1)[share]
    u = dict(zip(_NAMES, drawn.T, strict=True))
    own, partner = torch.arange(films)[share], (_half(u["partner"]) * films).long().clamp_(max=films - 1)
    return Changes(
        film=own,
        gamma=(u["gamma"] * settings.gamma).exp(),
        partner=torch.where(_half(u["context"]) < settings.context, partner, own),
        affine=_affine(u, settings),
        coarse=_level(u["coarse"]),
        blur=_level(u["blur"]),
        gain=1 + u["contrast"] * settings.contrast,
        offset=u["brightness"] * settings.brightness,
        noise=_half(u["noise"]) * settings.noise,
        noise_at=torch.stack([_half(u["noise_right"]), _half(u["noise_down"])], 1),
        erased=_erased(u, settings),
    )


def _half(u: Tensor) -> Tensor:
    """From -1..1 to 0..1."""
    return (u + 1) / 2


def _level(u: Tensor) -> Tensor:
    return (_half(u) * LEVELS).long().clamp_(max=LEVELS - 1)


def _affine(u: dict[str, Tensor], settings: Augmentation) -> Tensor:
    angle = u["rotate"] * math.radians(settings.rotate_degrees)
    side = (1 - _half(u["crop"]) * settings.crop).sqrt()
    scale = (1 + u["scale"] * settings.scale) * side
    stretch = (u["aspect"] * math.log1p(settings.aspect) / 2).exp()
    mirror = torch.where(u["mirror"] < 0, -1.0, 1.0) if settings.flip else torch.ones(len(scale))
    across, down = scale * stretch * mirror, scale / stretch
    # A shift of one side length is 2 here; a crop may lie anywhere inside the film.
    right = 2 * settings.shift * u["right"] + (1 - side) * u["crop_right"]
    lower = 2 * settings.shift * u["down"] + (1 - side) * u["crop_down"]
    rows = [
        torch.stack([angle.cos() * across, -angle.sin() * down, right], 1),
        torch.stack([angle.sin() * across, angle.cos() * down, lower], 1),
    ]
    return torch.stack(rows, 1)


def _erased(u: dict[str, Tensor], settings: Augmentation) -> Tensor:
    half = (_half(u["erase"]) * settings.erase).sqrt() / 2
    middles = [half + _half(u[name]) * (1 - 2 * half) for name in ("erase_right", "erase_down")]
    return torch.stack([middle + sign * half for sign in (-1, 1) for middle in middles], 1)
