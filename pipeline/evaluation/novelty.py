"""Films unlike those that a model learnt from: statistics of training films, limit, share of test films."""

from typing import TYPE_CHECKING

import numpy as np

from openmed.cache.film_cache import FilmCache
from openmed.files import sha256_bytes
from openmed.fitted.feature_statistics import FeatureStatistics, fit_statistics
from openmed.fitted.novelty import Novelty
from openmed.metrics.clustered import clustered_share
from pipeline.evaluation.judgement import patient_numbers, unlike_limit
from pipeline.evaluation.metrics_file import Unlike
from pipeline.evaluation.rules import Rules
from pipeline.settings.artifacts import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from openmed.fitted.spec import ModelSpec
    from openmed.models.base import BaseModel

# Enough for 64 directions, and few enough that the memory does not grow with the films.
_MOST_FILMS = 2000
_PART_FILMS = 256


def learn_training_films(model: "BaseModel", split: "pd.DataFrame", seed: int) -> FeatureStatistics:
    """Fits the statistics of a model's features on its training films, copies once, at most 2,000 of them.

    Raises:
        BadInput: There are too few.
    """
    films = split[split["split"] == "train"].sort_values("id")
    # Copies of a film have its id with a number behind it.
    films = films[~films["id"].str[:16].duplicated()]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(films))[:_MOST_FILMS])
    films, cache = films.iloc[chosen], FilmCache(CACHE, model.spec.image_size_px)
    rows, parts = cache.rows(films["id"]), []
    for start in range(0, len(rows), _PART_FILMS):
        parts.append(model.examine(cache.films[rows[start : start + _PART_FILMS]])[1])
    return fit_statistics([np.concatenate(depth) for depth in zip(*parts, strict=True)], films["label"])


def logits_and_distances(
    model: "BaseModel", batches: "Iterable[np.ndarray]"
) -> "tuple[np.ndarray, np.ndarray | None]":
    """Puts films, uint8 (n, S, S) a batch, through a network that may have statistics of its training films.

    Returns:
        Logits, float32 (N, classes), and distances from the training films, float64 (N,), or None.
    """
    if model.statistics is None:
        return np.concatenate([model.logits(batch) for batch in batches]), None
    logits, distances = [], []
    for batch in batches:
        part, features = model.examine(batch)
        logits.append(part)
        distances.append(model.statistics.distances(np.concatenate(features, axis=1)))
    return np.concatenate(logits), np.concatenate(distances)


def choose_limit(predictions: "pd.DataFrame", share: float, statistics: FeatureStatistics) -> Novelty:
    """Chooses, on the calibration films of a table of predictions, from where on a film is unlike."""
    limit, patients = unlike_limit(predictions, share)
    return Novelty(share, limit, patients, sha256_bytes(statistics.to_bytes()))


def novelty_check(rules: Rules, spec: "ModelSpec", films: "pd.DataFrame") -> Unlike | None:
    """How many films are unlike, with an interval over patients; None where the model tells none."""
    if spec.novelty is None:
        return None
    novelty, unlike = spec.novelty, spec.novelty.unlike(films["distance"])
    referred = clustered_share(unlike, patient_numbers(films), rules.confidence)
    return Unlike(novelty.share, novelty.limit, novelty.patients, int(unlike.sum()), referred)
