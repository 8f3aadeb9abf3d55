"""What becomes of a model's scores at simulated sites, and where a part of each film is hidden."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from openmed.fitted.spec import ModelSpec
from openmed.gates.worst_site import worst_site
from openmed.metrics.classification import auc
from openmed.metrics.clustered import operating_shares
from openmed.metrics.delong import delong_auc
from openmed.metrics.intervals import paired_difference
from pipeline.evaluation.judgement import patient_numbers
from pipeline.evaluation.metrics_file import AtSites, HiddenPart, Site, WorstShare
from pipeline.evaluation.rules import Rules

if TYPE_CHECKING:
    import pandas as pd

Predict = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, S, S) -> probabilities (n, classes), as the finished model gives them."""
Change = Callable[[np.ndarray], np.ndarray]
"""uint8 (n, S, S) -> the same films, changed."""

# Enough to tell 0.05 from none, at a cost that stays small beside the training.
_MOST_FILMS = 500
_BATCH_FILMS = 64


def chosen_films(films: "pd.DataFrame", seed: int) -> "pd.DataFrame":
    """Draws the films that are changed: all of them, or as many as are worth their cost."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(films))[:_MOST_FILMS])
    return films.iloc[chosen]


def changed_probabilities(
    predict: Predict, pixels: np.ndarray, changes: Mapping[str, Change]
) -> dict[str, np.ndarray]:
    """What a model says of films, uint8 (N, S, S), after each change: name -> float (N, classes)."""
    return {name: _probabilities(predict, change(pixels)) for name, change in changes.items()}


def at_sites(
    probabilities: Mapping[str, np.ndarray], films: "pd.DataFrame", spec: ModelSpec, rules: Rules
) -> AtSites:
    """Judges a model, asked for one finding, on films as each simulated site would have given them.

    The probabilities are those at each of `SITES`; the films have id, label and patient.
    """
    has, patients = (films["label"] == spec.positive_index).to_numpy(), patient_numbers(films)
    sites, flagged = {}, []
    for name, answers in probabilities.items():
        scores = answers[:, spec.positive_index]
        flagged.append(scores >= spec.operating_point)
        shares = operating_shares(has, flagged[-1], patients, rules.confidence)
        sites[name] = Site(auc(has.astype(int), scores), **shares)
    lowest = worst_site(has, flagged, patients, **rules.resampling)
    names = list(probabilities)
    worst = {
        name: WorstShare(**asdict(each.interval), site=names[each.site]) for name, each in lowest.items()
    }
    return AtSites(len(films), worst, sites)


def hidden(
    probabilities: Mapping[str, np.ndarray], films: "pd.DataFrame", spec: ModelSpec, rules: Rules
) -> dict[str, HiddenPart]:
    """Compares films of which a part (of `HIDDEN`) is hidden with the films as they are; as `at_sites`.

    The films have a score too: that of the film as it is.
    """
    labels, patients = (films["label"] == spec.positive_index).to_numpy(int), patient_numbers(films)
    plain, points = films["score"].to_numpy(), (spec.operating_point, spec.operating_point)
    parts = {}
    for name, answers in probabilities.items():
        changed = answers[:, spec.positive_index]
        costs = paired_difference(labels, plain, changed, patients, *points, rules.confidence)
        left = delong_auc(labels, changed, patients, rules.confidence)
        shares = costs["sensitivity"], costs["specificity"]
        parts[name] = HiddenPart(len(films), left.value, left.low, left.high, costs["auc"], *shares)
    return parts


def _probabilities(predict: Predict, pixels: np.ndarray) -> np.ndarray:
    parts = [predict(pixels[start : start + _BATCH_FILMS]) for start in range(0, len(pixels), _BATCH_FILMS)]
    return np.concatenate(parts).astype(np.float64)
