"""Means over models and over views of a film, against means computed by hand."""

import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.inference.ensemble import VIEWS, Ensemble, affine_views
from tests.openmed.conftest import small, with_statistics


@pytest.fixture(scope="module")
def members():
    """Three architectures at two input sizes, each with a threshold of its own."""
    models = [small(name, seed=seed) for seed, name in enumerate(("resnet50", "vit", "inceptionv3"))]
    for model in models:
        model.eval().spec = model.spec.with_threshold(0.5)
        model.classifier().weight.data *= 30
    return models


@pytest.fixture
def squares():
    rng = np.random.default_rng(5)
    return {size: rng.integers(0, 256, (3, size, size), dtype=np.uint8) for size in (32, 75)}


def test_an_ensemble_answers_the_mean_of_its_members(members, squares):
    ensemble = Ensemble(members, threshold=0.4)
    assert ensemble.sizes_px == [32, 75]
    parts = [model.predict(squares[model.spec.image_size_px]) for model in members]
    assert np.ptp([part[:, 1] for part in parts], axis=0).max() > 0.01
    found = ensemble.assess(squares)[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (parts[0] + parts[1] + parts[2]) / 3, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_views_are_averaged_for_every_member(members, squares):
    ensemble = Ensemble(members[:2], threshold=0.4, views=True)
    seen = list(affine_views(squares[32]))
    parts = [model.predict(view) for model in members[:2] for view in seen]
    assert len(parts) == 2 * len(VIEWS)
    np.testing.assert_allclose(ensemble.assess(squares)[0], sum(parts) / len(parts), atol=1e-6)
    assert (
        np.abs(ensemble.assess(squares)[0] - Ensemble(members[:2], threshold=0.4).assess(squares)[0]).max()
        > 0
    )


def test_a_single_plain_model_answers_as_it_is(members, squares):
    ensemble = Ensemble(members[:1])
    np.testing.assert_array_equal(ensemble.assess(squares)[0], members[0].predict(squares[32]))
    assert not ensemble.is_mean and ensemble.threshold == 0.5


def test_no_films_give_no_answers(members):
    nothing = {size: np.zeros((0, size, size), np.uint8) for size in (32, 75)}
    assert Ensemble(members, views=True).assess(nothing)[0].shape == (0, 2)


def test_the_first_view_is_the_film_and_the_others_move_it_a_little():
    y, x = np.mgrid[:64, :64]
    film = (np.exp(-((x - 40) ** 2 + (y - 20) ** 2) / 50) * 255).astype(np.uint8)[None]
    views = list(affine_views(film))
    np.testing.assert_array_equal(views[0], film)
    assert len(VIEWS) == len(set(VIEWS)) == 5

    def centre(picture):
        weights = picture[0].astype(float)
        return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum() - 31.5

    for (degrees, zoom), view in zip(VIEWS, views, strict=True):
        assert view.shape == film.shape and view.dtype == np.uint8
        turn = np.deg2rad(degrees)  # the angle counts counter-clockwise while y points down
        matrix = zoom * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        np.testing.assert_allclose(centre(view), matrix @ centre(film), atol=0.15)


def test_no_view_mirrors_the_film():
    film = np.zeros((1, 64, 64), np.uint8)
    film[:, :, 40:] = 200
    assert all(view[0, :, 50].min() > view[0, :, 14].max() for view in affine_views(film))


def test_the_border_is_repeated_outwards():
    assert all((view == 77).all() for view in affine_views(np.full((1, 32, 32), 77, np.uint8)))


@pytest.mark.parametrize("views", [False, True])
def test_a_mean_has_no_threshold_until_it_is_given_one(members, views):
    models = members[:1] if views else members[:2]
    assert Ensemble(models, views=views).threshold is None
    assert Ensemble(models, views=views, threshold=0.3).threshold == 0.3


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(members, threshold):
    with pytest.raises(BadInput, match="between 0 and 1"):
        Ensemble(members, threshold=threshold)


@pytest.mark.parametrize(
    "options",
    [{"class_names": ("PNEUMONIA", "NORMAL")}, {"class_names": ("NORMAL", "COVID"), "positive": "COVID"}],
)
def test_models_of_different_tasks_do_not_answer_together(members, options):
    with pytest.raises(BadInput, match="cannot answer together"):
        Ensemble([members[0], small("vit", **options)])


def test_thresholds_of_further_findings_are_not_those_of_a_mean():
    one, two = small("resnet50").eval(), small("vit").eval()
    one.spec = one.spec.with_threshold(0.4, {"NORMAL": 0.3})
    assert Ensemble([one]).spec.further_thresholds == {"NORMAL": 0.3}
    assert Ensemble([one, two]).spec.further_thresholds == {}
    assert Ensemble([one], views=True).spec.further_thresholds == {}


def test_a_film_is_unlike_when_it_is_to_any_member():
    films = np.random.default_rng(4).integers(0, 256, (12, 32, 32), dtype=np.uint8)
    near = with_statistics(small("resnet50").eval(), films, limit=100.0)
    far = with_statistics(small("vit").eval(), films, limit=-100.0)
    plain = small("resnet50", seed=3).eval()
    asked = {32: films[:3]}
    assert Ensemble([near]).assess(asked)[1] == [None] * 3
    assert all(Ensemble([near, far, plain], views=True).assess(asked)[1])
    assert Ensemble([plain]).assess(asked)[1] is None
    mean = Ensemble([near, far]).assess(asked)[0]
    np.testing.assert_allclose(mean, (near.predict(asked[32]) + far.predict(asked[32])) / 2, atol=1e-6)
