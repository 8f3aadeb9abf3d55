import numpy as np
import pytest

from openmed.models.factory import ModelFactory


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


@pytest.fixture
def make():
    return small
