"""Where batches come from: films, or the features that a frozen backbone gave for them once."""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openmed.cache.shards import ShardedFilms
from openmed.dataset.sampling import smote_features
from openmed.models.base import BaseModel, evaluation_mode
from openmed.training.augment import augment
from openmed.training.parallel import ALONE, Workers
from openmed.training.settings import Augmentation

# Of the card's free memory: the rest is for the network, its gradients and its activations.
_RESIDENT_SHARE = 0.3
_READ_FILMS = 1024


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


class FilmSource:
    """Films as uint8 (n, S, S).

    On a CUDA device the whole set stays on the card when it fits; otherwise the next batch is read, and
    copied to the card, while the last one is learnt from.
    """

    def __init__(self, model: BaseModel, films: Films, augmentation: Augmentation) -> None:
        self.labels = films.labels
        self._model, self._films, self._augmentation = model, films, augmentation
        self._resident = _resident(films, model.device)

    def stream(self, parts: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yields the films at the positions, from 0, of each part, uint8 (n, S, S), on the device."""
        if self._resident is not None:
            pixels, places = self._resident
            yield from (pixels[places[torch.from_numpy(part).to(pixels.device)]] for part in parts)
            return
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[Tensor]] = deque()
            for part in parts:
                waiting.append(reader.submit(self._read, part))
                if len(waiting) > 1:
                    yield self._on_device(waiting.popleft().result())
            for last in waiting:
                yield self._on_device(last.result())

    def _on_device(self, batch: Tensor) -> Tensor:
        return batch.to(self._model.device, non_blocking=True)

    def _read(self, part: np.ndarray) -> Tensor:
        batch = torch.from_numpy(self._films.pixels[self._films.rows[part]])
        return batch.pin_memory() if self._model.device.type == "cuda" else batch

    def changed(self, batch: Tensor, share: slice) -> Tensor:
        """Augments a share of a batch as if the whole had been: float32 (n, S, S) in 0..1."""
        return augment(batch, self._augmentation, share)

    def forward(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Returns what normalises films and runs the network: logits (n, classes)."""
        return lambda films: model(self._model.prepare(films))


class FeatureSource:
    """Pooled features float32 (n, D) of films, in memory or mapped from a file."""

    def __init__(self, features: np.ndarray, rows: np.ndarray, labels: np.ndarray, model: BaseModel) -> None:
        self.labels = labels
        self._features, self._rows, self._model = features, rows, model

    @classmethod
    def of(
        cls, model: BaseModel, films: Films, folder: Path, batch_films: int, workers: Workers = ALONE
    ) -> "FeatureSource":
        """Runs the backbone once over the films; a film in several rows only once.

        The features lie in a file without a name in `folder`, so that memory does not grow with the films.

        Each process does its share.
        """
        unique, rows = np.unique(films.rows, return_inverse=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            shape = (len(unique), model.classifier().in_features)
            if hasattr(os, "posix_fallocate"):  # else a full disk would end the process by SIGBUS, unsaid
                os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])
            features = np.memmap(file, np.float32, "w+", shape=shape)
        source = FilmSource(model, Films(films.pixels, unique, unique), Augmentation())
        parts = _parts(np.arange(len(unique)), batch_films)
        parts = parts[workers.share(len(parts))]
        with evaluation_mode(model), torch.inference_mode():
            for part, batch in zip(parts, source.stream(parts), strict=True):
                features[part] = model.pooled(model.features(model.prepare(batch))).float().cpu().numpy()
        for part in _parts(np.arange(len(unique)), _READ_FILMS) if workers.count > 1 else ():
            features[part] = workers.sum(torch.from_numpy(features[part]).to(model.device)).cpu().numpy()
        return cls(features, rows, films.labels, model)

    def oversampled(self, seed: int) -> "FeatureSource":
        """Balances the classes by SMOTE between the features of real films, each taken once."""
        _, first = np.unique(self._rows, return_index=True)
        features, labels = smote_features(np.asarray(self._features), self.labels[first], seed)
        return FeatureSource(features, np.arange(len(labels)), labels, self._model)

    def stream(self, parts: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Yields float32 (n, D)."""
        for part in parts:
            yield torch.from_numpy(self._features[self._rows[part]]).to(self._model.device)

    def changed(self, batch: Tensor, share: slice) -> Tensor:
        """Returns the share as it is: features cannot be augmented."""
        return batch[share]

    def forward(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The classifier alone, of the model that gave the features."""
        return self._model.classifier()


Source = FilmSource | FeatureSource
"""What a phase learns from."""


def _parts(positions: np.ndarray, most: int) -> list[np.ndarray]:
    return [positions[start : start + most] for start in range(0, len(positions), most)]


def _resident(films: Films, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Films on the card and where each row's film is, or None where they do not fit or there is no card."""
    if device.type != "cuda":
        return None
    unique, places = np.unique(films.rows, return_inverse=True)
    size = films.pixels.shape[1]
    free, _ = torch.cuda.mem_get_info(device)
    if len(unique) * size * size > _RESIDENT_SHARE * free:
        return None
    pixels = torch.empty((len(unique), size, size), dtype=torch.uint8, device=device)
    for start in range(0, len(unique), _READ_FILMS):
        part = slice(start, start + _READ_FILMS)
        pixels[part] = torch.from_numpy(films.pixels[unique[part]])
    return pixels, torch.from_numpy(places).to(device)
