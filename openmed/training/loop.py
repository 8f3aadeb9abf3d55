"""Staged fine-tuning: the head on a frozen backbone, then the backbone's last blocks or all of it."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from openmed.errors import OpenMedError, ResourceError
from openmed.files import atomic_path
from openmed.metrics.classification import auc
from openmed.models.base import BaseModel, evaluation_mode
from openmed.training.parallel import ALONE, Workers, gradients_kept_apart
from openmed.training.phases import frozen, learning_rate_share, parameter_groups, unfreeze
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import FeatureSource, Films, FilmSource, Source
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
_FEWEST_FILMS = 2
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class TrainingDiverged(OpenMedError):
    """The loss became infinite or not a number."""


class TrainingStopped(OpenMedError):
    """The training was asked to stop and has saved its state."""

    exit_code = 143


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
        workers: The processes that share the training; each makes a trainer of the same arguments, and
            all see the same state folder.
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
        workers: Workers = ALONE,
        report: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.train, self.validation, self.settings = model, train, validation, settings
        self.folder, self.report, self.should_stop = Path(state_folder), report, should_stop
        self.workers = workers
        self.fingerprint = _fingerprint(model, train, validation, settings, f"{fingerprint} {workers.count}")
        self.position = Position()
        self.optimizer: torch.optim.Optimizer | None = None
        self.average: ModelEmaV3 | None = None
        self.amp_type = _amp_type(model.device, settings.mixed_precision)
        self.scaler = torch.amp.GradScaler(enabled=self.amp_type == torch.float16)
        # What the steps run, which of the processes share a batch, and whether its memory was enough.
        self._learner: nn.Module = model
        self._sharing, self._fits = ALONE, False
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=model.device)
        self._saved_at = time.monotonic()
        if settings.activation_checkpointing:
            model.checkpoint_activations()

    def run(self) -> Position:
        """Trains to the end and returns the history; the model holds the best weights.

        Raises:
            TrainingDiverged: The loss is not finite.
            TrainingStopped: `should_stop` said so; the state is on disk.
            ResourceError: The memory is not enough, whatever the micro-batch.
        """
        tensors = self._resume()
        for index in range(self.position.phase, len(self.settings.phases)):
            if self.position.phase != index:
                self._enter_phase(index)
            self._run_phase(self.settings.phases[index], tensors)
            tensors = None
        if self.position.best:
            self._load_best()
        return self.position

    def _resume(self) -> dict[str, Tensor] | None:
        """Takes up the saved state, if any; returns its tensors."""
        saved = load_state(self.folder, self.fingerprint)
        if saved and saved[0].best and not is_whole(self.folder / BEST_FILE):
            saved = None
        self.workers.agree(json.dumps(asdict(saved[0])) if saved else "nothing")
        if saved is None:
            # Another training's state must never meet the best weights that this one will write.
            if self.workers.leads:
                (self.folder / STATE_FILE).unlink(missing_ok=True)
            return None
        self.position, tensors = saved
        restore_network(self.model.network, tensors)
        self._loss_sum.fill_(self.position.loss_sum)
        return tensors

    def _enter_phase(self, index: int) -> None:
        """Begins a later phase from the best weights so far."""
        best, history = self.position.best, self.position.history
        self.position = Position(phase=index, best=best, history=history)
        if best:
            self._load_best()

    def _load_best(self) -> None:
        self.workers.wait()
        self.model.network.load_state_dict(load_file(self.folder / BEST_FILE))

    def _run_phase(self, phase: Phase, tensors: dict | None) -> None:
        if self._is_over(phase):
            return
        self._prepare(phase, tensors)
        train, validation = self._sources(phase)
        while not self._is_over(phase):
            self._run_epoch(phase, train, validation)

    def _is_over(self, phase: Phase) -> bool:
        stale = self.position.stale_epochs >= self.settings.patience_epochs
        return stale or self.position.epoch >= phase.epochs

    def _prepare(self, phase: Phase, tensors: dict | None) -> None:
        """Makes what the phase learns with, in the saved state if there is one."""
        place, settings = self.position, self.settings
        place.micro_batch_films = place.micro_batch_films or settings.micro_batch_films
        unfreeze(self.model, phase.blocks)
        groups = parameter_groups(self.model, settings.weight_decay, phase.layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, fused=True)
        self.average, self._learner, self._sharing, self._fits = None, self.model, ALONE, False
        if phase.blocks != 0:
            if phase.average_decay:
                self.average = ModelEmaV3(self.model, phase.average_decay, use_warmup=True)
            # A head alone learns from features: there is nothing worth sharing.
            self._sharing, self._learner = self.workers, self.workers.wrap(self.model)
            if settings.compile and self.model.device.type == "cuda":
                self._learner = torch.compile(self._learner)
        if tensors:
            restore_optimizer(self.optimizer, tensors)
            if self.average is not None:
                restore_network(self.average.module.network, tensors, "average.")
            if place.scaler:
                self.scaler.load_state_dict(place.scaler)

    def _sources(self, phase: Phase) -> tuple[Source, Source]:
        both = (self.train, self.validation)
        if phase.blocks != 0:
            train, validation = (FilmSource(self.model, one, self.settings.augmentation) for one in both)
            return train, validation
        train, validation = (self._within_memory(lambda one=one: self._features(one)) for one in both)
        smote = phase.oversampling == "smote"
        return (train.oversampled(self.settings.seed) if smote else train), validation

    def _features(self, films: Films) -> FeatureSource:
        size = self.position.micro_batch_films
        return FeatureSource.of(self.model, films, self.folder, size, self.workers)

    def _run_epoch(self, phase: Phase, train: Source, validation: Source) -> None:
        place, films = self.position, len(train.labels)
        batches = self._batches(films)
        total = len(batches) * phase.epochs
        started = time.monotonic() - place.seconds
        self._set_mode(phase)
        left = batches[place.batch :]
        for batch, content in zip(left, train.stream(left), strict=True):
            self._step(phase, train, batch, content, total)
            place.batch += 1
            place.seconds = time.monotonic() - started
            self.report(Progress(phase.name, place.epoch + 1, place.step, total))
            self._save_if_due()
        self._end_epoch(phase, validation, total, films)

    def _step(self, phase: Phase, train: Source, batch: np.ndarray, content: Tensor, total: int) -> None:
        """One optimiser step."""
        place = self.position
        rate = self._rate(phase, place.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_share"]
        labels = torch.from_numpy(train.labels[batch]).to(self.model.device)
        if self._fits:
            loss_sum = self._accumulate(train, content, labels)
        else:
            loss_sum = self._within_memory(lambda: self._accumulate(train, content, labels))
            self._fits = True
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._loss_sum += loss_sum
        place.step += 1
        if self.average is not None:
            self.average.update(self.model, step=place.step)

    def _accumulate(self, train: Source, content: Tensor, labels: Tensor) -> Tensor:
        """Gives the parameters the batch's gradients, added up over micro-batches.

        Returns:
            The sum of the films' losses, on the device: to read it at each step would hold the device up.
        """
        place, films, share = self.position, len(labels), self._sharing.share(len(labels))
        torch.manual_seed(_mix(self.settings.seed, place.phase, place.step))
        self.optimizer.zero_grad(set_to_none=True)
        content, labels = train.changed(content)[share], labels[share]
        forward, loss_sum = train.forward(self._learner), torch.zeros((), device=labels.device)
        parts = _nearly_equal(np.arange(len(labels)), place.micro_batch_films)
        for part in parts:
            here = slice(int(part[0]), int(part[-1]) + 1)
            with gradients_kept_apart(self._learner, part is not parts[-1]):
                loss = self._loss(forward, content[here], labels[here], self.settings.label_smoothing)[0]
                # The processes' gradients are averaged, not added.
                self.scaler.scale(loss * (self._sharing.count / films)).backward()
            loss_sum += loss.detach()
        return self._sharing.sum(loss_sum)

    def _loss(
        self, forward: Callable[[Tensor], Tensor], content: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Sum of the films' losses, and their logits (n, classes)."""
        with torch.autocast(self.model.device.type, self.amp_type, enabled=self.amp_type is not None):
            logits = forward(content)
        logits = logits.float()
        return cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing), logits

    def _rate(self, phase: Phase, step: int, total_steps: int) -> float:
        return phase.learning_rate * learning_rate_share(step, total_steps, self.settings.warmup_share)

    def _within_memory(self, action: Callable[[], _Result]) -> _Result:
        """Does something with ever smaller micro-batches until the memory is enough."""
        while True:
            before = [buffer.clone() for buffer in self.model.buffers()]
            try:
                return action()
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside of the handler, whose traceback holds on to what filled the memory.
            self._halve_micro_batches()
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(value)

    def _halve_micro_batches(self) -> None:
        size = self.position.micro_batch_films
        if size <= _FEWEST_FILMS or self.workers.count > 1:
            raise ResourceError(
                f"the memory is not enough for {size} films at once: "
                "lower micro_batch_films or the image size"
            )
        smaller = self.position.micro_batch_films = max(_FEWEST_FILMS, size // 2)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        _LOG.warning("the memory is not enough for %d films at once: going on with %d", size, smaller)

    def _end_epoch(self, phase: Phase, validation: Source, total: int, films: int) -> None:
        place = self.position
        self._settle()
        auc, loss = self._validate(validation)
        row = {
            "phase": phase.name,
            "epoch": place.epoch + 1,
            "train_loss": place.loss_sum / films,
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
            self._save_best()
        place.epoch, place.batch, place.seconds = place.epoch + 1, 0, 0.0
        self._loss_sum.zero_()
        self._save()
        self.report(Progress(phase.name, place.epoch, place.step, total, row))
        self._stop_if_asked()

    def _settle(self) -> None:
        """Reads the loss off the device."""
        place = self.position
        place.loss_sum = self._loss_sum.item()
        if not math.isfinite(place.loss_sum):
            phase = self.settings.phases[place.phase].name
            raise TrainingDiverged(
                f"the loss is not finite in epoch {place.epoch + 1} of {phase}: lower its learning rate"
            )

    def _judged(self) -> BaseModel:
        return self.model if self.average is None else self.average.module

    @torch.inference_mode()
    def _validate(self, validation: Source) -> tuple[float, float]:
        """AUC of the validation films (macro one-versus-rest beyond two classes) and mean loss."""
        model, labels = self._judged(), validation.labels
        share = np.arange(len(labels))[self.workers.share(len(labels))]
        scores = torch.zeros((len(labels), len(model.spec.class_names)), dtype=torch.float64)
        parts = _nearly_equal(share, self.position.micro_batch_films) if len(share) else []
        forward, loss = validation.forward(model), torch.zeros((), dtype=torch.float64)
        with evaluation_mode(model):
            for part, content in zip(parts, validation.stream(parts), strict=True):
                part_labels = torch.from_numpy(labels[part]).to(model.device)
                part_loss, logits = self._loss(forward, content, part_labels, 0.0)
                scores[part], loss = logits.double().softmax(1).cpu(), loss + part_loss.cpu()
        values = self.workers.sum(torch.cat([scores.flatten(), loss[None]]).to(model.device)).cpu().numpy()
        if not np.isfinite(values).all():
            raise TrainingDiverged("the validation predictions are not finite: lower the learning rate")
        return _macro_auc(labels, values[:-1].reshape(scores.shape)), float(values[-1]) / len(labels)

    def _batches(self, films: int) -> list[np.ndarray]:
        """The epoch's order, cut into batches."""
        seed = [self.settings.seed, self.position.phase, self.position.epoch]
        return _nearly_equal(np.random.default_rng(seed).permutation(films), self.settings.batch_films)

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
        if self.workers.any(self.should_stop(), self.model.device):
            self._save()
            raise TrainingStopped("the training was stopped; it continues from here when it is run again")

    def _save(self) -> None:
        self._settle()
        self._saved_at = time.monotonic()
        self.position.scaler = self.scaler.state_dict()
        if self.workers.leads:
            average = None if self.average is None else self.average.module.network
            save_state(
                self.folder, self.fingerprint, self.position, self.model.network, self.optimizer, average
            )

    def _save_best(self) -> None:
        if self.workers.leads:
            state = self._judged().network.state_dict().items()
            with atomic_path(self.folder / BEST_FILE) as temporary:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state}, temporary)


def _nearly_equal(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Cuts rows into parts of nearly equal size: batch norm cannot learn from a single film."""
    return np.array_split(rows, math.ceil(len(rows) / most))


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own; the CPU's allocator says it in words."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
