import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from openmed.explain import sanity
from openmed.explain.heatmap import explain
from openmed.explain.sanity import (
    perturbation,
    randomisation,
    rank_correlation,
    reinitialised,
    repetition,
    slightly_changed,
)
from openmed.models.factory import ModelFactory


@pytest.fixture(params=["resnet", "vit"])
def model(request):
    return request.getfixturevalue(request.param)


def test_the_correlation_is_spearmans_of_each_film():
    first, second = np.random.default_rng(0).random((2, 6, 10, 10)).round(1)
    pairs = zip(first, second, strict=True)
    expected = [spearmanr(one.ravel(), other.ravel()).statistic for one, other in pairs]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-12)


def test_the_correlation_looks_at_ranks_alone():
    heat = np.random.default_rng(0).random((3, 7, 7))
    np.testing.assert_allclose(rank_correlation(heat, heat**3), 1)
    np.testing.assert_allclose(rank_correlation(heat, -heat), -1)


def test_a_flat_map_is_like_no_map():
    heat, flat = np.random.default_rng(0).random((3, 7, 7)), np.full((3, 7, 7), 0.5)
    np.testing.assert_array_equal(rank_correlation(heat, flat), 0)
    np.testing.assert_array_equal(rank_correlation(flat, flat), 0)


def test_all_weights_are_drawn_anew_and_the_model_keeps_its_own(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    untrained = reinitialised(model, 1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert not own & {tensor.data_ptr() for tensor in untrained.parameters()}
    weights = dict(untrained.named_parameters())
    assert not [n for n, p in model.named_parameters() if p.ndim > 1 and torch.equal(p, weights[n])]
    assert untrained.spec.explanation_layer == model.spec.explanation_layer


def test_checking_leaves_the_model_as_it_was(model, films):
    model.train()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = explain(model, films, 1)
    randomisation(model, films, maps, 1)
    repetition(model, films, maps, 1)
    perturbation(model, films, maps, 1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("class_index", [0, 1])
def test_a_model_of_the_drawn_weights_has_the_same_map_as_itself(films, class_index):
    """The check finds a map that does not change: here because the weights do not."""
    untrained = ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=64, seed=7)
    torch.nn.init.constant_(untrained.classifier().bias, 3.0)
    maps = explain(untrained, films, class_index)
    # Nothing speaks for the one class, so the head of the drawn network is turned round.
    flat = np.ptp(maps["grad_cam"]) == 0
    assert flat == (class_index == 0)
    same = randomisation(untrained, films, maps, class_index, seed=7, networks=1)
    assert same["grad_cam"] == (0 if flat else pytest.approx(1))
    other = randomisation(untrained, films, maps, class_index, seed=8, networks=1)
    assert other["grad_cam"] < 0.9


def test_no_untrained_network_is_without_a_map(films, monkeypatch):
    """Of twelve some have nothing that speaks for the class; none counts as unlike for that alone."""
    drawn, plain = [], explain
    monkeypatch.setattr(sanity, "rank_correlation", lambda _ours, heat: drawn.append(heat) or np.zeros(1))
    model = ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=64)
    randomisation(model, films, plain(model, films, 1), 1, networks=12)
    assert len(drawn) == 12
    assert min(np.ptp(heat, axis=(1, 2)).min() for heat in drawn) > 0
    first = [plain(reinitialised(model, seed), films, 1)["grad_cam"] for seed in range(12)]
    assert 0 < sum(np.ptp(heat) == 0 for heat in first) < 12


def test_the_same_films_have_the_same_map_in_another_order(model, films):
    assert max(repetition(model, films, explain(model, films, 1), 1).values()) < 1e-3


def test_a_map_of_another_film_is_noticed(model, films):
    maps = explain(model, films, 1)
    shuffled = {method: np.roll(heat, 1, axis=0) for method, heat in maps.items()}
    assert min(repetition(model, films, shuffled, 1).values()) > 0.1
    moved = {method: np.roll(heat, (32, 32), axis=(1, 2)) for method, heat in maps.items()}
    assert max(perturbation(model, films, moved, 1).values()) < 0.5


def test_a_slightly_changed_film_is_one_pixel_aside_under_faint_noise():
    films = np.random.default_rng(0).integers(10, 240, (40, 64, 64), dtype=np.uint8)
    changed = slightly_changed(films, 3)
    assert changed.dtype == np.uint8
    directions = set()
    for film, other in zip(films, changed, strict=True):
        moves = [(1, 0), (-1, 0), (0, 1), (0, -1)]
        noise = [(other.astype(float) - np.roll(film, move, (0, 1)))[1:-1, 1:-1].std() for move in moves]
        assert min(noise) == pytest.approx(1.04, abs=0.1)  # rounding adds 1/12 to the variance
        directions.add(moves[int(np.argmin(noise))])
    assert len(directions) == 4
    np.testing.assert_array_equal(slightly_changed(films, 3), changed)
    assert (slightly_changed(films, 4) != changed).any()


def test_noise_stays_within_the_grey_levels():
    films = np.stack([np.zeros((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)])
    changed = slightly_changed(films)
    assert changed[0].max() < 8
    assert changed[1].min() > 247
