"""What the test films' scores become when the films are changed, or a part of them is hidden."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.data.perturbations import HIDDEN, ROBUSTNESS
from openmed.metrics.classification import auc
from openmed.metrics.intervals import paired_difference
from openmed.models.spec import ModelSpec
from pipeline.judgement import Rules, patient_numbers

if TYPE_CHECKING:
    import pandas as pd

# Enough to tell 0.05 of AUC from none, at a cost that stays small beside the training.
_MOST_FILMS = 200
_BATCH_FILMS = 64


def stress(
    predict: Callable[[np.ndarray], np.ndarray],
    films: "pd.DataFrame",
    pixels: np.ndarray,
    spec: ModelSpec,
    rules: Rules,
) -> dict[str, dict[str, Any]]:
    """Compares the scores of changed films with those of the films as they are.

    Args:
        predict: uint8 (n, S, S) -> probabilities (n, classes), as the finished model gives them.
        films: The test films: id, label, patient and score, that of the film as it is.
        pixels: Their pixels, uint8 (N, S, S), in the same order.
        spec: Description of the model.
        rules: Settings of the intervals.

    Returns:
        For each change: auc, the AUC of the changed films; and loss, sensitivity and specificity, what it
        costs against the unchanged ones (value, low, high; positive is worse).
    """
    chosen = np.sort(np.random.default_rng(rules.seed).permutation(len(films))[:_MOST_FILMS])
    films, pixels = films.iloc[chosen], pixels[chosen]
    plain = films["score"].to_numpy()
    return {
        name: _cost(films, plain, _scores(predict, change(pixels), spec), spec, rules)
        for name, change in (ROBUSTNESS | HIDDEN).items()
    }


def _scores(predict: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, spec: ModelSpec) -> np.ndarray:
    parts = [predict(pixels[start : start + _BATCH_FILMS]) for start in range(0, len(pixels), _BATCH_FILMS)]
    return np.concatenate(parts)[:, spec.positive_index].astype(np.float64)


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
        **rules.resampling,
    )
    costs = {("loss" if name == "auc" else name): each.to_json() for name, each in found.items()}
    return {"films": len(films), "auc": auc(labels, changed), **costs}
