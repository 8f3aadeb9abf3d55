"""Where a training stands, as its state on disk says. Loads no PyTorch: whoever carries states needs none."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

STATE_FILE = "state.safetensors"
BEST_PREFIX = "best-"


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        phase: Index of the phase.
        epoch: Completed epochs of the phase.
        batch: Completed batches of the epoch.
        step: Completed optimiser steps of the phase.
        loss_sum: Sum over this epoch's films of their loss.
        seconds: Seconds spent on this epoch so far.
        stale_epochs: Epochs of the phase since the best result.
        best: The best epoch so far: phase, epoch, validation_auc, validation_loss.
        best_after: Completed epochs of all phases when it was reached.
        history: One row a completed epoch.
        scaler: State of the float16 loss scaler.
        micro_batch_films: Films on the device at once, smaller than the setting after the memory was not
            enough; 0 before the first step.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    stale_epochs: int = 0
    best: dict[str, Any] | None = None
    best_after: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_batch_films: int = 0

    @property
    def best_file(self) -> str:
        """The file with the best weights, in the folder of the state.

        Each best has a name of its own: a kill between the writing of the two files leaves the state that is
        there its own weights, not those of a later phase.
        """
        return f"{BEST_PREFIX}{self.best_after}.safetensors"

    @property
    def order(self) -> tuple[int, int, int]:
        """Grows as the training goes on."""
        return self.phase, self.epoch, self.batch


def read_position(folder: Path) -> tuple[str, Position] | None:
    """Reads of which training a folder holds the state, its fingerprint, and where that stands.

    None where there is no state that could be taken up.
    """
    try:
        with safe_open(Path(folder) / STATE_FILE, framework="numpy") as stream:
            metadata = stream.metadata() or {}
        fingerprint, position = metadata["fingerprint"], Position(**json.loads(metadata["position"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    if position.best and not is_whole(Path(folder) / position.best_file):
        return None
    return fingerprint, position


def is_whole(path: Path) -> bool:
    """Tells whether a safetensors file is there and not cut short."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False
