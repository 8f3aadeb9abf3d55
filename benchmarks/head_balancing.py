"""Balancing for the head alone, on real films: none, repeated, dropped, weighted rows, or SMOTE on features.

A small ViT is trained on three sevenths of the patients, so that its features mean something; heads then
learn on the features of three more, balanced in each way, and are judged on the last. Printed are AUC,
sensitivity and specificity at probability 0.5, means over seeds.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from equal_time import SIDE_PX, by_patient, labelled_squares, unpacked
from training_settings import build

from openmed.dataset.sampling import STRATEGIES, resample_rows
from openmed.inference.checkpoint import WEIGHTS_FILE, save_model
from openmed.metrics.classification import auc
from openmed.training.loop import Trainer
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import Films


def main() -> int:
    """Trains the heads and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path, help="Zip of class folders, with the patients in the file names.")
    parser.add_argument("--epochs", type=int, default=6, help="Epochs of the backbone.")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpacked(arguments.films, Path(scratch))
        *films, test = by_patient(folder, 0, 7)
        first, second = np.concatenate(films[:3]), np.concatenate(films[3:])
        pixels, labels = labelled_squares(folder)
        start = _backbone(pixels, labels, first, arguments.epochs, Path(scratch))
        print("| rows of the head | AUC | sensitivity | specificity |\n| --- | --- | --- | --- |")
        for way in (*STRATEGIES, "smote"):
            found = [
                _head(start, way, pixels, labels, second, test, seed, Path(scratch) / f"{way}{seed}")
                for seed in range(arguments.seeds)
            ]
            print(
                f"| {way} | " + " | ".join(f"{value:.3f}" for value in np.mean(found, 0)) + " |", flush=True
            )
    return 0


def _backbone(pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray, epochs: int, scratch: Path) -> Path:
    balanced = rows[resample_rows(labels[rows], "over", 0)]
    settings = TrainSettings((Phase("finetune", epochs, 1e-3, None),), 32, 32, patience_epochs=epochs)
    model, films = build("vit", SIDE_PX, 0), Films(pixels, balanced, labels[balanced])
    Trainer(model, films, Films(pixels, rows[::9], labels[rows[::9]]), settings, scratch / "backbone").run()
    save_model(scratch / "start", model)
    return scratch / "start" / WEIGHTS_FILE


def _head(
    start: Path,
    way: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    test: np.ndarray,
    seed: int,
    state: Path,
) -> tuple[float, float, float]:
    model, smote = build("vit", SIDE_PX, seed, str(start)), way == "smote"
    torch.nn.init.trunc_normal_(model.classifier().weight, std=0.01)
    torch.nn.init.zeros_(model.classifier().bias)
    used = rows[resample_rows(labels[rows], "none" if smote else way, seed)]
    phase = Phase("head", 10, 1e-3, 0, oversampling="smote" if smote else "none")
    settings = TrainSettings((phase,), 32, 32, patience_epochs=10, seed=seed)
    few = Films(pixels, rows[::9], labels[rows[::9]])
    Trainer(model, Films(pixels, used, labels[used]), few, settings, state).run()
    scores, has = model.predict(pixels[test])[:, 1].astype(float), labels[test] == 1
    return auc(has, scores), float((scores[has] >= 0.5).mean()), float((scores[~has] < 0.5).mean())


if __name__ == "__main__":
    sys.exit(main())
