"""Films whose label is probably wrong, by predictions of models that never saw them."""

from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openmed.cache.film_cache import FilmCache

FOLDS = 5
_SIDE_PX, _COMPONENTS, _CHUNK = 32, 80, 512
_FITTED_FILMS = 4096
"""The components are fitted on this many films at most; they know nothing of labels."""
_WRONG_SHARE, _PRIOR_WEIGHT = 0.02, 0.3
"""Share of labels expected to be wrong; the expectation counts as much as 0.3 films for each film."""
_LEAST_PROBABILITY, _RIDGE = 1e-3, 1e-6
_STEPS, _TOLERANCE = 500, 1e-8


def pixel_features(cache: FilmCache, rows: np.ndarray, seed: int) -> np.ndarray:
    """Principal components of films shrunk to 32 x 32 and freed of brightness and contrast.

    They are fitted on films that the seed chooses, and read in chunks.

    Returns:
        float32 (n, components), 80 components at most, of the rows (n,) of the cache, two or more.
    """
    sample = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_FITTED_FILMS])
    fitted = np.concatenate(list(_chunks(cache, rows[sample])))
    components = min(_COMPONENTS, len(sample) - 1)
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(fitted)
    return np.concatenate([pca.transform(chunk) for chunk in _chunks(cache, rows)])


def cross_fitted_probabilities(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, classes: int, seed: int
) -> NDArray[np.float64] | None:
    """Predicts each film by a logistic regression fitted on other patients alone.

    Of features float (n, k), labels int (n,) from 0 to classes - 1 and patients (n,), of whom all films are
    held out together.

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
    """Judges labels by a discriminant analysis in which each class has a rate of wrong labels.

    A probability under one half accuses a label only where classes are easily told apart. So the
    log odds of each true class are taken as normal with one covariance, and means, covariance and
    rates are estimated together by expectation maximisation (Lawrence and Schölkopf, ICML 2001).
    The rates are held near 2 %: without that, classes that overlap would trade their films.

    Of labels int (n,) and probabilities float (n, classes), of models that did not learn the film.

    Returns:
        Columns score (the probability that the given label is wrong, 0 to 1) and suggested (int,
        the most probable of the other classes).
    """
    logs = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    truth = _true_class_probabilities(labels, logs[:, :-1] - logs[:, -1:], probabilities.shape[1])
    films = np.arange(len(labels))
    score = 1 - truth[films, labels]
    truth[films, labels] = -1
    return pd.DataFrame({"score": score, "suggested": truth.argmax(1)})


def _true_class_probabilities(labels: np.ndarray, log_odds: np.ndarray, classes: int) -> np.ndarray:
    """Probability of each true class given a film's label and log odds, (n, classes)."""
    given = np.eye(classes)[labels]
    counts = np.maximum(given.sum(0), 1)
    centred = log_odds - log_odds.mean(0)
    rates, evidence, truth = np.full(classes, _WRONG_SHARE), 0.0, np.zeros_like(given)
    for _ in range(_STEPS):
        wrong = rates[labels, None]
        prior = np.where(given == 1, 1 - wrong, wrong / (classes - 1))
        before, truth = truth, softmax(evidence + np.log(prior), axis=1)
        if np.abs(truth - before).max() < _TOLERANCE:
            break
        weight = truth.sum(0)
        means = truth.T @ centred / weight[:, None]
        within = (centred.T @ centred - (weight * means.T) @ means) / len(labels)
        direction = np.linalg.solve(within + _RIDGE * np.eye(classes - 1), means.T)
        evidence = centred @ direction - (means.T * direction).sum(0) / 2
        errors = counts - (given * truth).sum(0)
        rates = (errors + _PRIOR_WEIGHT * counts * _WRONG_SHARE) / ((1 + _PRIOR_WEIGHT) * counts)
    return truth


def _chunks(cache: FilmCache, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CHUNK):
        films = cache.films[rows[start : start + _CHUNK]]
        size = (_SIDE_PX, _SIDE_PX)
        small = np.stack([cv2.resize(film, size, interpolation=cv2.INTER_AREA) for film in films])
        flat = small.reshape(len(small), -1).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        yield flat / np.maximum(flat.std(1, keepdims=True), 1)
