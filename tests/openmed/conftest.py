from dataclasses import replace

import numpy as np
import pytest
import torch

from openmed.files import sha256_bytes
from openmed.fitted.feature_statistics import fit_statistics
from openmed.fitted.novelty import Novelty
from openmed.models.factory import ModelFactory


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def films():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32), dtype=np.uint8)


def small(architecture, **options):
    """The smallest real network of each architecture."""
    smallest = {
        "resnet50": {"timm_name": "test_resnet", "image_size_px": 32},
        "vit": {"timm_name": "test_vit", "image_size_px": 32},
        "inceptionv3": {"image_size_px": 75},
    }
    return ModelFactory.create(architecture, **{**smallest[architecture], **options})


def with_statistics(model, films, limit=1.0):
    """Gives a model statistics of films, uint8 (N, S, S), and a limit."""
    model.statistics = fit_statistics(model.examine(films)[1], np.arange(len(films)) % 2)
    digest = sha256_bytes(model.statistics.to_bytes())
    model.spec = replace(model.spec, novelty=Novelty(0.02, limit, len(films), digest))
    return model


@pytest.fixture
def make():
    return small
