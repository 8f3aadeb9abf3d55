"""What a model carries besides its weights: preprocessing, labels, calibration, threshold and origin."""

import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.errors import BadInput, IntegrityError
from openmed.films.budgets import MIN_SIDE_PX
from openmed.fitted.abstention import Abstention
from openmed.fitted.calibration import Calibration
from openmed.fitted.novelty import Novelty
from openmed.fitted.stored_numbers import (
    check_fields,
    stored_count,
    stored_list,
    stored_number,
    stored_numbers,
)

_SIZES_PX = (16, 2048)
_LONGEST_TEXT = 200
_LARGEST_OPTION = 10_000  # of layers, channels and the like; more would take any machine's memory


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to rebuild a model and to feed it.

    Attributes:
        architecture: Key of the architecture: resnet50, vit or inceptionv3.
        timm_name: Name of the network in timm.
        model_options: Further arguments of the network, e.g. {"patch_size": 8}.
        image_size_px: Side of the square input in pixels.
        mean: Channel means of the normalisation, for films scaled to 0..1.
        std: Channel standard deviations of the normalisation.
        class_names: Names of the classes; the index is the label.
        positive: The finding that sensitivity and threshold speak of, one of `class_names`; where several are
            looked for, the first.
        explanation_layer: Layer that the explanation looks at.
        weights: Where training started: kind, source, revision and sha256.
        threshold: Films whose probability of `positive` is at least this are flagged (0..1).
            None until an operating point has been chosen on calibration data.
        further_thresholds: The same of each further finding, one of `class_names` against all others.
        calibration: What makes probabilities of the network's logits; None is the plain softmax, as
            a network has it before the evaluate stage and in files of older versions.
        abstention: When a film is referred to a radiologist because no class stands out; None refers none.
        novelty: When a film is referred because it is unlike those that the model learnt from; None, as in
            files of older versions, refers none.
        min_side_px: Films with a shorter side are refused, as the validate stage did with those learnt from.
    """

    architecture: str
    timm_name: str
    image_size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    positive: str
    explanation_layer: str
    model_options: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    further_thresholds: dict[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None
    abstention: Abstention | None = None
    novelty: Novelty | None = None
    min_side_px: int = MIN_SIDE_PX

    def __post_init__(self) -> None:
        self._check_fields()
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise BadInput(f"a model needs two or more different classes, not {list(self.class_names)}")
        if self.positive not in self.class_names:
            raise BadInput(f"the positive class {self.positive!r} is not one of {list(self.class_names)}")
        if strange := self.further_thresholds.keys() - (set(self.class_names) - {self.positive}):
            raise BadInput(f"{sorted(strange)} are no further classes of {list(self.class_names)}")
        if self.calibration and len(self.calibration.prior_correction) != len(self.class_names):
            raise BadInput(f"the calibration is not one of {len(self.class_names)} classes")
        if self.abstention and len(self.abstention.lowest) != len(self.class_names):
            raise BadInput(f"the abstention is not one of {len(self.class_names)} classes")

    def _check_fields(self) -> None:
        """Refuses fields of the wrong type or out of range: the description may come from another house."""
        for name in ("architecture", "timm_name", "positive", "explanation_layer"):
            if not _is_readable(getattr(self, name)):
                raise BadInput(f"{name} must be a text, not {reprlib.repr(getattr(self, name))}")
        for name in ("model_options", "weights", "further_thresholds"):
            if not isinstance(getattr(self, name), dict):
                raise BadInput(f"{name} must be a dictionary, not {reprlib.repr(getattr(self, name))}")
        if not all(map(_is_readable, self.class_names)):
            raise BadInput(f"class_names must be texts, not {reprlib.repr(list(self.class_names))}")
        stored_count(self.image_size_px, "image_size_px", *_SIZES_PX)
        stored_count(self.min_side_px, "min_side_px", 1, 100_000)
        for name, low in (("mean", 0.0), ("std", 0.001)):
            if len(stored_numbers(getattr(self, name), name, low, 1)) != 3:
                raise BadInput(f"{name} must be three numbers, not {reprlib.repr(getattr(self, name))}")
        if self.threshold is not None:
            stored_number(self.threshold, "the threshold", 0, 1)
        for name, point in self.further_thresholds.items():
            stored_number(point, f"the threshold of {reprlib.repr(name)}", 0, 1)
        if self.further_thresholds and self.threshold is None:
            raise BadInput(f"there are further thresholds, but none of {self.positive}")
        for name, option in self.model_options.items():
            _check_option(name, option)

    @property
    def positive_index(self) -> int:
        """Label of the finding of interest."""
        return self.class_names.index(self.positive)

    @property
    def operating_point(self) -> float:
        """The frozen threshold; BadInput while there is none."""
        if self.threshold is None:
            raise BadInput(
                "this model has no frozen threshold yet: use the one that the evaluate stage wrote"
            )
        return self.threshold

    @property
    def findings(self) -> tuple[str, ...]:
        """What is looked for, the first first."""
        return (self.positive, *self.further_thresholds)

    def of_finding(self, name: str) -> "ModelSpec":
        """Returns a copy that speaks of another of its findings; BadInput where it does not look for that."""
        if name not in self.findings:
            raise BadInput(f"the model looks for {', '.join(self.findings)}, not for {name}")
        if name == self.positive:
            return self
        points = {self.positive: self.operating_point, **self.further_thresholds}
        threshold = points.pop(name)
        return replace(self, positive=name, threshold=threshold, further_thresholds=points)

    @property
    def probability_map(self) -> Calibration:
        """What makes probabilities of logits: the calibration, or the plain softmax."""
        return self.calibration or Calibration.of_prior((0.0,) * len(self.class_names))

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float32]:
        """Turns logits (N, classes) into probabilities, float32 (N, classes); rows sum to 1.

        Raises:
            ValueError: The logits are of another number of classes.
            IntegrityError: A logit or a probability is not finite.
        """
        # What is not finite ends in NaN; a warning beside the error would say no more.
        with np.errstate(invalid="ignore", over="ignore"):
            probabilities = self.probability_map.apply(logits).astype(np.float32)
        if not np.isfinite(probabilities).all() or not np.isfinite(np.asarray(logits)).all():
            raise IntegrityError(
                f"the {self.architecture} answers with numbers that are not finite: restore the model, or "
                "train it again"
            )
        return probabilities

    def with_calibration(self, calibration: Calibration) -> "ModelSpec":
        """Returns a copy with a calibration; what was chosen on other probabilities is taken off."""
        return replace(self, calibration=calibration, threshold=None, further_thresholds={}, abstention=None)

    def with_threshold(self, threshold: float, further: Mapping[str, float] | None = None) -> "ModelSpec":
        """Returns a copy with the operating threshold (0..1) frozen in, and those of further findings."""
        points = {name: float(value) for name, value in (further or {}).items()}
        return replace(self, threshold=float(threshold), further_thresholds=points)

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as JSON content."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "ModelSpec":
        """Builds a spec from JSON content; BadInput where a field is missing, unknown, or of another kind."""
        try:
            check_fields(content, cls, "a model description")
            lists = [name for name in ("mean", "std", "class_names") if name in content]
            parts: dict[str, Any] = {name: tuple(stored_list(content[name], name)) for name in lists}
            if content.get("calibration") is not None:
                parts["calibration"] = Calibration.from_json(content["calibration"])
            if content.get("abstention") is not None:
                parts["abstention"] = Abstention.from_json(content["abstention"])
            if content.get("novelty") is not None:
                parts["novelty"] = Novelty.from_json(content["novelty"])
            return cls(**{**content, **parts})
        except (AttributeError, TypeError) as error:
            raise BadInput(f"this is not a model description: {error}") from None


def _is_readable(text: Any) -> bool:
    """Tells whether this is a text to show: short, no half letters, nothing that terminals would obey."""
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_TEXT:
        return False
    return not {unicodedata.category(character) for character in text} & {"Cc", "Cs"}


def _check_option(name: str, option: Any) -> None:
    """Refuses what would make a network too large to build, and what is no plain value."""
    if not _is_readable(name):
        raise BadInput(f"the name of a model option must be a text, not {reprlib.repr(name)}")
    for value in option if isinstance(option, list | tuple) else [option]:
        if isinstance(value, float | int) and not isinstance(value, bool):
            stored_number(value, f"the model option {name}", -_LARGEST_OPTION, _LARGEST_OPTION)
        elif not (isinstance(value, bool | type(None)) or _is_readable(value)):
            raise BadInput(f"the model option {name} must be a plain value, not {reprlib.repr(value)}")
