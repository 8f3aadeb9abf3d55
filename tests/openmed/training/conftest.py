from dataclasses import replace

import numpy as np
import pytest
import torch

from openmed.models.factory import ModelFactory
from openmed.training.loop import Trainer
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import Films

NETWORKS = {"resnet50": "test_resnet", "vit": "test_vit"}
# Two phases of two epochs, five steps an epoch.
SHORT = TrainSettings(
    phases=(Phase("head", 2, 3e-3, 0), Phase("finetune", 2, 3e-3, None)), batch_films=8, micro_batch_films=8
)


def make_films(n=40, classes=2, seed=0):
    """Noise with a bright bar whose height is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    pixels = rng.integers(60, 120, (n, 32, 32)).astype(np.uint8)
    for film, label in zip(pixels, labels, strict=True):
        film[3 + 9 * label : 11 + 9 * label, 6:26] += 90
    return Films(pixels, np.arange(n), labels.astype(np.int64))


@pytest.fixture
def films():
    return make_films


def build_model(architecture, classes=2, **options):
    # Dropout needs random numbers too.
    dropout = {"drop_rate": 0.1} if architecture == "vit" else {}
    return ModelFactory.create(
        architecture,
        timm_name=NETWORKS[architecture],
        image_size_px=32,
        class_names=("NORMAL", "PNEUMONIA", "OTHER")[:classes],
        **{"model_options": dropout, **options},
    )


@pytest.fixture
def make_model():
    return build_model


@pytest.fixture
def trainer(make_model, tmp_path):
    """Makes a trainer of a fresh model; keyword arguments change the settings or the trainer."""

    def make(architecture="vit", folder="state", train=None, validation=None, model=None, **changes):
        options = {
            key: changes.pop(key)
            for key in ("fingerprint", "report", "should_stop", "workers")
            if key in changes
        }
        return Trainer(
            model or make_model(architecture),
            train or make_films(),
            validation or make_films(24, seed=9),
            replace(SHORT, **changes),
            tmp_path / folder,
            **options,
        )

    return make


@pytest.fixture
def weights():
    """Copies all weights and buffers of a network."""
    return lambda model: {name: value.clone() for name, value in model.network.state_dict().items()}


@pytest.fixture
def assert_same():
    """Fails unless two sets of tensors are equal bit for bit."""

    def check(first, second):
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []

    return check
