"""One place that turns an architecture's name into a model."""

from pathlib import Path
from typing import Any

import torch

from openmed.errors import BadInput
from openmed.fitted.spec import ModelSpec
from openmed.models.base import BaseModel
from openmed.models.inceptionv3 import InceptionV3
from openmed.models.networks import timm
from openmed.models.resnet50 import ResNet50
from openmed.models.vit import ViT
from openmed.models.weights import StartingWeights, find_weights

_ARCHITECTURES: dict[str, type[BaseModel]] = {
    "resnet50": ResNet50,
    "vit": ViT,
    "inceptionv3": InceptionV3,
}
# A spec may come from another house: nothing in it may make timm open a file or a connection.
_SET_ELSEWHERE = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path"),
    *("cache_dir", "num_classes", "img_size", "in_chans", "features_only"),
}


class ModelFactory:
    """Makes models by architecture. A new one is a file beside this and a line above."""

    @staticmethod
    def names() -> tuple[str, ...]:
        """The known architectures."""
        return tuple(_ARCHITECTURES)

    @staticmethod
    def create(
        architecture: str,
        *,
        class_names: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
        positive: str = "PNEUMONIA",
        timm_name: str | None = None,
        image_size_px: int | None = None,
        model_options: dict[str, Any] | None = None,
        weights: str = "none",
        weights_sha256: str | None = None,
        vault: Path | None = None,
        seed: int = 0,
    ) -> BaseModel:
        """Builds a model ready for training.

        The index of a class is its label, `positive` the finding of interest. `timm_name` may be a network of
        the same family, `model_options` are its further arguments; by default network and input size are the
        architecture's own. `weights`, their hash and the vault are those of `find_weights`; `seed` is that of
        random initial weights.

        Raises:
            BadInput: An unknown architecture or network, or weights that do not fit.
            ResourceError, IntegrityError: As `find_weights`.
        """
        family = family_of(architecture)
        name = timm_name or family.timm_name
        size = image_size_px or family.image_size_px
        options = dict(model_options or {})
        start = find_weights(weights, name, weights_sha256, vault=vault)
        start.check_architecture(architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _network(family, name, size, len(class_names), options, start)
            spec = ModelSpec(
                architecture=architecture,
                timm_name=name,
                model_options=options,
                image_size_px=size,
                mean=family.mean,
                std=family.std,
                class_names=tuple(class_names),
                positive=positive,
                explanation_layer=family.explanation_layer(network, size),
                weights=start.to_json(),
            )
            _calm_head(network.get_classifier())
        start.continue_from(network, spec.class_names)
        return family(spec, network)


def family_of(architecture: str) -> type[BaseModel]:
    """Returns the class of an architecture; BadInput where the name is unknown."""
    try:
        return _ARCHITECTURES[architecture]
    except KeyError:
        known = ", ".join(_ARCHITECTURES)
        raise BadInput(f"unknown architecture {architecture!r}: choose one of {known}") from None


def build_empty(spec: ModelSpec) -> BaseModel:
    """Builds the model a spec describes, with random weights, for loading a state into it."""
    family = family_of(spec.architecture)
    options, classes = dict(spec.model_options), len(spec.class_names)
    scratch = StartingWeights("none")
    return family(spec, _network(family, spec.timm_name, spec.image_size_px, classes, options, scratch))


def _calm_head(classifier: torch.nn.Linear) -> None:
    """Starts a new head near zero, so that the first steps do not unlearn a wild guess.

    timm starts InceptionV3's head with logits of several units, a training loss well above that of a coin.
    """
    torch.nn.init.trunc_normal_(classifier.weight, std=0.01)
    torch.nn.init.zeros_(classifier.bias)


def _check_source(name: str, options: dict[str, Any]) -> None:
    """Refuses what would make timm fetch or load something by itself: `weights` alone decides that."""
    if ":" in name or "/" in name:
        raise BadInput(f"{name!r} is not the name of a timm network but an address")
    if refused := sorted(_SET_ELSEWHERE & set(options)):
        raise BadInput(
            f"the model option {refused[0]!r} cannot be set: "
            "classes, input size and weights have settings of their own"
        )


def _network(
    family: type[BaseModel],
    name: str,
    size: int,
    classes: int,
    options: dict[str, Any],
    start: StartingWeights,
) -> torch.nn.Module:
    _check_source(name, options)
    arguments: dict[str, Any] = {"num_classes": classes, **options}
    if family.fixed_input:
        arguments["img_size"] = size
    pretrained = start.path is not None and start.spec is None
    if pretrained:
        # A file of weights as they are; some networks would look for their authors' own format.
        arguments |= {
            "pretrained": True,
            "pretrained_cfg_overlay": {"file": str(start.path), "custom_load": False},
        }
    try:
        network = timm.create_model(name, **arguments)
    except Exception as error:  # options that a network cannot use end in errors of any kind
        raise BadInput(f"timm cannot build {name!r} with {options or 'no options'}: {error}") from None
    if not isinstance(network, family.network_type):
        raise BadInput(f"{name!r} is a {type(network).__name__}, not a {family.network_type.__name__}")
    if pretrained:
        start.check_fits(network)
    return network
