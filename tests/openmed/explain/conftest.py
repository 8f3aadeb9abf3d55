import numpy as np
import pytest
import torch

from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory


def lively(model: BaseModel, seed: int = 0) -> BaseModel:
    """Random weights give nearly constant logits; larger ones give maps worth comparing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.classifier().parameters():
            # Mostly positive, so that something speaks for either class.
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 0.7)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
        for name, parameter in model.named_parameters():
            if ".qkv.weight" in name:
                parameter.mul_(20)
    return model.eval()


@pytest.fixture
def resnet() -> BaseModel:
    return lively(ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=64))


@pytest.fixture
def vit() -> BaseModel:
    return lively(ModelFactory.create("vit", timm_name="test_vit", image_size_px=64))


@pytest.fixture(scope="session")
def inception() -> BaseModel:
    return lively(ModelFactory.create("inceptionv3", image_size_px=96))


@pytest.fixture
def films() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 64, 64), dtype=np.uint8)
