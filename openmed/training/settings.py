"""Settings of one training, as plain frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training films that keep the anatomy plausible.

    Attributes:
        rotate_degrees: Largest rotation to either side.
        shift: Largest shift to each side, as a share of the film's side.
        scale: Largest change of size, as a share.
        brightness: Largest change of brightness, as a share of the grey range.
        contrast: Largest change of contrast, as a share.
        flip: Whether films may be mirrored left to right, which moves the heart to the other side.
    """

    rotate_degrees: float = 7.0
    shift: float = 0.05
    scale: float = 0.1
    brightness: float = 0.1
    contrast: float = 0.15
    flip: bool = False


@dataclass(frozen=True)
class Phase:
    """One step of the transfer learning.

    Attributes:
        name: head or finetune.
        epochs: Passes over the training rows; 0 skips the phase.
        learning_rate: Peak learning rate.
        blocks: How many of the backbone's last blocks learn: 0 is the head alone, None is all.
    """

    name: str
    epochs: int
    learning_rate: float
    blocks: int | None


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        phases: The steps, in order.
        batch_films: Films that one optimiser step learns from.
        micro_batch_films: Films on the device at once; gradients of a batch are accumulated.
        weight_decay: AdamW's decay.
        label_smoothing: Share of the target spread over all classes.
        warmup_share: Share of a phase's steps over which the learning rate rises.
        patience_epochs: Epochs without a better validation result before a phase ends.
        augmentation: Random changes of training films.
        mixed_precision: Use bfloat16, or float16 with loss scaling, on CUDA.
        seed: Seed of order, augmentation and dropout.
        checkpoint_every_s: Seconds between checkpoints inside an epoch.
    """

    phases: tuple[Phase, ...]
    batch_films: int = 32
    micro_batch_films: int = 32
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    warmup_share: float = 0.1
    patience_epochs: int = 5
    augmentation: Augmentation = Augmentation()
    mixed_precision: bool = True
    seed: int = 0
    checkpoint_every_s: float = 300.0
