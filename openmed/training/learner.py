"""What a phase learns with: network, optimiser, averaged weights, and one step of them."""

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from openmed.errors import BadInput, ResourceError
from openmed.models.base import BaseModel
from openmed.models.networks import timm
from openmed.training.parallel import ALONE, Workers, at_least_float32, gradients_kept_apart
from openmed.training.phases import parameter_groups, unfreeze
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import Source
from openmed.training.state import restore_network, restore_optimizer

_FEWEST_FILMS = 2
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Learner:
    """Learns from batches in one phase.

    What learns in the phase is unfrozen here; the workers share each batch.

    Attributes:
        optimizer: AdamW.
        average: The averaged model, if the phase averages.
        scaler: Scales float16 losses; does nothing otherwise.
        micro_batch_films: Films on the device at once: as given, or less after the memory was not enough.
    """

    def __init__(
        self,
        model: BaseModel,
        phase: Phase,
        settings: TrainSettings,
        workers: Workers = ALONE,
        micro_batch_films: int | None = None,
    ) -> None:
        self._model, self._settings, self._workers = model, settings, workers
        self.micro_batch_films = micro_batch_films or settings.micro_batch_films
        self._amp_type = amp_type(model.device, settings.mixed_precision)
        self.scaler = torch.amp.GradScaler(enabled=self._amp_type == torch.float16)
        unfreeze(model, phase.blocks)
        groups = parameter_groups(model, settings.weight_decay, phase.layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, fused=True)
        self.average: timm.utils.ModelEmaV3 | None = None
        # A head alone learns from features: there is nothing worth sharing or averaging.
        self._sharing, self._network, self._fits = ALONE, model, False
        if phase.blocks != 0:
            if phase.average_decay:
                self.average = timm.utils.ModelEmaV3(model, phase.average_decay, use_warmup=True)
            self._sharing, self._network = workers, workers.wrap(model)
            if settings.compile and model.device.type == "cuda":
                self._network = torch.compile(self._network)

    @property
    def judged(self) -> BaseModel:
        """The model that counts: the averaged one if there is one."""
        return self._model if self.average is None else self.average.module

    def restore(self, tensors: dict[str, Tensor], scaler: dict) -> None:
        """Puts a saved state back."""
        restore_optimizer(self.optimizer, tensors)
        if self.average is not None:
            restore_network(self.average.module.network, tensors, "average.")
        if scaler:
            self.scaler.load_state_dict(scaler)

    def step(
        self, source: Source, batch: Tensor, labels: Tensor, rate: float, seed: int, number: int
    ) -> Tensor:
        """One optimiser step, the `number`th of its phase, from 1, on a source's batch and labels int64 (n,).

        `rate` is the learning rate of the head, `seed` that of augmentation and dropout.

        Returns:
            The sum of the films' losses, on the device: to read it at each step would hold the device up.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_share"]
        if self._fits:
            loss_sum = self._accumulate(source, batch, labels, seed)
        else:
            loss_sum = self.within_memory(lambda: self._accumulate(source, batch, labels, seed))
            self._fits = True
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self._model, step=number)
        return loss_sum

    def _accumulate(self, source: Source, batch: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Gives the parameters the batch's gradients, added up over micro-batches."""
        films, share = len(labels), self._sharing.share(len(labels))
        if films < self._sharing.count:
            raise BadInput(
                f"{self._sharing.count} processes cannot share a batch of {films} films: raise batch_films"
            )
        torch.manual_seed(seed)
        self.optimizer.zero_grad(set_to_none=True)
        batch, labels = source.changed(batch, share), labels[share]
        forward, loss_sum = source.forward(self._network), torch.zeros((), device=labels.device)
        parts = nearly_equal(np.arange(len(labels)), self.micro_batch_films)
        for part in parts:
            here = slice(int(part[0]), int(part[-1]) + 1)
            if place := share.start + here.start:
                # A film's dropout hangs on its part of the batch, not on the process that works on it.
                torch.manual_seed(seed + place)
            with gradients_kept_apart(self._network, part is not parts[-1]):
                loss, _ = self.loss(forward, batch[here], labels[here], self._settings.label_smoothing)
                # The processes' gradients are averaged, not added.
                self.scaler.scale(loss * (self._sharing.count / films)).backward()
            loss_sum += loss.detach()
        return self._sharing.sum(loss_sum)

    def loss(
        self, forward: Callable[[Tensor], Tensor], films: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Sum of the films' cross entropies, and their logits (n, classes), float32 or wider."""
        with torch.autocast(films.device.type, self._amp_type, enabled=self._amp_type is not None):
            logits = forward(films)
        logits = at_least_float32(logits)
        return cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing), logits

    def within_memory(self, action: Callable[[], _Result]) -> _Result:
        """Does something with ever smaller micro-batches until the memory is enough.

        Raises:
            ResourceError: It is not enough for two films, or several processes would need to agree.
        """
        while True:
            before = [buffer.clone() for buffer in self._model.buffers()]
            try:
                return action()
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside of the handler, whose traceback holds on to what filled the memory.
            self._halve_micro_batches()
            for buffer, value in zip(self._model.buffers(), before, strict=True):
                buffer.copy_(value)

    def _halve_micro_batches(self) -> None:
        size = self.micro_batch_films
        if size <= _FEWEST_FILMS or self._workers.count > 1:
            raise ResourceError(
                f"the memory is not enough for {size} films at once: "
                "lower micro_batch_films or the image size"
            )
        self.micro_batch_films = max(_FEWEST_FILMS, size // 2)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        _LOG.warning(
            "the memory is not enough for %d films at once: going on with %d", size, self.micro_batch_films
        )


def nearly_equal(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Cuts rows into parts of nearly equal size: batch norm cannot learn from a single film."""
    return np.array_split(rows, math.ceil(len(rows) / most))


def amp_type(device: torch.device, wanted: bool) -> torch.dtype | None:
    """The type of mixed precision: on CUDA bfloat16 where the card has it, else float16; None elsewhere."""
    if device.type != "cuda" or not wanted:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own; the CPU's allocator says it in words."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
