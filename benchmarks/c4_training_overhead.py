"""C4: our training loop with reports, checkpoints and the best epoch kept, against a bare loop.

Both start from the same weights, see the same batches with the same augmentation and validate after every
epoch; the losses must agree. They take turns step by step, each on a clock of its own: a machine that is
shared changes its speed by more within a minute than the two differ.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from c3_head_step import build, films
from pairs import PAIRS, seconds, verdict
from torch.nn.functional import cross_entropy

from openmed.metrics.classification import auc
from openmed.training.augment import augment
from openmed.training.loop import Progress, Trainer, step_seed
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
    print(f"resnet50, {len(train)} and {len(validation)} films of {arguments.side} px, {EPOCHS} epochs")
    ratios, apart = zip(*[_pair(train, validation) for _ in range(1 + PAIRS)][1:], strict=True)
    print(f"the mean losses of the last epoch are at most {max(apart):.4f} apart")
    assert max(apart) <= 0.01, "the two ways end with other losses"
    return int(not verdict("C4", list(ratios), 1.05, at_least=False))


def _pair(train: Films, validation: Films) -> tuple[float, float]:
    """Runs both ways, turn by turn: whenever ours reports a step or an epoch, theirs does the same one.

    Returns:
        Our seconds by theirs, and how far apart the mean losses of the last epoch are.
    """
    theirs = _bare_loop(train, validation)
    spent = {"ours": 0.0, "theirs": seconds(lambda: next(theirs))}
    turn = time.perf_counter()

    def their_turn(_: Progress) -> None:
        nonlocal turn
        spent["ours"] += time.perf_counter() - turn
        spent["theirs"] += seconds(lambda: losses.append(next(theirs)))
        turn = time.perf_counter()

    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = build(train.pixels.shape[1])
        trainer = Trainer(model, train, validation, SETTINGS, Path(folder), report=their_turn)
        loss = trainer.run().history[-1]["train_loss"]
    spent["ours"] += time.perf_counter() - turn
    assert next(theirs, None) is None, "the two ways took another number of steps"
    return spent["ours"] / spent["theirs"], abs(loss - losses[-1])


def _bare_loop(train: Films, validation: Films) -> Iterator[float]:
    """Yields once it has begun, after each step and after each epoch; the epoch's mean loss so far."""
    model = build(train.pixels.shape[1])
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    decay = SETTINGS.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    steps = -(-len(train) // BATCH)
    yield math.nan
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
            yield loss_sum / len(train)
        model.eval()
        auc(validation.labels == 1, model.predict(validation.pixels)[:, 1].astype(float))
        yield loss_sum / len(train)


if __name__ == "__main__":
    sys.exit(main())
