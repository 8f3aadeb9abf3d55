"""Staged fine-tuning: the head on a frozen backbone, then the backbone's last blocks or all of it."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmed.errors import OpenMedError
from openmed.files import atomic_path
from openmed.metrics.classification import auc
from openmed.models.base import BaseModel, evaluation_mode
from openmed.training.learner import Learner, nearly_equal
from openmed.training.parallel import ALONE, Workers
from openmed.training.phases import frozen, learning_rate_share
from openmed.training.position import BEST_PREFIX, STATE_FILE, Position, is_whole
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import FeatureSource, Films, FilmSource, Source
from openmed.training.state import load_state, restore_network, save_state

# An epoch can be shorter than the writing of a state, to which at most this share of the time shall go.
_LEAST_BETWEEN_SAVES_S, _MOST_SAVING = 60.0, 0.02


class TrainingDiverged(OpenMedError):
    """The loss became infinite or not a number; the same settings would end so again."""

    exit_code = 5


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
        train: Already balanced.
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
        self.learner: Learner  # of the phase that is run
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=model.device)
        self._saved_at, self._saving_took = time.monotonic(), 0.0
        self._unsaved_best: dict[str, Tensor] | None = None
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
                # A later phase begins from the best weights so far.
                before = self.position
                self.position = Position(
                    phase=index, best=before.best, best_after=before.best_after, history=before.history
                )
                self._load_best()
            self._run_phase(self.settings.phases[index], tensors)
            tensors = None
        self._load_best()
        return self.position

    def _resume(self) -> dict[str, Tensor] | None:
        """Takes up the saved state, if any; returns its tensors."""
        saved = load_state(self.folder, self.fingerprint)
        if saved and saved[0].best and not is_whole(self.folder / saved[0].best_file):
            saved = None
        self.workers.agree(json.dumps(asdict(saved[0])) if saved else "nothing")
        if saved is None:
            # Another training's state must never meet the best weights that this one will write.
            if self.workers.leads:
                (self.folder / STATE_FILE).unlink(missing_ok=True)
            return None
        self.position, tensors = saved
        if tensors:
            restore_network(self.model.network, tensors)
        self._loss_sum.fill_(self.position.loss_sum)
        return tensors

    def _load_best(self) -> None:
        if self.position.best:
            self.workers.wait()
            self.model.network.load_state_dict(load_file(self.folder / self.position.best_file))

    def _run_phase(self, phase: Phase, tensors: dict | None) -> None:
        if self._is_over(phase):
            return
        position = self.position
        self.learner = Learner(self.model, phase, self.settings, self.workers, position.micro_batch_films)
        if tensors:
            self.learner.restore(tensors, position.scaler)
        train, validation = self._sources(phase)
        # Features are on the disk by now: a kill would lose nothing yet.
        self._saved_at = time.monotonic()
        while not self._is_over(phase):
            self._run_epoch(phase, train, validation)

    def _is_over(self, phase: Phase) -> bool:
        stale = self.position.stale_epochs >= self.settings.patience_epochs
        return stale or self.position.epoch >= phase.epochs

    def _sources(self, phase: Phase) -> tuple[Source, Source]:
        both = (self.train, self.validation)
        if phase.blocks != 0:
            drawn = [FilmSource(self.model, films, self.settings.augmentation) for films in both]
            return drawn[0], drawn[1]
        fixed = [self.learner.within_memory(partial(self._features, films)) for films in both]
        smote = phase.oversampling == "smote"
        return (fixed[0].oversampled(self.settings.seed) if smote else fixed[0]), fixed[1]

    def _features(self, films: Films) -> FeatureSource:
        size = self.learner.micro_batch_films
        return FeatureSource.of(self.model, films, self.folder, size, self.workers)

    def _run_epoch(self, phase: Phase, train: Source, validation: Source) -> None:
        position, films = self.position, len(train.labels)
        batches = self._batches(films)
        total = len(batches) * phase.epochs
        started = time.monotonic() - position.seconds
        self._set_mode(phase)
        left = batches[position.batch :]
        for batch, content in zip(left, train.stream(left), strict=True):
            self._step(phase, train, batch, content, total)
            position.batch += 1
            position.seconds = time.monotonic() - started
            self.report(Progress(phase.name, position.epoch + 1, position.step, total))
            self._save_if_due(math.inf)
            self._stop_if_asked()
        self._end_epoch(phase, validation, total, films)

    def _step(self, phase: Phase, train: Source, batch: np.ndarray, content: Tensor, total: int) -> None:
        position = self.position
        labels = torch.from_numpy(train.labels[batch]).to(self.model.device)
        rate = self._rate(phase, position.step, total)
        seed = step_seed(self.settings.seed, position.phase, position.step)
        position.step += 1
        self._loss_sum += self.learner.step(
            train, content, labels, rate=rate, seed=seed, number=position.step
        )

    def _rate(self, phase: Phase, step: int, total_steps: int) -> float:
        return phase.learning_rate * learning_rate_share(step, total_steps, self.settings.warmup_share)

    def _end_epoch(self, phase: Phase, validation: Source, total: int, films: int) -> None:
        position = self.position
        self._settle()
        auc, loss = self._validate(validation)
        row = {
            "phase": phase.name,
            "epoch": position.epoch + 1,
            "train_loss": position.loss_sum / films,
            "validation_loss": loss,
            "validation_auc": auc,
            "learning_rate": self._rate(phase, position.step - 1, total),
            "seconds": position.seconds,
        }
        position.history.append(row)
        position.stale_epochs += 1
        best = position.best
        if best is None or (auc, -loss) > (best["validation_auc"], -best["validation_loss"]):
            position.best = {key: row[key] for key in ("phase", "epoch", "validation_auc", "validation_loss")}
            position.stale_epochs, position.best_after = 0, len(position.history)
            state = self.learner.judged.network.state_dict()
            # As weights and buffers lie in files.
            self._unsaved_best = {
                name: value.cpu().clone(memory_format=torch.contiguous_format)
                for name, value in state.items()
            }
        position.epoch, position.batch, position.seconds = position.epoch + 1, 0, 0.0
        self._loss_sum.zero_()
        if self._is_over(phase):
            self._save(over=True)
        else:
            self._save_if_due(max(_LEAST_BETWEEN_SAVES_S, self._saving_took / _MOST_SAVING))
        self.report(Progress(phase.name, position.epoch, position.step, total, row))
        self._stop_if_asked()

    def _settle(self) -> None:
        """Reads the loss off the device."""
        position = self.position
        position.loss_sum = self._loss_sum.item()
        if not math.isfinite(position.loss_sum):
            phase = self.settings.phases[position.phase].name
            raise TrainingDiverged(
                f"the loss is not finite in epoch {position.epoch + 1} of {phase}: lower its learning rate"
            )

    @torch.inference_mode()
    def _validate(self, validation: Source) -> tuple[float, float]:
        """AUC of the validation films (macro one-versus-rest beyond two classes) and mean loss."""
        learner, model, labels = self.learner, self.learner.judged, validation.labels
        # Whole parts are shared: what a film gets depends, in its last bit, on how many go with it.
        parts = nearly_equal(np.arange(len(labels)), learner.micro_batch_films)
        parts = parts[self.workers.share(len(parts))]
        scores = torch.zeros((len(labels), len(model.spec.class_names)), dtype=torch.float64)
        forward, loss = validation.forward(model), torch.zeros((), dtype=torch.float64)
        with evaluation_mode(model):
            for part, content in zip(parts, validation.stream(parts), strict=True):
                part_labels = torch.from_numpy(labels[part]).to(model.device)
                part_loss, logits = learner.loss(forward, content, part_labels)
                scores[part], loss = logits.double().softmax(1).cpu(), loss + part_loss.cpu()
        values = self.workers.sum(torch.cat([scores.flatten(), loss[None]]).to(model.device)).cpu().numpy()
        if not np.isfinite(values).all():
            raise TrainingDiverged("the validation predictions are not finite: lower the learning rate")
        judged = values[:-1].reshape(scores.shape)
        areas = [auc(labels == label, judged[:, label]) for label in np.unique(labels)]
        return float(np.mean(areas)), float(values[-1]) / len(labels)

    def _batches(self, films: int) -> list[np.ndarray]:
        """The epoch's order, cut into batches."""
        seed = [self.settings.seed, self.position.phase, self.position.epoch]
        return nearly_equal(np.random.default_rng(seed).permutation(films), self.settings.batch_films)

    def _set_mode(self, phase: Phase) -> None:
        """Training mode for what learns; a frozen block keeps its batch statistics."""
        self.model.train()
        for block in frozen(self.model, phase.blocks):
            block.eval()

    def _save_if_due(self, most_s: float) -> None:
        if time.monotonic() - self._saved_at > min(most_s, self.settings.checkpoint_every_s):
            self._save()

    def _stop_if_asked(self) -> None:
        if self.workers.any(self.should_stop(), self.model.device):
            self._save()
            raise TrainingStopped("the training was stopped; it continues from here when it is run again")

    def _save(self, *, over: bool = False) -> None:
        """Writes the state; of a phase that is over its place alone: what follows starts from the best."""
        self._settle()
        started = time.monotonic()
        position, learner = self.position, self.learner
        position.scaler, position.micro_batch_films = learner.scaler.state_dict(), learner.micro_batch_films
        if self.workers.leads:
            # In this order: what the state calls the best has to be there.
            if self._unsaved_best is not None:
                with atomic_path(self.folder / position.best_file) as temporary:
                    save_file(self._unsaved_best, temporary)
            average = None if learner.average is None else learner.average.module.network
            learning = (None, None, None) if over else (self.model.network, learner.optimizer, average)
            save_state(self.folder, self.fingerprint, position, *learning)
            for file in self.folder.glob(f"{BEST_PREFIX}*"):
                if file.name != position.best_file:
                    file.unlink()
        self._unsaved_best = None
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - started


def step_seed(*numbers: int) -> int:
    """Mixes the seed of a run, a phase and a step into one seed."""
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
