"""Balanced resampling of training rows. Rows are drawn, pixels are never mixed."""

import numpy as np

from openmed.errors import BadInput

STRATEGIES = ("over", "under", "weighted", "none")


def resample_rows(labels: np.ndarray, strategy: str, seed: int) -> np.ndarray:
    """Draws a list of training rows with balanced classes.

    Args:
        labels: int (n,), the label of each training row.
        strategy: "over" repeats rows of the smaller classes up to the largest, "under" drops rows
            of the larger classes down to the smallest (both imbalanced-learn), "weighted" draws
            n rows with equal expected class counts, "none" keeps the rows.
        seed: Seed of the draw.

    Returns:
        int64 positions into `labels`, sorted.

    Raises:
        BadInput: The strategy is unknown or a class is missing.
    """
    if strategy not in STRATEGIES:
        raise BadInput(f"unknown resampling strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    positions = np.arange(len(labels))
    if strategy == "none":
        return positions
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise BadInput("balanced resampling needs training films of at least two classes")
    if strategy == "weighted":
        weight = 1 / (len(classes) * counts[np.searchsorted(classes, labels)])
        return np.sort(np.random.default_rng(seed).choice(positions, len(positions), p=weight))
    from imblearn.over_sampling import RandomOverSampler
    from imblearn.under_sampling import RandomUnderSampler

    sampler = {"over": RandomOverSampler, "under": RandomUnderSampler}[strategy](random_state=seed)
    rows, _ = sampler.fit_resample(positions[:, None], labels)
    return np.sort(rows[:, 0])


def smote_features(features: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Balances the classes by SMOTE between features."""
    from imblearn.over_sampling import SMOTE

    return SMOTE(random_state=seed).fit_resample(features, labels)
