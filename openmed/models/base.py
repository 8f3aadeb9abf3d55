"""The common face of the three architectures."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openmed.errors import BadInput
from openmed.fitted.feature_statistics import FeatureStatistics
from openmed.fitted.spec import ModelSpec
from openmed.models.networks import timm
from openmed.models.pooling import profile

Outputs = tuple[NDArray[np.float32], NDArray[np.float64] | None]
"""Numbers of films, (N, classes), and how far the films lie from the known, (N,), None without statistics."""
# A heat map of fewer cells than this a side cannot say which part of a lung it means.
_MIN_MAP_CELLS = 6


class BaseModel(nn.Module, ABC):
    """A classifier that knows its preprocessing, its labels and how it is explained.

    Subclasses say which timm network they are, how the backbone divides into blocks and which
    layer an explanation looks at.

    Attributes:
        spec: Preprocessing, labels, threshold and origin of the weights.
        network: The timm network.
        statistics: Of the films that it learnt from; None where the folder holds none.
    """

    timm_name: ClassVar[str]
    network_type: ClassVar[type[nn.Module]]
    """timm's class of this family; `blocks` and the explanations rely on its layers."""
    image_size_px: ClassVar[int] = 224
    mean: ClassVar[tuple[float, float, float]] = timm.data.IMAGENET_DEFAULT_MEAN
    std: ClassVar[tuple[float, float, float]] = timm.data.IMAGENET_DEFAULT_STD
    fixed_input: ClassVar[bool] = False
    """Whether the network is built for one input size (ViT) or takes any (CNN)."""

    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """How films and weights lie in memory; convolutions take a tenth less time over channels side by side."""

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.network = network.to(memory_format=self.memory_format)
        self.statistics: FeatureStatistics | None = None
        self.register_buffer("_mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def explanation_layer(cls, network: Any, image_size_px: int) -> str:
        """Names the layer of `network` that an explanation looks at.

        The deepest stage of a CNN whose map has at least 6 cells a side at this input size. At the published
        input sizes (224, 299) this is the last stage, as Grad-CAM is usually drawn; small inputs shrink the
        last map to one to three cells, too coarse to point at anything.
        """
        stages = network.feature_info
        readable = [stage for stage in stages if image_size_px / stage["reduction"] >= _MIN_MAP_CELLS]
        return (readable or stages[:1])[-1]["module"]

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Returns the backbone's blocks, from the input to the head."""

    @abstractmethod
    def depths(self) -> list[nn.Module]:
        """Returns the layers whose outputs tell whether a film is like those that were learnt from."""

    def features(self, x: Tensor) -> Tensor:
        """Backbone output: (N, C, h, w) maps of a CNN, (N, tokens, D) of a ViT."""
        return self.network.forward_features(x)

    def head(self, features: Tensor) -> Tensor:
        """Pools features and classifies them: logits (N, classes)."""
        return self.network.forward_head(features)

    def pooled(self, features: Tensor) -> Tensor:
        """Pools features (N, ...) to what the classifier sees, (N, D)."""
        return self.network.forward_head(features, pre_logits=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of normalised input (N, 3, S, S)."""
        return self.head(self.features(x))

    def maps(self, output: Tensor) -> Tensor:
        """Output of one of `depths` as maps (N, C, h, w)."""
        return output

    def described(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of normalised input (N, 3, S, S), and for each of `depths` a film's profile (N, 9 C)."""
        profiles: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            profiles.append(profile(self.maps(output)))

        with ExitStack() as hooks:
            for layer in self.depths():
                hooks.enter_context(layer.register_forward_hook(keep))
            return self(x), profiles

    def checkpoint_activations(self) -> None:
        """Makes the backward pass compute activations again instead of keeping them (Chen et al., 2016).

        BadInput where the network has batch norms, which would see every film twice.
        """
        if any(isinstance(module, _BatchNorm) for module in self.network.modules()):
            raise BadInput(
                f"{self.spec.architecture} has batch norms and cannot checkpoint activations: "
                "lower micro_batch_films instead"
            )
        self.network.set_grad_checkpointing(True)

    def classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.network.get_classifier()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._mean.device

    def prepare(self, films: np.ndarray | Tensor) -> Tensor:
        """Normalises grey films (N, S, S), uint8 in 0..255 or float in 0..1, S being the spec's input size.

        Returns:
            float32 (N, 3, S, S) on the model's device.

        Raises:
            ValueError: The films have another size or type.
        """
        batch = torch.as_tensor(films).to(self.device, non_blocking=True)
        size = self.spec.image_size_px
        if batch.ndim != 3 or batch.shape[1:] != (size, size):
            raise ValueError(f"films must be (N, {size}, {size}), not {tuple(batch.shape)}")
        if batch.dtype == torch.uint8:
            batch = batch.float() / 255
        elif not batch.is_floating_point():
            raise ValueError(f"films must be uint8 or float, not {batch.dtype}")
        channels = (batch[:, None] - self._mean).div_(self._std)
        return channels.contiguous(memory_format=self.memory_format)

    @torch.inference_mode()
    def logits(self, films: np.ndarray | Tensor, *, batch_films: int = 32) -> NDArray[np.float32]:
        """Logits of grey films, uint8 (N, S, S), before any calibration: float32 (N, classes)."""
        with evaluation_mode(self), _exact_convolutions():
            parts = [
                self(self.prepare(films[start : start + batch_films])).float().cpu().numpy()
                for start in range(0, len(films), batch_films)
            ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.spec.class_names)), np.float32)

    def predict(self, films: np.ndarray | Tensor, *, batch_films: int = 32) -> NDArray[np.float32]:
        """Class probabilities of grey films, float32 (N, classes), calibrated as the spec says."""
        return self.spec.probabilities(self.logits(films, batch_films=batch_films))

    @torch.inference_mode()
    def examine(
        self, films: np.ndarray | Tensor, *, batch_films: int = 32
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits of grey films, N > 0, float32 (N, classes), and features of each depth, float32 (N, D)."""
        logits, features = [], []
        with evaluation_mode(self), _exact_convolutions():
            for start in range(0, len(films), batch_films):
                answers, profiles = self.described(self.prepare(films[start : start + batch_films]))
                logits.append(answers.float().cpu().numpy())
                features.append([part.cpu().numpy() for part in profiles])
        return np.concatenate(logits), [np.concatenate(parts) for parts in zip(*features, strict=True)]

    def outputs(self, films: np.ndarray | Tensor, *, batch_films: int = 32) -> Outputs:
        """Logits of grey films, and their distances from the known."""
        if self.statistics is None:
            return self.logits(films, batch_films=batch_films), None
        if not len(films):
            return self.logits(films), np.zeros(0)
        logits, features = self.examine(films, batch_films=batch_films)
        return logits, self.statistics.distances(np.concatenate(features, axis=1))

    def assess(self, films: np.ndarray | Tensor, *, batch_films: int = 32) -> Outputs:
        """Class probabilities of grey films as `predict` gives them, and the distances of `outputs`."""
        logits, distances = self.outputs(films, batch_films=batch_films)
        return self.spec.probabilities(logits), distances


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode for a block and restores each module's own mode after it.

    `model.train()` alone would also wake the batch norms of a frozen backbone.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _exact_convolutions() -> AbstractContextManager:
    """Keeps a card from rounding to TF32, so that it predicts what a CPU predicts (1e-6 apart, not 1e-3)."""
    now = torch.backends.cudnn
    return now.flags(enabled=now.enabled, deterministic=now.deterministic, allow_tf32=False)
