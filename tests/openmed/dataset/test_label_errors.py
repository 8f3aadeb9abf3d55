import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from openmed.dataset.label_errors import cross_fitted_probabilities, label_errors, pixel_features
from openmed.intake.identity import patient_of

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
    accused = np.flatnonzero(found["score"] > 0.5)
    assert np.isin(accused, wrong).mean() >= 0.9
    assert np.isin(wrong, accused).mean() >= 0.8
    assert (found["suggested"][wrong] == truth[wrong]).mean() >= 0.9


MEANS = np.array([[4.0, 4.0], [0.0, 0.0], [0.7, -0.7]])
"""Log odds against the third class: one class stands apart, two overlap."""
COVARIANCE = np.array([[1.5, 0.6], [0.6, 1.0]])


def overlapping(films, wrong_share, seed, means=MEANS, covariance=COVARIANCE):
    """Labels, true classes and probabilities whose log odds are normal in each class."""
    rng = np.random.default_rng(seed)
    classes = len(means)
    truth = rng.integers(0, classes, films)
    odds = np.array([rng.multivariate_normal(means[index], covariance) for index in truth])
    labels = np.where(
        rng.random(films) < wrong_share, (truth + rng.integers(1, classes, films)) % classes, truth
    )
    return labels, truth, softmax(np.column_stack([odds, np.zeros(films)]), axis=1)


def exact_score(labels, probabilities, wrong_share):
    """Bayes' rule with the densities the numbers were drawn from."""
    odds = np.log(probabilities[:, :2] / probabilities[:, 2:])
    density = np.column_stack([multivariate_normal.pdf(odds, mean, COVARIANCE) for mean in MEANS])
    prior = np.where(np.eye(3)[labels] == 1, 1 - wrong_share, wrong_share / 2)
    joint = prior * density
    return 1 - joint[np.arange(len(labels)), labels] / joint.sum(1)


def test_the_score_is_the_probability_that_the_label_is_wrong():
    labels, truth, probabilities = overlapping(4000, 0.03, seed=4)
    score, exact = label_errors(labels, probabilities)["score"], exact_score(labels, probabilities, 0.03)
    assert score.between(0, 1).all()
    assert np.abs(score - exact).mean() < 0.005
    assert ((score > 0.5) == (exact > 0.5)).mean() > 0.995
    assert score.sum() == pytest.approx((labels != truth).sum(), rel=0.25)


@pytest.mark.parametrize("seed", range(5))
def test_right_labels_of_classes_that_overlap_give_a_short_list(seed):
    labels, _, probabilities = overlapping(660, 0, seed)
    assert (probabilities[np.arange(660), labels] < 0.5).mean() > 0.15
    assert (label_errors(labels, probabilities)["score"] > 0.5).mean() <= 0.01


def test_exchanged_labels_of_classes_that_overlap_are_found_where_they_can_be():
    labels, truth, probabilities = overlapping(2000, 0.05, seed=9)
    found = label_errors(labels, probabilities)
    accused, wrong = found["score"] > 0.5, labels != truth
    apart = wrong & ((labels == 0) | (truth == 0))
    exact = exact_score(labels, probabilities, 0.05) > 0.5
    assert exact[apart].mean() > 0.7
    assert accused[apart].mean() > exact[apart].mean() - 0.05
    assert wrong[accused].mean() > 0.85
    assert accused.mean() < 0.06
    to_first = apart & accused & (truth == 0)
    assert to_first.sum() >= 15
    assert (found["suggested"][to_first] == 0).all()


def test_twelve_classes_that_hardly_differ_do_not_trade_their_films():
    means = np.vstack([0.8 * np.eye(11), np.zeros(11)])
    labels, _, probabilities = overlapping(1200, 0, 3, means, np.eye(11))
    assert (label_errors(labels, probabilities)["score"] > 0.5).mean() <= 0.01


def test_the_suggested_class_is_never_the_given_one(blobs):
    features, _, labels, _, patients = blobs
    probabilities = cross_fitted_probabilities(features, labels, patients, 3, seed=1)
    assert (label_errors(labels, probabilities)["suggested"] != labels).all()


def test_probabilities_of_zero_and_one_are_judged():
    labels = np.array([0] * 20 + [1] * 20)
    probabilities = np.eye(2)[labels]
    probabilities[[3, 30]] = probabilities[[3, 30], ::-1]
    score = label_errors(labels, probabilities)["score"]
    assert np.flatnonzero(score > 0.5).tolist() == [3, 30]
    assert score.drop([3, 30]).max() < 0.1


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


@pytest.fixture(scope="module")
def real():
    """Every third film of the archive, as numbers: features, kinds and patients."""
    if not REAL.is_file():
        pytest.skip("the real films are not beside this checkout")
    import cv2

    films, kinds, patients = [], [], []
    with zipfile.ZipFile(REAL) as archive:
        for path in sorted(name for name in archive.namelist() if name.endswith(".jpeg"))[::3]:
            film = cv2.imdecode(np.frombuffer(archive.read(path), np.uint8), cv2.IMREAD_GRAYSCALE)
            films.append(cv2.resize(film, (64, 64), interpolation=cv2.INTER_AREA))
            kinds.append(1 if "bacteria" in path else 2 if "virus" in path else 0)
            patients.append(patient_of(Path(path).name)[0])
    return (
        pixel_features(Films(np.stack(films)), np.arange(len(films)), seed=0),
        np.array(kinds),
        np.array(patients),
    )


def test_exchanged_labels_of_real_films_come_first(real):
    features, kinds, patients = real
    labels, wrong = (kinds > 0).astype(int), np.random.default_rng(2).choice(len(kinds), 40, replace=False)
    labels[wrong] ^= 1
    score = label_errors(labels, cross_fitted_probabilities(features, labels, patients, 2, seed=0))["score"]
    order = score.to_numpy().argsort()[::-1]
    assert np.isin(order[:40], wrong).sum() >= 24
    assert np.isin(order[:80], wrong).sum() >= 32
    accused = np.flatnonzero(score > 0.5)
    assert np.isin(accused, wrong).mean() >= 0.6
    assert np.isin(wrong, accused).mean() >= 0.6


def test_three_kinds_of_real_films_give_a_short_list_with_the_exchanged_ones(real):
    features, kinds, patients = real
    probabilities = cross_fitted_probabilities(features, kinds, patients, 3, seed=0)
    assert (probabilities[np.arange(len(kinds)), kinds] < 0.5).mean() > 0.25
    assert (label_errors(kinds, probabilities)["score"] > 0.5).mean() <= 0.015
    rng = np.random.default_rng(3)
    healthy, ill = (rng.choice(np.flatnonzero(which), 40, replace=False) for which in (kinds == 0, kinds > 0))
    labels, wrong = kinds.copy(), np.concatenate([healthy, ill])
    labels[healthy], labels[ill] = rng.integers(1, 3, 40), 0
    score = label_errors(labels, cross_fitted_probabilities(features, labels, patients, 3, seed=0))["score"]
    accused = np.flatnonzero(score > 0.5)
    assert np.isin(accused, wrong).mean() >= 0.6
    assert np.isin(wrong, accused).mean() >= 0.6


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
