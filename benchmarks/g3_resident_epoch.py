"""G3, on a GPU: an epoch with the uint8 films on the card, against ImageFolder with 16 workers.

Both train ResNet50 by the same compiled bfloat16 step, so that only the films' way to it differs. Theirs
decodes, resizes and augments every film again; ours has decoded each once, and augments on the card.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from c2_epoch_input import SETTINGS, SIZE_PX, build_cache, usual_changes, write_films
from g1_training_step import RATE
from pairs import ratios, seconds, verdict
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openmed.models.factory import ModelFactory
from openmed.training.learner import Learner
from openmed.training.settings import Augmentation, Phase, TrainSettings
from openmed.training.source import Films, FilmSource
from pipeline.tools.device import use_repeatable_kernels

WORKERS = 16


def main() -> int:
    """Draws films, measures both ways and prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=4096)
    parser.add_argument("--side", type=int, default=1024, help="Side of the films in pixels.")
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    use_repeatable_kernels()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        write_films(data / "films", arguments.films, arguments.side)
        folder = ImageFolder(str(data / "films"))
        cache, rows = build_cache(Path(scratch), data, [Path(path) for path, _ in folder.samples])
        films = Films(cache.films, rows, np.array(folder.targets))
        model = ModelFactory.create("resnet50").to("cuda")
        ours, theirs = _epochs(model, films, folder, arguments.batch)
        device, cores = torch.cuda.get_device_name(), len(os.sched_getaffinity(0))
        print(f"{device}, {cores} cores, {len(rows)} films of {arguments.side} px to {SIZE_PX} px")
        found = ratios(theirs, ours, pairs=3)
        print(f"ours: {len(rows) / seconds(ours):.0f} films a second")
    return int(not verdict("G3", found, 2.5))


def _epochs(
    model, films: Films, folder: ImageFolder, batch: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    settings = TrainSettings((Phase("finetune", 1, RATE, None),), batch, batch, compile=True)
    learner = Learner(model, settings.phases[0], settings)
    ours, theirs = FilmSource(model, films, SETTINGS), FilmSource(model, films, Augmentation.none())
    labels = torch.from_numpy(films.labels).cuda()
    folder.transform = usual_changes(transforms.PILToTensor())
    loader = DataLoader(folder, batch, shuffle=True, num_workers=WORKERS, pin_memory=True, drop_last=True)

    def train(source: FilmSource, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        model.train()
        for number, (content, those) in enumerate(batches, 1):
            loss = learner.step(source, content, those, rate=RATE, seed=number, number=number)
        assert loss.isfinite()

    def our_epoch() -> None:
        order = np.random.default_rng(0).permutation(len(films))
        parts = [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]
        chosen = (labels[torch.from_numpy(part).cuda()] for part in parts)
        train(ours, zip(ours.stream(parts), chosen, strict=True))

    def their_epoch() -> None:
        there = ((one.cuda(non_blocking=True), those.cuda(non_blocking=True)) for one, those in loader)
        train(theirs, ((one[:, 0], those) for one, those in there))

    return our_epoch, their_epoch


if __name__ == "__main__":
    sys.exit(main())
