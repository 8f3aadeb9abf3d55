import dataclasses

import numpy as np
import pytest
import torch

from openmed.explain.checks import check_maps, judge
from openmed.explain.faithfulness import Curves, DeletionDrop
from openmed.models.factory import ModelFactory

SHARES = np.linspace(0, 1, 5)
FINE_DROP = DeletionDrop(1.5, 0.2, 12, 0.001, True, "hiding the hottest part costs more confidence")
FINE = {"randomised_correlation": 0.1, "repeat_difference": 0.0, "perturbed_correlation": 0.97}


def curves(deletion=-1.0, insertion=1.0, films=12):
    """Curves whose map lies by that much beside the control, more or less."""
    control = np.random.default_rng(0).normal(size=(films, len(SHARES)))
    beside = np.random.default_rng(1).uniform(0.5, 1.5, (films, 1))
    return Curves(SHARES, control + deletion * beside, control, control + insertion * beside, control)


def test_a_map_that_passes_every_check_is_trusted():
    found = judge(FINE_DROP, curves(), **FINE)
    assert found.trusted
    assert found.failed == ()
    assert "12 films" in found.reason
    assert found.deletion_area < found.random_deletion_area
    assert found.deletion_p_value == found.insertion_p_value == pytest.approx(2**-12)


BAD_DROP = dataclasses.replace(FINE_DROP, trusted=False, reason="hiding the hottest part costs no confidence")


@pytest.mark.parametrize(
    ("name", "planted", "words"),
    [
        ("hottest_part", {"drop": BAD_DROP}, "costs no confidence"),
        ("deletion", {"curves": curves(deletion=0.5)}, "hiding more and more"),
        ("insertion", {"curves": curves(insertion=-0.5)}, "showing more and more"),
        ("randomisation", {"randomised_correlation": 0.51}, "learned nothing"),
        ("repetition", {"repeat_difference": 0.0011}, "second time"),
        ("perturbation", {"perturbed_correlation": 0.69}, "looks the same"),
        ("deletion", {"curves": curves(deletion=0.0)}, "hiding more and more"),
        ("randomisation", {"randomised_correlation": float("nan")}, "learned nothing"),
        ("repetition", {"repeat_difference": float("nan")}, "second time"),
        ("perturbation", {"perturbed_correlation": float("nan")}, "looks the same"),
    ],
)
def test_one_failed_check_is_enough_not_to_trust_a_map(name, planted, words):
    found = judge(**({"drop": FINE_DROP, "curves": curves()} | FINE | planted))
    assert not found.trusted
    assert found.failed == (name,)
    assert words in found.reason


def test_every_failure_is_told():
    found = judge(BAD_DROP, curves(1.0, -1.0), 0.9, 0.5, 0.1)
    assert len(found.failed) == 6
    assert found.reason.count("; ") == 5


def spots(count, seed):
    """Grey noise; every second film has a bright spot somewhere."""
    rng = np.random.default_rng(seed)
    films = rng.integers(60, 120, (count, 32, 32), dtype=np.uint8)
    labels = np.arange(count) % 2
    for index in np.flatnonzero(labels):
        y, x = rng.integers(2, 22, 2)
        films[index, y : y + 8, x : x + 8] = rng.integers(200, 250, (8, 8))
    return films, labels


@pytest.fixture(scope="module")
def spotter():
    """A network that learned to find the spots."""
    torch.set_num_threads(1)
    model = ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=32, seed=1).train()
    weights = list(model.parameters())
    for step in range(60):
        films, labels = spots(32, step)
        loss = torch.nn.functional.cross_entropy(model(model.prepare(films)), torch.from_numpy(labels))
        # The sign alone, as torch's optimisers load its compiler, which takes longer than all steps.
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= 2e-3 * gradient.sign()
    films, labels = spots(64, 1000)
    assert ((model.eval().predict(films)[:, 1] > 0.5) == labels).mean() > 0.95
    return model


def test_the_map_of_a_model_that_learned_is_trusted(spotter):
    films, labels = spots(48, 2000)
    found = check_maps(spotter, films[labels == 1], 1)
    assert list(found) == ["grad_cam"]
    assert found["grad_cam"].failed == ()
    assert found["grad_cam"].trusted
    assert found["grad_cam"].films == 24


def test_the_same_checks_refuse_the_other_class(spotter):
    """Nothing on a film with a spot speaks for there being none."""
    films, labels = spots(48, 2000)
    found = check_maps(spotter, films[labels == 1], 0)["grad_cam"]
    assert not found.trusted


def test_the_same_seed_gives_the_same_numbers(spotter):
    films, labels = spots(16, 2000)
    first, again, other = (check_maps(spotter, films[labels == 1], 1, seed) for seed in (3, 3, 4))
    assert first == again
    assert first["grad_cam"].randomised_correlation != other["grad_cam"].randomised_correlation


@pytest.mark.parametrize("count", [0, 7])
def test_fewer_than_eight_films_are_never_enough(vit, count):
    films = np.zeros((count, 64, 64), np.uint8)
    found = check_maps(vit, films, 1)
    assert list(found) == ["gradient_attention", "rollout"]
    for one in found.values():
        assert not one.trusted
        assert one.films == count
        assert "too few" in one.reason
        assert len(one.failed) == 6


def test_a_model_that_learned_nothing_has_no_trusted_map(vit):
    films = np.random.default_rng(1).integers(0, 256, (8, 64, 64), dtype=np.uint8)
    found = check_maps(vit, films, 1)
    assert not any(one.trusted for one in found.values())
    assert all(np.isfinite(one.randomised_correlation) for one in found.values())
