"""Staged fine-tuning: the head on a frozen backbone, then the backbone's last blocks or all of it."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

from openmed.data.shards import ShardedFilms
from openmed.errors import OpenMedError
from openmed.files import atomic_path
from openmed.metrics.classification import auc
from openmed.models.base import BaseModel
from openmed.training.augment import augment
from openmed.training.phases import decay_groups, frozen, learning_rate_share, unfreeze
from openmed.training.settings import Phase, TrainSettings
from openmed.training.state import (
    STATE_FILE,
    Position,
    is_whole,
    load_state,
    restore_network,
    restore_optimizer,
    save_state,
)

BEST_FILE = "best.safetensors"


class TrainingDiverged(OpenMedError):
    """The loss became infinite or not a number."""


class TrainingStopped(OpenMedError):
    """The training was asked to stop and has saved its state."""

    exit_code = 143


@dataclass(frozen=True)
class Films:
    """Films of one size with the rows to use.

    Attributes:
        pixels: uint8 (n, S, S): an array, or shards on disk that are indexed like one.
        rows: int64 positions into `pixels`; training rows may repeat.
        labels: int64, one a row.
    """

    pixels: np.ndarray | ShardedFilms
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Progress:
    """What a training reports after every batch and epoch.

    Attributes:
        phase: Name of the phase.
        epoch: Current epoch, from 1.
        batches_done: Batches done in this phase.
        batches: Batches of the whole phase.
        epoch_result: The history row when an epoch has just ended.
    """

    phase: str
    epoch: int
    batches_done: int
    batches: int
    epoch_result: dict[str, Any] | None = None


class Trainer:
    """Trains a model and can be killed at any time.

    Args:
        model: The model, on the device to train on. It ends with the best epoch's weights.
        train: Training films, already balanced.
        validation: Films of other patients, for early stopping.
        settings: How to train.
        state_folder: Where checkpoints go. A training with the same fingerprint resumes from it.
        fingerprint: Names everything the result depends on besides the arguments here.
        report: Called after every batch and epoch.
        should_stop: Asked after every step; on True the state is saved and TrainingStopped raised.
    """

    def __init__(
        self,
        model: BaseModel,
        train: Films,
        validation: Films,
        settings: TrainSettings,
        state_folder: Path,
        *,
        fingerprint: str = "",
        report: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.train, self.validation, self.settings = model, train, validation, settings
        self.folder, self.report, self.should_stop = Path(state_folder), report, should_stop
        self.fingerprint = _fingerprint(model, train, validation, settings, fingerprint)
        self.position = Position()
        self.optimizer: torch.optim.Optimizer | None = None
        self.amp_type = _amp_type(model.device, settings.mixed_precision)
        self.scaler = torch.amp.GradScaler(enabled=self.amp_type == torch.float16)
        self._saved_at = time.monotonic()

    def run(self) -> Position:
        """Trains to the end and returns the history; the model holds the best weights.

        Raises:
            TrainingDiverged: The loss is not finite.
            TrainingStopped: `should_stop` said so; the state is on disk.
        """
        tensors = self._resume()
        for index in range(self.position.phase, len(self.settings.phases)):
            if self.position.phase != index:
                self._enter_phase(index)
            self._run_phase(self.settings.phases[index], tensors)
            tensors = None
        if self.position.best:
            self.model.network.load_state_dict(load_file(self.folder / BEST_FILE))
        return self.position

    def _resume(self) -> dict[str, torch.Tensor] | None:
        """Takes up the saved state, if any; returns its tensors."""
        saved = load_state(self.folder, self.fingerprint)
        if saved is None or (saved[0].best and not is_whole(self.folder / BEST_FILE)):
            # Another training's state must never meet the best weights that this one will write.
            (self.folder / STATE_FILE).unlink(missing_ok=True)
            return None
        self.position, tensors = saved
        restore_network(self.model.network, tensors)
        return tensors

    def _enter_phase(self, index: int) -> None:
        """Begins a later phase from the best weights so far."""
        best, history = self.position.best, self.position.history
        self.position = Position(phase=index, best=best, history=history)
        if best:
            self.model.network.load_state_dict(load_file(self.folder / BEST_FILE))

    def _run_phase(self, phase: Phase, tensors: dict | None) -> None:
        if phase.epochs == 0:
            return
        learning = unfreeze(self.model, phase.blocks)
        self.optimizer = torch.optim.AdamW(
            decay_groups(learning, self.settings.weight_decay), lr=phase.learning_rate
        )
        if tensors:
            restore_optimizer(self.optimizer, tensors)
            if self.position.scaler:
                self.scaler.load_state_dict(self.position.scaler)
        patience = self.settings.patience_epochs
        while self.position.epoch < phase.epochs and self.position.stale_epochs < patience:
            self._run_epoch(phase)

    def _run_epoch(self, phase: Phase) -> None:
        place = self.position
        batches = self._batches(place.phase, place.epoch)
        total = len(batches) * phase.epochs
        started = time.monotonic() - place.seconds
        self._set_mode(phase)
        for batch in batches[place.batch :]:
            self._step(phase, batch, total)
            place.batch += 1
            place.seconds = time.monotonic() - started
            self.report(Progress(phase.name, place.epoch + 1, place.step, total))
            self._save_if_due()
        self._end_epoch(phase, total)

    def _step(self, phase: Phase, batch: np.ndarray, total_steps: int) -> None:
        """One optimiser step, in micro-batches whose gradients add up to the batch's."""
        place, settings = self.position, self.settings
        torch.manual_seed(_mix(settings.seed, place.phase, place.step))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(phase, place.step, total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        for part in _nearly_equal(batch, settings.micro_batch_films):
            loss = self._loss(self.train, part, augmented=True)
            self.scaler.scale(loss / len(batch)).backward()
            loss_sum += loss.item()
        if not math.isfinite(loss_sum):
            raise TrainingDiverged(
                f"the loss is not finite in epoch {place.epoch + 1} of {phase.name}: lower its learning rate"
            )
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        place.loss_sum += loss_sum
        place.step += 1

    def _rate(self, phase: Phase, step: int, total_steps: int) -> float:
        return phase.learning_rate * learning_rate_share(step, total_steps, self.settings.warmup_share)

    def _loss(self, films: Films, part: np.ndarray, *, augmented: bool) -> torch.Tensor:
        """Sum of the films' losses."""
        device = self.model.device
        pixels = torch.from_numpy(films.pixels[films.rows[part]]).to(device)
        labels = torch.from_numpy(films.labels[part]).to(device)
        x = self.model.prepare(augment(pixels, self.settings.augmentation) if augmented else pixels)
        with torch.autocast(device.type, self.amp_type, enabled=self.amp_type is not None):
            logits = self.model(x)
        smoothing = self.settings.label_smoothing if augmented else 0.0
        return cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)

    def _end_epoch(self, phase: Phase, total: int) -> None:
        place = self.position
        auc, loss = self._validate()
        row = {
            "phase": phase.name,
            "epoch": place.epoch + 1,
            "train_loss": place.loss_sum / len(self.train),
            "validation_loss": loss,
            "validation_auc": auc,
            "learning_rate": self._rate(phase, place.step - 1, total),
            "seconds": place.seconds,
        }
        place.history.append(row)
        place.stale_epochs += 1
        best = place.best
        if best is None or (auc, -loss) > (best["validation_auc"], -best["validation_loss"]):
            place.best = {key: row[key] for key in ("phase", "epoch", "validation_auc", "validation_loss")}
            place.stale_epochs = 0
            with atomic_path(self.folder / BEST_FILE) as temporary:
                state = self.model.network.state_dict().items()
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state}, temporary)
        place.epoch, place.batch, place.loss_sum, place.seconds = place.epoch + 1, 0, 0.0, 0.0
        self._save()
        self.report(Progress(phase.name, place.epoch, place.step, total, row))
        self._stop_if_asked()

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        """AUC of the validation films (macro one-versus-rest beyond two classes) and mean loss."""
        self.model.eval()
        films, loss, probabilities = self.validation, 0.0, []
        size = self.settings.micro_batch_films
        for start in range(0, len(films), size):
            part = np.arange(start, min(start + size, len(films)))
            x = self.model.prepare(films.pixels[films.rows[part]])
            with torch.autocast(self.model.device.type, self.amp_type, enabled=self.amp_type is not None):
                logits = self.model(x).float()
            labels = torch.from_numpy(films.labels[part]).to(logits.device)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            probabilities.append(logits.softmax(1).cpu().numpy())
        scores = np.concatenate(probabilities).astype(np.float64)
        if not np.isfinite(scores).all():
            raise TrainingDiverged("the validation predictions are not finite: lower the learning rate")
        return _macro_auc(films.labels, scores), loss / len(films)

    def _batches(self, phase: int, epoch: int) -> list[np.ndarray]:
        """The epoch's order, cut into batches."""
        order = np.random.default_rng([self.settings.seed, phase, epoch]).permutation(len(self.train))
        return _nearly_equal(order, self.settings.batch_films)

    def _set_mode(self, phase: Phase) -> None:
        """Training mode for what learns; a frozen block keeps its batch statistics."""
        self.model.train()
        for block in frozen(self.model, phase.blocks):
            block.eval()

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_at > self.settings.checkpoint_every_s:
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.should_stop():
            self._save()
            raise TrainingStopped("the training was stopped; it continues from here when it is run again")

    def _save(self) -> None:
        self.position.scaler = self.scaler.state_dict()
        save_state(self.folder, self.fingerprint, self.position, self.model.network, self.optimizer)
        self._saved_at = time.monotonic()


def _nearly_equal(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Cuts rows into parts of nearly equal size: batch norm cannot learn from a single film."""
    return np.array_split(rows, math.ceil(len(rows) / most))


def _amp_type(device: torch.device, wanted: bool) -> torch.dtype | None:
    if device.type != "cuda" or not wanted:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _macro_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    present = np.unique(labels)
    return float(np.mean([auc(labels == label, scores[:, label]) for label in present]))


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _fingerprint(
    model: BaseModel, train: Films, validation: Films, settings: TrainSettings, further: str
) -> str:
    digest = hashlib.sha256(further.encode())
    # How often a checkpoint is written does not change the result.
    shown = replace(settings, checkpoint_every_s=0)
    digest.update(json.dumps([asdict(shown), model.spec.to_json(), torch.get_num_threads()]).encode())
    for films in (train, validation):
        digest.update(films.rows.tobytes() + films.labels.tobytes())
    return digest.hexdigest()
