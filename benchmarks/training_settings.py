"""What the settings of a training are worth on real films: one changed at a time, on the same patients.

A small ViT or ResNet50 learns from scratch with the settings below, then with one of them changed; every
way is judged by AUC on the same held-out patients after its last epoch, over several seeds. What can only
show with pretrained weights (learning rates by depth) is not among them.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from equal_time import by_patient, unpacked
from torchvision.datasets import ImageFolder

from openmed.concurrency import ordered_map
from openmed.dataset.sampling import resample_rows
from openmed.films.images import decode_squares
from openmed.metrics.classification import auc
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory
from openmed.training.loop import Trainer
from openmed.training.settings import Augmentation, Phase, TrainSettings
from openmed.training.source import Films

NETWORKS = {
    "resnet50": {"name": "resnet50", "rate": 1e-3, "options": {}},
    "vit": {
        "name": "vit_tiny_patch16_224",
        "rate": 1e-3,
        "options": {"patch_size": 8, "depth": 4, "global_pool": "avg", "class_token": False},
    },
}


def main() -> int:
    """Trains each way and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path, help="Zip of class folders, with the patients in the file names.")
    parser.add_argument("--network", choices=NETWORKS, default="vit")
    parser.add_argument("--side", type=int, default=64, help="Side of the films in pixels.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=3, help="Sevenths of the patients to learn from.")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpacked(arguments.films, Path(scratch))
        *films, test = by_patient(folder, 0, 7)
        rows = np.concatenate(films[: arguments.parts])
        listed = ImageFolder(str(folder))
        paths, labels = [path for path, _ in listed.samples], np.array(listed.targets)
        squares = ordered_map(
            lambda path: decode_squares(Path(path).read_bytes(), [arguments.side])[0], paths
        )
        pixels = np.stack(list(squares))
        print(f"{arguments.network} {arguments.side} px, {len(rows)} films, {len(test)} judged, {device}")
        print("| changed | AUC of each seed | mean |\n| --- | --- | --- |")
        for name, settings in _ways(arguments.network, arguments.epochs).items():
            found = [
                _trained(
                    arguments.network,
                    settings,
                    pixels,
                    labels,
                    rows,
                    test,
                    seed,
                    Path(scratch, name, str(seed)),
                )
                for seed in range(arguments.seeds)
            ]
            each = ", ".join(f"{value:.4f}" for value in found)
            print(f"| {name} | {each} | {np.mean(found):.4f} |", flush=True)
    return 0


def build(network: str, side_px: int, seed: int, weights: str = "none") -> BaseModel:
    """Builds one of the networks, on a GPU where there is one."""
    about = NETWORKS[network]
    model = ModelFactory.create(
        network,
        timm_name=about["name"],
        image_size_px=side_px,
        model_options=about["options"],
        weights=weights,
        seed=seed,
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _ways(network: str, epochs: int) -> dict[str, TrainSettings]:
    phase = Phase("finetune", epochs, NETWORKS[network]["rate"], None)
    usual = TrainSettings(
        (phase,), 32, 32, label_smoothing=0.05, patience_epochs=epochs, augmentation=Augmentation()
    )
    return {
        "nothing": usual,
        "no augmentation": replace(usual, augmentation=Augmentation.none()),
        "mirrored too": replace(usual, augmentation=replace(Augmentation(), flip=True)),
        "no label smoothing": replace(usual, label_smoothing=0.0),
        "averaged weights, 0.99": replace(usual, phases=(replace(phase, average_decay=0.99),)),
        "no warm-up": replace(usual, warmup_share=0.0),
        "weight decay 0": replace(usual, weight_decay=0.0),
    }


def _trained(
    network: str,
    settings: TrainSettings,
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    test: np.ndarray,
    seed: int,
    state: Path,
) -> float:
    balanced = rows[resample_rows(labels[rows], "over", seed)]
    model = build(network, pixels.shape[1], seed)
    # A few films for the curve; the last epoch is judged, so they choose nothing.
    few = Films(pixels, rows[::20], labels[rows[::20]])
    trainer = Trainer(
        model, Films(pixels, balanced, labels[balanced]), few, replace(settings, seed=seed), state
    )
    trainer.run()
    scores = trainer.learner.judged.predict(pixels[test])[:, 1]
    return auc(labels[test] == 1, scores.astype(float))


if __name__ == "__main__":
    sys.exit(main())
