"""params.yaml as frozen, typed settings. Unknown keys and impossible values are refused."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from openmed.errors import BadInput
from pipeline.settings.yaml_file import first_problem, read_mapping, read_settings


def _refuse_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed: true and false would count as 1 and 0")
    return value


Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_refuse_truth_value)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
# NumPy, scikit-learn and PyTorch take no larger one in common.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Task(Section):
    """What is classified: the classes in label order and the finding of interest."""

    classes: tuple[str, ...] = Field(min_length=2)
    positive: str

    @model_validator(mode="after")
    def _known(self) -> "Task":
        if self.positive not in self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("`positive` must be one of `classes`, and these must differ")
        return self


class Run(Section):
    """What makes a run repeatable: seed, CPU threads, device and the processes of a training."""

    seed: Seed
    threads: Positive
    processes: Positive
    device: Literal["auto", "cpu", "cuda"]


class Validate(Section):
    """Limits of the incoming films."""

    max_quarantined_share: Share
    min_side_px: Positive


class DriftLimits(Section):
    """What an interval must exceed as a whole for a shift to be moderate or large."""

    moderate: Annotated[float, Field(ge=0)]
    large: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _ordered(self) -> "DriftLimits":
        if self.moderate > self.large:
            raise ValueError("`moderate` must not be above `large`")
        return self


class Drift(Section):
    """How far new data may lie from those of the champion; see openmed.monitoring.drift."""

    min_added_films: Positive
    replicates: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    limits: dict[
        Literal["class_share", "composition", "intensity", "resolution", "embedding"], DriftLimits
    ] = Field(min_length=5)


class Split(Section):
    """Shares of the patients' films, near-duplicate limit in bits of 256, films allowed under two labels."""

    shares: dict[Literal["train", "validation", "calibration", "test"], Annotated[float, Field(gt=0, lt=1)]]
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)]
    max_conflicting_share: Share

    @model_validator(mode="after")
    def _whole(self) -> "Split":
        if len(self.shares) != 4 or not math.isclose(sum(self.shares.values()), 1, abs_tol=1e-6):
            raise ValueError("`shares` must name train, validation, calibration and test and add up to 1")
        return self


class Preprocess(Section):
    """Side of the square input of each architecture, in pixels."""

    image_size_px: dict[str, Annotated[int, Field(ge=16, le=2048)]]


class Resample(Section):
    """How training rows are balanced."""

    strategy: Literal["over", "under", "weighted", "none"]

    @field_validator("strategy", mode="before")
    @classmethod
    def _no_mixed_films(cls, strategy: Any) -> Any:
        if strategy == "smote":
            raise ValueError(
                "SMOTE mixes the pixels of different patients into films that no patient has: choose over, "
                "under, weighted or none. On the features of the head step it is allowed: set "
                "train.<architecture>.head.oversampling to smote"
            )
        return strategy


class Head(Section):
    """First step: the head on the frozen backbone."""

    epochs: Count
    learning_rate: Annotated[float, Field(gt=0)]
    oversampling: Literal["none", "smote"]


class Finetune(Section):
    """Second step: the backbone's last blocks, or all of them."""

    epochs: Count
    learning_rate: Annotated[float, Field(gt=0)]
    blocks: Literal["all"] | Positive
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    average_decay: Annotated[float, Field(ge=0, lt=1)]


class Augment(Section):
    """Largest random changes of training films; see openmed.training.settings.Augmentation."""

    rotate_degrees: Annotated[float, Field(ge=0, le=45)]
    shift: Share
    scale: Annotated[float, Field(ge=0, le=0.5)]
    aspect: Annotated[float, Field(ge=0, le=0.5)]
    crop: Annotated[float, Field(ge=0, le=0.8)]
    gamma: Annotated[float, Field(ge=0, le=1.5)]
    brightness: Share
    contrast: Annotated[float, Field(ge=0, lt=1)]
    coarse: Annotated[float, Field(ge=0, le=0.9)]
    blur: Annotated[float, Field(ge=0, le=0.05)]
    noise: Annotated[float, Field(ge=0, le=0.3)]
    erase: Annotated[float, Field(ge=0, le=0.5)]
    context: Share
    flip: bool


