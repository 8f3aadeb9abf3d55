"""Whether a heat map depends on what the model learned, and on nothing that should not matter."""

import numpy as np
import torch
from numpy.typing import NDArray

from openmed.explain.heatmap import explain
from openmed.explain.hiding import cells_of
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory


def randomisation(
    model: BaseModel,
    films: NDArray[np.uint8],
    maps: dict[str, np.ndarray],
    class_index: int,
    seed: int = 0,
    networks: int = 3,
) -> dict[str, float]:
    """Model parameter randomisation (Adebayo et al., Sanity Checks for Saliency Maps, arXiv:1810.03292).

    All weights are drawn anew at once. A map that stays as it was shows edges or brightness of the film,
    not what the model learned. One untrained network may happen to look where the trained one does, so
    several are asked.

    Of films uint8 (N, S, S), one or more, and by method the model's maps (N, h, w): by method, the mean rank
    correlation (-1..1) with the maps of the untrained networks.
    """
    correlations: dict[str, list[float]] = {method: [] for method in maps}
    for number in range(networks):
        untrained = reinitialised(model, seed + number)
        for method, heat in _for_or_against(untrained, films, class_index).items():
            correlations[method].append(rank_correlation(maps[method], heat).mean())
    return {method: float(np.mean(values)) for method, values in correlations.items()}


def repetition(
    model: BaseModel, films: NDArray[np.uint8], maps: dict[str, np.ndarray], class_index: int
) -> dict[str, float]:
    """By method, the largest difference (0..1) of the heat when the same films are explained again.

    In reversed order, so that no film may lean on its batch.
    """
    again = explain(model, films[::-1].copy(), class_index)
    return {method: float(np.abs(again[method][::-1] - heat).max()) for method, heat in maps.items()}


def perturbation(
    model: BaseModel, films: NDArray[np.uint8], maps: dict[str, np.ndarray], class_index: int, seed: int = 0
) -> dict[str, float]:
    """By method, the mean rank correlation (-1..1) of maps with those of slightly changed films."""
    changed = explain(model, slightly_changed(films, seed), class_index)
    return {method: float(rank_correlation(heat, changed[method]).mean()) for method, heat in maps.items()}


def reinitialised(model: BaseModel, seed: int) -> BaseModel:
    """An untrained network of the same kind, explained at the same layer; the model keeps its weights."""
    spec = model.spec
    untrained = ModelFactory.create(
        spec.architecture,
        class_names=spec.class_names,
        positive=spec.positive,
        timm_name=spec.timm_name,
        image_size_px=spec.image_size_px,
        model_options=spec.model_options,
        seed=seed,
    )
    untrained.spec = spec
    return untrained.to(model.device).eval()


def slightly_changed(films: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Films one pixel aside, up, down, left or right, with noise of a standard deviation of 1 grey level.

    The border is repeated where a film, uint8 (S, S) of (N, S, S), moved away from it.
    """
    rng = np.random.default_rng(seed)
    size = films.shape[1]
    padded = np.pad(films, ((0, 0), (1, 1), (1, 1)), mode="edge")
    starts = np.array([(0, 1), (2, 1), (1, 0), (1, 2)])[rng.integers(0, 4, len(films))]
    moved = [one[y : y + size, x : x + size] for one, (y, x) in zip(padded, starts, strict=True)]
    noisy = np.stack(moved) + rng.normal(0, 1, films.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _for_or_against(
    untrained: BaseModel, films: NDArray[np.uint8], class_index: int
) -> dict[str, np.ndarray]:
    """Maps of what speaks for a class or, on films where nothing does, against it.

    Half of all untrained CNNs have nothing that speaks for a class, and a map without heat would be unlike
    any other for no good reason. The sign of the head's weights was chance.
    """
    maps = explain(untrained, films, class_index)
    if all(np.ptp(heat, axis=(1, 2)).all() for heat in maps.values()):
        return maps
    with torch.no_grad():
        untrained.classifier().weight.neg_()
    against = explain(untrained, films, class_index)
    flat = {method: np.ptp(heat, axis=(1, 2), keepdims=True) == 0 for method, heat in maps.items()}
    return {method: np.where(flat[method], against[method], heat) for method, heat in maps.items()}


def rank_correlation(first: np.ndarray, second: np.ndarray) -> NDArray[np.float64]:
    """Spearman's correlation (N,) of maps (N, S, S), over 14 cells a side at most; 0 where one is flat."""
    from scipy.stats import rankdata

    size = first.shape[1]
    one, other = (rankdata(cells_of(maps, size).reshape(len(maps), -1), axis=1) for maps in (first, second))
    one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
    spread = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.divide((one * other).sum(axis=1), spread, out=np.zeros(len(one)), where=spread > 0)
