import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from openmed.data.label_errors import cross_fitted_probabilities, label_errors, pixel_features

REAL = Path(__file__).parents[4] / "shared/data/chest_xray_train_224.zip"


class Films:
    """What a film cache offers: positions give films."""

    def __init__(self, films):
        self.films = films


@pytest.fixture(scope="module")
def blobs():
    """600 points of 200 patients in three well-separated classes, 30 of them mislabelled."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(200), 3)
    truth = patients % 3
    features = rng.normal(size=(600, 6)) + 3 * np.eye(6)[truth]
    labels = truth.copy()
    wrong = rng.choice(600, 30, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    return features, truth, labels, wrong, patients


def test_planted_label_errors_of_three_classes_come_first_with_the_right_label(blobs):
    features, truth, labels, wrong, patients = blobs
    probabilities = cross_fitted_probabilities(features, labels, patients, 3, seed=1)
    assert np.allclose(probabilities.sum(1), 1)
    found = label_errors(labels, probabilities)
    first = found["score"].to_numpy().argsort()[::-1][:30]
    assert np.isin(first, wrong).mean() >= 0.9
    assert np.isin(np.flatnonzero(found["suspect"]), wrong).mean() >= 0.8
    assert (found["suggested"][wrong] == truth[wrong]).mean() >= 0.9


def test_the_score_is_what_the_given_label_lacks_in_probability(blobs):
    features, _, labels, _, patients = blobs
    probabilities = cross_fitted_probabilities(features, labels, patients, 3, seed=1)
    found = label_errors(labels, probabilities)
    assert np.allclose(found["score"], 1 - probabilities[np.arange(600), labels])


def test_no_film_is_judged_by_a_model_that_saw_its_patient(monkeypatch, blobs):
    features, _, labels, _, patients = blobs
    marked = np.column_stack([features, patients])
    seen, judged = [], []
    # The scaler stands between; the patients are read off before it.
    fit, transform = StandardScaler.fit_transform, StandardScaler.transform
    monkeypatch.setattr(
        StandardScaler, "fit_transform", lambda self, x, *a, **k: seen.append(set(x[:, -1])) or fit(self, x)
    )
    monkeypatch.setattr(
        StandardScaler,
        "transform",
        lambda self, x, *a, **k: (len(x) < 300 and judged.append(set(x[:, -1]))) or transform(self, x),
    )
    cross_fitted_probabilities(marked, labels, patients, 3, seed=1)
    assert len(seen) == len(judged) == 5
    assert not any(learned & asked for learned, asked in zip(seen, judged, strict=True))
    assert set.union(*judged) == set(patients)


def test_a_class_of_fewer_than_five_patients_is_not_judged(blobs):
    features, _, labels, _, patients = blobs
    few = np.where(labels == 2, patients % 4, patients + 10)
    assert cross_fitted_probabilities(features, labels, few, 3, seed=1) is None


def test_features_do_not_depend_on_brightness_contrast_or_chunks():
    rng = np.random.default_rng(3)
    films = rng.integers(40, 120, (700, 32, 32), dtype=np.uint8)
    plain = pixel_features(Films(films), np.arange(700), seed=0)
    brighter = pixel_features(Films(films * 2 + 10), np.arange(700), seed=0)
    assert plain.shape == (700, 80)
    assert np.allclose(plain, brighter, atol=1e-3)
    some = pixel_features(Films(films), np.arange(700)[::-1].copy(), seed=0)
    assert some.shape == plain.shape


def test_few_films_give_few_components():
    films = np.random.default_rng(1).integers(0, 256, (12, 48, 48), dtype=np.uint8)
    assert pixel_features(Films(films), np.arange(12), seed=0).shape == (12, 11)


@pytest.mark.skipif(not REAL.is_file(), reason="the real films are not beside this checkout")
def test_flipped_labels_of_real_films_come_first():
    import cv2

    films, labels, patients = [], [], []
    with zipfile.ZipFile(REAL) as archive:
        for path in sorted(name for name in archive.namelist() if name.endswith(".jpeg"))[::3]:
            film = cv2.imdecode(np.frombuffer(archive.read(path), np.uint8), cv2.IMREAD_GRAYSCALE)
            films.append(cv2.resize(film, (64, 64), interpolation=cv2.INTER_AREA))
            labels.append(int("PNEUMONIA" in path))
            patients.append("-".join(Path(path).name.replace("_", "-").split("-")[:3]))
    labels, wrong = np.array(labels), np.random.default_rng(2).choice(len(labels), 40, replace=False)
    labels[wrong] ^= 1
    features = pixel_features(Films(np.stack(films)), np.arange(len(films)), seed=0)
    probabilities = cross_fitted_probabilities(features, labels, np.array(patients), 2, seed=0)
    order = label_errors(labels, probabilities)["score"].to_numpy().argsort()[::-1]
    assert np.isin(order[:40], wrong).sum() >= 24
    assert np.isin(order[:80], wrong).sum() >= 32


def test_predictions_are_those_of_a_plain_logistic_regression(blobs):
    """One fold by hand: the class order and the scaling are as scikit-learn's."""
    from sklearn.model_selection import StratifiedGroupKFold

    features, _, labels, _, patients = blobs
    ours = cross_fitted_probabilities(features, labels, patients, 3, seed=7)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=7)
    fitted, held_out = next(folds.split(features, labels, patients))
    mean, std = features[fitted].mean(0), features[fitted].std(0)
    model = LogisticRegression(C=0.01, max_iter=500).fit((features[fitted] - mean) / std, labels[fitted])
    assert np.allclose(ours[held_out], model.predict_proba((features[held_out] - mean) / std), atol=1e-6)