class Train(Section):
    """Training of one architecture."""

    timm_name: str
    model_options: dict[str, Any]
    weights: str
    weights_sha256: str | None
    batch_films: Annotated[int, Field(ge=2)]
    micro_batch_films: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    warmup_share: Share
    patience_epochs: Positive
    mixed_precision: bool
    activation_checkpointing: bool
    compile: bool
    head: Head
    finetune: Finetune
    augment: Augment


_OF_A_FINDING = {"target_sensitivity", "threshold_confidence", "threshold_of", "target_specificity", "floors"}


class Evaluate(Section):
    """Calibration, operating point, referrals, intervals and the floors that lower bounds must reach."""

    calibration: Literal["platt", "temperature", "isotonic", "none"]
    target_sensitivity: Annotated[float, Field(gt=0, le=1)]
    threshold_confidence: Annotated[float, Field(gt=0.5, lt=1)] | None
    threshold_of: Literal["films", "patients"]
    target_specificity: Annotated[float, Field(gt=0, lt=1)] | None
    abstention_coverage: Annotated[float, Field(gt=0.5, lt=1)] | None
    unlike_share: Annotated[float, Field(gt=0, lt=0.5)] | None
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    replicates: Annotated[int, Field(ge=100)]
    floors: dict[Literal["sensitivity", "specificity", "auc"], Share] = Field(min_length=1)
    # Classes that are looked for beside `task.positive`, each with the entries in which it differs.
    findings: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _possible(self) -> "Evaluate":
        for name, own in self.findings.items():
            if shared := own.keys() - _OF_A_FINDING:
                raise ValueError(f"findings.{name}: {sorted(shared)[0]} is no setting of a single finding")
            try:
                Evaluate.model_validate(self.model_dump(exclude={"findings"}) | own)
            except ValidationError as error:
                raise ValueError(f"findings.{name}: {first_problem(error)}") from None
        return self


class Explain(Section):
    """How many films of each outcome the report shows, and how many the map check uses."""

    examples: Positive
    checked_films: Positive


class Triage(Section):
    """How many films the sheet for reviewers shows."""

    shown_films: Annotated[int, Field(ge=1, le=500)]


class Promotion(Section):
    """How much worse than the champion a challenger may be, on identical films."""

    margins: dict[Literal["auc", "sensitivity", "specificity"], Share]


class Stages(Section):
    """Over how many tasks the work of `validate` and `preprocess` is spread: where it is done, never what."""

    # Airflow takes as many instances of a task (core.max_map_length).
    map_over: Annotated[int, Field(ge=1, le=1024), BeforeValidator(_refuse_truth_value)] = 1


class Params(Section):
    """All settings of the pipeline."""

    task: Task
    run: Run
    architectures: tuple[str, ...] = Field(min_length=1)
    validate_: Validate = Field(alias="validate")
    drift: Drift
    split: Split
    preprocess: Preprocess
    resample: Resample
    train: dict[str, Train]
    evaluate: Evaluate
    explain: Explain
    triage: Triage
    promotion: Promotion
    # Settings of before have none.
    stages: Stages = Stages()

    @model_validator(mode="after")
    def _complete(self) -> "Params":
        for name in self.architectures:
            if name not in self.train or name not in self.preprocess.image_size_px:
                raise ValueError(f"{name!r} needs entries in `train` and in `preprocess.image_size_px`")
        if strange := self.evaluate.findings.keys() - (set(self.task.classes) - {self.task.positive}):
            raise ValueError(
                f"`evaluate.findings` names {', '.join(sorted(strange))}: it takes other classes than "
                f"`task.positive`, of {', '.join(self.task.classes)}"
            )
        return self


def load_stages(path: Path) -> Stages:
    """Reads the section `stages` alone, which the DAG needs; raises as `load_params`."""
    try:
        return Stages.model_validate(read_mapping(path).get("stages", {}))
    except ValidationError as error:
        raise BadInput(f"{path}: stages.{first_problem(error)}") from None


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads the settings.

    Raises:
        BadInput: The file is missing, is not YAML, or holds an unknown key or impossible value.
    """
    return read_settings(Params, path, missing="run this in the project's folder")
