from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from openmed.errors import BadInput, IntegrityError
from openmed.fitted import feature_statistics
from openmed.fitted.feature_statistics import FeatureStatistics, fit_statistics


def features_of(count, seed, shift=0.0):
    """Two depths of correlated features, and labels that move their means."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(99)
    labels, parts = rng.integers(0, 2, count), []
    for width in (30, 50):
        hidden = rng.normal(size=(count, 6)) @ mixing.normal(size=(6, width))
        noise = 0.4 * rng.normal(size=(count, width)) + shift
        parts.append((hidden + noise + 3 * labels[:, None]).astype(np.float32))
    return parts, labels


def expected_distances(train, labels, films, leading):
    """The same distance, by scikit-learn's principal components of the residuals."""
    depths = []
    for learnt, asked in zip(train, films, strict=True):
        means = np.stack([learnt[labels == k].mean(0, dtype=float) for k in (0, 1)])
        residuals = learnt - means[labels]
        variance = (residuals**2).mean(0)
        scale = np.sqrt(variance + 0.1 * variance.mean())
        pca = PCA(svd_solver="full").fit(residuals / scale)
        # Within classes two means were taken, not the one that PCA allows for.
        variances = pca.explained_variance_ * (len(learnt) - 1) / (len(learnt) - 2)
        by_class = []
        for mean in means:
            along = (asked - mean) / scale @ pca.components_.T
            first = (along[:, :leading] ** 2 / variances[:leading]).mean(1)
            rest = (along[:, leading:] ** 2).mean(1) / variances[leading:].mean()
            by_class.append(0.5 * (np.log(first) + np.log(rest)))
        depths.append(by_class)
    return np.mean(depths, axis=0).min(0)


def test_distances_are_those_of_an_independent_computation(monkeypatch):
    monkeypatch.setattr(feature_statistics, "LEADING", 8)
    (train, labels), (films, _) = features_of(200, 0), features_of(40, 1, shift=0.2)
    found = fit_statistics(train, labels).distances(np.concatenate(films, 1))
    np.testing.assert_allclose(found, expected_distances(train, labels, films, 8), atol=1e-3)


def test_usual_films_lie_near_zero_and_shifted_ones_far():
    train, labels = features_of(400, 0)
    statistics = fit_statistics(train, labels)
    usual = statistics.distances(np.concatenate(features_of(200, 1)[0], 1))
    shifted = statistics.distances(np.concatenate(features_of(200, 2, shift=0.5)[0], 1))
    assert abs(np.median(usual)) < 0.15
    assert roc_auc_score([0] * 200 + [1] * 200, np.concatenate([usual, shifted])) > 0.99


def test_a_film_of_either_class_is_near():
    train, labels = features_of(400, 0)
    statistics, (films, kinds) = fit_statistics(train, labels), features_of(200, 3)
    distances = statistics.distances(np.concatenate(films, 1))
    assert abs(np.median(distances[kinds == 0]) - np.median(distances[kinds == 1])) < 0.1


def test_statistics_survive_their_file():
    train, labels = features_of(60, 0)
    statistics = fit_statistics(train, labels)
    read = FeatureStatistics.from_bytes(statistics.to_bytes())
    vectors = np.concatenate(train, 1)
    assert read.width == 80 and np.array_equal(read.distances(vectors), statistics.distances(vectors))
    assert read.to_bytes() == statistics.to_bytes()


def test_a_large_network_takes_a_few_megabytes():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(150, width)).astype(np.float32) for width in (576, 2304, 4608)]
    assert len(fit_statistics(parts, np.arange(150) % 2).to_bytes()) < 3e6


def test_channels_that_never_vary_and_classes_without_films_do_no_harm():
    train, _ = features_of(30, 0)
    train[0][:, :4] = 0
    distances = fit_statistics(train, np.ones(30, int)).distances(np.concatenate(train, 1))
    assert np.isfinite(distances).all()


def test_what_cannot_be_fitted_or_read_is_refused():
    train, labels = features_of(5, 0)
    with pytest.raises(BadInput, match="more training films than 5"):
        fit_statistics(train, labels)
    with pytest.raises(ValueError):
        fit_statistics([train[0], train[1][:4]], labels)
    statistics = fit_statistics(*features_of(40, 0))
    with pytest.raises(ValueError, match=r"\(N, 80\)"):
        statistics.distances(np.zeros((2, 79), np.float32))
    for content in (b"", b"nothing", statistics.to_bytes()[:-5]):
        with pytest.raises(IntegrityError, match="no feature statistics"):
            FeatureStatistics.from_bytes(content)


@pytest.mark.filterwarnings("error")
def test_distances_that_are_no_numbers_are_an_error_without_a_warning():
    """Numbers that are finite and above 0, but too small to divide by."""
    statistics = fit_statistics(*features_of(40, 0))
    first, *others = statistics.depths
    tiny = FeatureStatistics([replace(first, scale=first.scale * np.float32(1e-42)), *others])
    read = FeatureStatistics.from_bytes(tiny.to_bytes())
    with pytest.raises(IntegrityError, match=r"distances by statistics\.safetensors are not finite"):
        read.distances(np.ones((2, 80), np.float32))
