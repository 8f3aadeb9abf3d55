"""Balanced resampling of training rows. Rows are drawn, pixels are never mixed; features may be."""

import numpy as np

from openmed.errors import BadInput

STRATEGIES = ("over", "under", "weighted", "none")
_NEIGHBOURS = 5
SMOTE_FEWEST_FILMS = _NEIGHBOURS + 1
"""Of each class."""


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
    """Fills the smaller classes up with points between neighbours of one class, by imbalanced-learn.

    SMOTE (Chawla et al., JAIR 2002;16:321-357). On pixels it would lay films of several patients over each
    other; on a backbone's features, which the head alone sees, a point between two films of a class is a
    fair guess at a third. Give it each training film once: a repeated film is its own neighbour.

    Of features float32 (n, d) of training films alone, and labels int (n,).

    Returns:
        float32 (m, d) and labels (m,): all given rows in their order, then the invented ones; every class
        as large as the largest.

    Raises:
        BadInput: There is one class only, a class has fewer than 6 films, or a feature is not finite.
        ValueError: The features are not one row a label.
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"{len(labels)} labels need as many rows of features, not {features.shape}")
    if not np.isfinite(features).all():
        raise BadInput("SMOTE needs finite features: the backbone gives others, so its weights are damaged")
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < SMOTE_FEWEST_FILMS:
        raise BadInput(
            f"SMOTE draws between {_NEIGHBOURS} neighbours and needs two or more classes of at least "
            f"{SMOTE_FEWEST_FILMS} training films each, found {counts.tolist()}: set oversampling: none"
        )
    from imblearn.over_sampling import SMOTE

    return SMOTE(k_neighbors=_NEIGHBOURS, random_state=seed).fit_resample(features, labels)
