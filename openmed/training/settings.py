"""Settings of one training, as plain frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training films that keep the anatomy plausible; 0 turns one off.

    Attributes:
        rotate_degrees: Largest rotation to either side.
        shift: Largest shift to each side, as a share of the film's side.
        scale: Largest change of size, as a share.
        aspect: Largest change of width against height, as a share.
        crop: Largest share of the film's area that is cut away, wherever it lies.
        gamma: Grey levels in 0..1 are raised to a power of e^-gamma to e^gamma.
        brightness: Largest change of brightness, as a share of the grey range.
        contrast: Largest change of contrast about the film's mean, as a share.
        coarse: Largest share of the resolution that is lost: shrunk, and enlarged again.
        blur: Largest standard deviation of a Gaussian blur, as a share of the film's side.
        noise: Largest standard deviation of added normal noise, as a share of the grey range.
        erase: Largest share of the film's area that a grey square hides.
        context: Share of the films whose surroundings of the lungs are taken from another training film of
            any class, with a soft edge: what lies there then tells nothing of the class.
        flip: Whether films may be mirrored left to right, which moves the heart to the other side.
    """

    rotate_degrees: float = 7.0
    shift: float = 0.05
    scale: float = 0.1
    aspect: float = 0.0
    crop: float = 0.0
    gamma: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.15
    coarse: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    erase: float = 0.0
    context: float = 0.0
    flip: bool = False

    @classmethod
    def none(cls) -> "Augmentation":
        """Leaves every film as it is."""
        return cls(rotate_degrees=0, shift=0, scale=0, brightness=0, contrast=0)


@dataclass(frozen=True)
class Phase:
    """One step of the transfer learning.

    Attributes:
        name: head or finetune.
        epochs: Passes over the training rows; 0 skips the phase.
        learning_rate: Peak learning rate.
        blocks: How many of the backbone's last blocks learn: 0 is the head alone, None is all. A head
            alone learns from features that the backbone gave once, without augmentation.
        layer_decay: The learning rate of each block is this share of the next one's, the head having
            the whole (Howard and Ruder, 2018); 1 is the same for all.
        average_decay: Weights are averaged over the steps, each new one counting 1 minus this, more in
            the first steps (Polyak and Juditsky, 1992); the average is what is judged and kept. 0 keeps
            the weights themselves, as a head alone always does.
        oversampling: "smote" balances the features of a head alone by SMOTE instead of repeated rows.
    """

    name: str
    epochs: int
    learning_rate: float
    blocks: int | None
    layer_decay: float = 1.0
    average_decay: float = 0.0
    oversampling: str = "none"


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        phases: The steps, in order.
        batch_films: Films that one optimiser step learns from.
        micro_batch_films: Most films on the device at once; gradients of a batch are accumulated. When
            the memory is not enough it is halved until it is. Batch norms see the parts, not the batch.
        weight_decay: AdamW's decay.
        label_smoothing: Share of the target spread over all classes.
        warmup_share: Share of a phase's steps over which the learning rate rises.
        patience_epochs: Epochs without a better validation result before a phase ends.
        augmentation: Random changes of training films.
        mixed_precision: Use bfloat16, or float16 with loss scaling, on CUDA.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping
            them: less memory, a third more time; not for networks with batch norms.
        compile: Compile the network, on CUDA; worth its minute of start in long trainings.
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
    activation_checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    checkpoint_every_s: float = 300.0
