"""Films whose label is probably wrong: confident learning on predictions of models that never saw them."""

import cv2
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openmed.data.cache import FilmCache

FOLDS = 5
_SIDE_PX, _COMPONENTS, _CHUNK = 32, 80, 512
_FITTED_FILMS = 4096
"""The components are fitted on this many films at most; they know nothing of labels."""


def pixel_features(cache: FilmCache, rows: np.ndarray, seed: int) -> np.ndarray:
    """Principal components of films shrunk to 32 x 32 and freed of brightness and contrast.

    Args:
        cache: The decoded films; they are read in chunks.
        rows: Positions in the cache, int64 (n,), two or more.
        seed: Chooses the films on which the components are fitted.

    Returns:
        float32 (n, components), 80 components at most.
    """
    sample = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_FITTED_FILMS])
    fitted = np.concatenate(list(_chunks(cache, rows[sample])))
    components = min(_COMPONENTS, len(sample) - 1)
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(fitted)
    return np.concatenate([pca.transform(chunk) for chunk in _chunks(cache, rows)])


def cross_fitted_probabilities(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, classes: int, seed: int
) -> np.ndarray | None:
    """Predicts each film by a logistic regression fitted on other patients alone.

    Args:
        features: float (n, k).
        labels: int (n,), 0 to classes - 1.
        patients: (n,); all films of a patient are held out together.
        classes: Number of classes.
        seed: Of the folds.

    Returns:
        float64 (n, classes), or None where a class has fewer than five patients: its films could
        not be judged by others of their kind.
    """
    per_class = [len(np.unique(patients[labels == index])) for index in range(classes)]
    if min(per_class) < FOLDS:
        return None
    probabilities = np.zeros((len(labels), classes))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, held_out in folds.split(features, labels, patients):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        model.fit(features[fitted], labels[fitted])
        probabilities[np.ix_(held_out, model.classes_)] = model.predict_proba(features[held_out])
    return probabilities


def label_errors(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Judges labels by confident learning (Northcutt et al., JAIR 70, 2021) with cleanlab.

    Args:
        labels: int (n,).
        probabilities: float (n, classes), of models that did not learn the film.

    Returns:
        Columns score (1 minus the probability of the given label), suspect (bool: one of as many
        films as confident learning estimates to be mislabelled) and suggested (int, the most
        probable class).
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    return pd.DataFrame(
        {
            "score": 1 - get_label_quality_scores(labels, probabilities, method="self_confidence"),
            "suspect": find_label_issues(labels, probabilities, n_jobs=1),
            "suggested": probabilities.argmax(1),
        }
    )


def _chunks(cache: FilmCache, rows: np.ndarray):
    for start in range(0, len(rows), _CHUNK):
        films = cache.films[rows[start : start + _CHUNK]]
        size = (_SIDE_PX, _SIDE_PX)
        small = np.stack([cv2.resize(film, size, interpolation=cv2.INTER_AREA) for film in films])
        flat = small.reshape(len(small), -1).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        yield flat / np.maximum(flat.std(1, keepdims=True), 1)
