"""What becomes of a model's scores at simulated sites, and where a part of each film is hidden."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.fitted.spec import ModelSpec
from openmed.gates.worst_site import worst_site
from openmed.metrics.classification import auc
from openmed.metrics.clustered import operating_shares
from openmed.metrics.delong import delong_auc
from openmed.metrics.intervals import paired_difference
from pipeline.evaluation.judgement import patient_numbers
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
) -> dict[str, Any]:
    """Judges a model at its frozen threshold on the films as each simulated site would have given them.

    Args:
        probabilities: Of the films at each of `SITES`, as `changed_probabilities` gives them.
        films: Films outside training: id, label, patient.
        spec: Description of the model, asked for one finding.
        rules: Settings of the intervals.

    Returns:
        films (how many); worst: sensitivity and specificity -> value, low, high (whole patients resampled)
        and site; sites: name -> auc, sensitivity and specificity (value, low, high; Wilson's).
    """
    has, sites, flagged = (films["label"] == spec.positive_index).to_numpy(), {}, []
    for name, answers in probabilities.items():
        scores = answers[:, spec.positive_index]
        flagged.append(scores >= spec.threshold)
        sites[name] = _operating_point(has, scores, flagged[-1], patient_numbers(films), rules.confidence)
    found = worst_site(has, flagged, patient_numbers(films), **rules.resampling)
    names = list(probabilities)
    worst = {key: each.interval.to_json() | {"site": names[each.site]} for key, each in found.items()}
    return {"films": len(films), "worst": worst, "sites": sites}


def _operating_point(
    has: np.ndarray, scores: np.ndarray, flagged: np.ndarray, patients: "pd.Series", confidence: float
) -> dict[str, Any]:
    shares = operating_shares(has, flagged, patients, confidence)
    return {"auc": _auc(has, scores), **{name: each.to_json() for name, each in shares.items()}}


def hidden(
    probabilities: Mapping[str, np.ndarray], films: "pd.DataFrame", spec: ModelSpec, rules: Rules
) -> dict[str, dict[str, Any]]:
    """Compares the scores of films of which a part is hidden with those of the films as they are.

    Args:
        probabilities: Of the films with each of `HIDDEN`, as `changed_probabilities` gives them.
        films: The test films: id, label, patient and score, that of the film as it is.
        spec: Description of the model, asked for one finding.
        rules: Settings of the intervals.

    Returns:
        For each part: films; auc, that of the changed films; and loss, sensitivity and specificity, what it
        costs against the unchanged ones (value, low, high; positive is worse).
    """
    plain = films["score"].to_numpy()
    return {
        name: _cost(films, plain, answers[:, spec.positive_index], spec, rules)
        for name, answers in probabilities.items()
    }


def _probabilities(predict: Predict, pixels: np.ndarray) -> np.ndarray:
    parts = [predict(pixels[start : start + _BATCH_FILMS]) for start in range(0, len(pixels), _BATCH_FILMS)]
    return np.concatenate(parts).astype(np.float64)


def _auc(has: np.ndarray, scores: np.ndarray) -> float | None:
    value = auc(has.astype(int), scores)
    return None if np.isnan(value) else value


def _cost(
    films: "pd.DataFrame", plain: np.ndarray, changed: np.ndarray, spec: ModelSpec, rules: Rules
) -> dict[str, Any]:
    labels = (films["label"] == spec.positive_index).to_numpy(int)
    found = paired_difference(
        labels,
        plain,
        changed,
        patient_numbers(films),
        spec.threshold,
        spec.threshold,
        rules.confidence,
    )
    costs = {("loss" if name == "auc" else name): each.to_json() for name, each in found.items()}
    left = delong_auc(labels, changed, patient_numbers(films), rules.confidence).to_json()
    return {
        "films": len(films),
        "auc": left["value"],
        "auc_low": left["low"],
        "auc_high": left["high"],
        **costs,
    }
