"""C4: our training loop with reports, checkpoints and the best epoch kept, against a bare loop.

Both start from the same weights, see the same batches with the same augmentation and validate after every
epoch; the losses must agree.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from c3_head_step import build, films
from pairs import ratios, verdict
from torch.nn.functional import cross_entropy

from openmed.metrics.classification import auc
from openmed.training.augment import augment
from openmed.training.loop import Trainer, step_seed
from openmed.training.phases import learning_rate_share
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import Films

EPOCHS, BATCH, RATE = 2, 32, 3e-4
SETTINGS = TrainSettings((Phase("finetune", EPOCHS, RATE, None),), BATCH, BATCH, label_smoothing=0.05)


def main() -> int:
    """Draws films, measures both ways and prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=320)
    parser.add_argument("--side", type=int, default=96, help="Side of the films in pixels.")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train, validation = (films(n, arguments.side, seed) for n, seed in ((arguments.films, 0), (64, 1)))
    losses: dict[str, list[float]] = {"theirs": [], "ours": []}
    print(f"resnet50, {len(train)} and {len(validation)} films of {arguments.side} px, {EPOCHS} epochs")
    found = ratios(
        lambda: losses["theirs"].append(_bare_loop(train, validation)),
        lambda: losses["ours"].append(_our_loop(train, validation)),
    )
    apart = np.abs(np.subtract(losses["theirs"], losses["ours"])).max()
    print(f"mean loss of the last epoch {losses['ours'][0]:.4f}, at most {apart:.4f} apart")
    assert apart <= 0.01, "the two ways end with other losses"
    # The ratio of the goal is ours to theirs.
    return int(not verdict("C4", [1 / ratio for ratio in found], 1.05, at_least=False))


def _our_loop(train: Films, validation: Films) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model = build(train.pixels.shape[1])
        return Trainer(model, train, validation, SETTINGS, Path(folder)).run().history[-1]["train_loss"]


def _bare_loop(train: Films, validation: Films) -> float:
    model = build(train.pixels.shape[1])
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    decay = SETTINGS.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    steps = -(-len(train) // BATCH)
    for epoch in range(EPOCHS):
        model.train()
        order, loss_sum = np.random.default_rng([SETTINGS.seed, 0, epoch]).permutation(len(train)), 0.0
        for number, batch in enumerate(np.array_split(order, steps), epoch * steps):
            torch.manual_seed(step_seed(SETTINGS.seed, 0, number))
            changed = augment(torch.from_numpy(train.pixels[batch]), SETTINGS.augmentation)
            logits = model(model.prepare(changed))
            labels = torch.from_numpy(train.labels[batch])
            loss = cross_entropy(logits, labels, label_smoothing=SETTINGS.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rate = RATE * learning_rate_share(number, EPOCHS * steps, SETTINGS.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            loss_sum += loss.item() * len(batch)
        model.eval()
        auc(validation.labels == 1, model.predict(validation.pixels)[:, 1].astype(float))
    return loss_sum / len(train)


if __name__ == "__main__":
    sys.exit(main())
