"""C3: ten epochs of the head alone on features taken once, against the usual loop through a frozen backbone.

Both start from the same weights, see the same batches in the same order without augmentation, and validate
after every epoch; the AUC must agree within 0.002. Ours also writes its checkpoints.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from pairs import ratios, verdict
from torch.nn.functional import cross_entropy

from openmed.films.images import resize_film
from openmed.metrics.classification import auc
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory
from openmed.phantoms.phantom import draw
from openmed.training.loop import Trainer
from openmed.training.phases import learning_rate_share
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import Films

EPOCHS, BATCH, RATE = 10, 32, 1e-3
SETTINGS = TrainSettings((Phase("head", EPOCHS, RATE, 0),), BATCH, BATCH, patience_epochs=EPOCHS)


def main() -> int:
    """Draws films, measures both ways and prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=800)
    parser.add_argument("--side", type=int, default=96, help="Side of the films in pixels.")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train, validation = (films(n, arguments.side, seed) for n, seed in ((arguments.films, 0), (200, 1)))
    reached: dict[str, list[float]] = {"theirs": [], "ours": []}
    print(f"resnet50, {len(train)} and {len(validation)} films of {arguments.side} px, {EPOCHS} epochs")
    found = ratios(
        lambda: reached["theirs"].append(_usual_loop(train, validation)),
        lambda: reached["ours"].append(_our_loop(train, validation)),
    )
    apart = np.abs(np.subtract(reached["theirs"], reached["ours"])).max()
    print(f"AUC {reached['ours'][0]:.4f}, at most {apart:.4f} apart")
    assert apart <= 0.002, "the two ways end with other AUCs"
    return int(not verdict("C3", found, 8.5))


def films(count: int, side_px: int, seed: int) -> Films:
    """Draws phantoms, half of them with opacities."""
    labels = np.arange(count) % 2
    drawn = [draw(seed * 10_000 + k, k, pneumonia=bool(labels[k]), size_px=160).film for k in range(count)]
    pixels = np.stack([resize_film(film, side_px) for film in drawn])
    return Films(pixels, np.arange(count), labels.astype(np.int64))


def build(side_px: int) -> BaseModel:
    """Builds the network, each time with the same weights."""
    return ModelFactory.create("resnet50", image_size_px=side_px)


def _our_loop(train: Films, validation: Films) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model = build(train.pixels.shape[1])
        history = Trainer(model, train, validation, SETTINGS, Path(folder)).run().history
    return history[-1]["validation_auc"]


def _usual_loop(train: Films, validation: Films) -> float:
    model = build(train.pixels.shape[1]).eval()
    model.network.requires_grad_(False)
    head = model.classifier().requires_grad_(True)
    groups = [
        {"params": [head.weight], "weight_decay": SETTINGS.weight_decay},
        {"params": [head.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    steps = -(-len(train) // BATCH)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([SETTINGS.seed, 0, epoch]).permutation(len(train))
        for number, batch in enumerate(np.array_split(order, steps), epoch * steps):
            rate = RATE * learning_rate_share(number, EPOCHS * steps, SETTINGS.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            logits = model(model.prepare(train.pixels[batch]))
            cross_entropy(logits, torch.from_numpy(train.labels[batch])).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
        last = auc(validation.labels == 1, model.predict(validation.pixels)[:, 1].astype(float))
    return last


if __name__ == "__main__":
    sys.exit(main())
