"""G1 and G2, on a GPU: our training step against the loop that most people write.

Ours is `Learner.step` as the pipeline runs it: films as uint8, augmented on the card, bfloat16, channels side
by side, compiled, gradients clipped, repeatable bit for bit. Theirs is timm's network and AdamW on films that
are normalised already, in TF32, without compiling; for G2 also ours without compiling.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
import timm
import torch
from pairs import PAIRS, ratios, seconds, verdict
from torch.nn.functional import cross_entropy

from openmed.models.factory import ModelFactory
from openmed.training.learner import Learner
from openmed.training.settings import Augmentation, Phase, TrainSettings
from openmed.training.source import Films, FilmSource
from pipeline.tools.device import use_repeatable_kernels

SIZE_PX, STEPS, RATE = 224, 20, 1e-3
NAMES = {"resnet50": "resnet50", "vit": "vit_small_patch16_224"}


def main() -> int:
    """Measures both networks and prints the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    batch = parser.parse_args().batch
    torch.set_float32_matmul_precision("high")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, batches of {batch}")
    eager, ours = plain_steps("resnet50", batch), our_steps("resnet50", batch)
    passed = verdict("G1", ratios(eager, ours), 3) & _speed("G1", ours, batch, 3000)
    eager, ours = plain_steps("vit", batch), our_steps("vit", batch)
    passed &= verdict("G2", ratios(eager, ours), 2) & _speed("G2", ours, batch, 5000)
    verdict("G2-bfloat16", ratios(our_steps("vit", batch, compiled=False), ours), 2)
    return int(not passed)


def our_steps(architecture: str, batch: int, *, compiled: bool = True) -> Callable[[], None]:
    """Returns what does 20 steps of our training with a batch of noise."""
    settings = TrainSettings((Phase("finetune", 1, RATE, None),), batch, batch, compile=compiled)
    model = ModelFactory.create(architecture, timm_name=NAMES[architecture]).to("cuda")
    learner = Learner(model, settings.phases[0], settings)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, SIZE_PX, SIZE_PX), np.uint8)
    source = FilmSource(model, Films(pixels, np.arange(batch), np.arange(batch) % 2), Augmentation())
    content, labels = next(source.stream([np.arange(batch)])), torch.from_numpy(source.labels).cuda()

    def run() -> None:
        use_repeatable_kernels()
        model.train()
        for number in range(1, STEPS + 1):
            loss = learner.step(source, content, labels, rate=RATE, seed=number, number=number)
        assert loss.isfinite()

    return run


def plain_steps(architecture: str, batch: int) -> Callable[[], None]:
    """Returns what does 20 steps of a plain loop with a batch of noise."""
    model = timm.create_model(NAMES[architecture], num_classes=2).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    films, labels = torch.randn(batch, 3, SIZE_PX, SIZE_PX, device="cuda"), torch.arange(batch).cuda() % 2

    def run() -> None:
        torch.use_deterministic_algorithms(False)
        model.train()
        for _ in range(STEPS):
            loss = cross_entropy(model(films), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.isfinite()

    return run


def _speed(name: str, ours: Callable[[], None], batch: int, target: float) -> bool:
    images = [STEPS * batch / seconds(ours) for _ in range(PAIRS)]
    return verdict(f"{name}-images-a-second", images, target)


if __name__ == "__main__":
    sys.exit(main())
