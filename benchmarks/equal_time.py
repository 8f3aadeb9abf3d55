"""Real films, from scratch, on the CPU: our training against a plain loop of the same wall time.

The plain loop is the one that most people write: timm's ResNet50, ImageFolder, sampling weighted by class,
light affine augmentation, AdamW. Ours decodes the same films once and trains with the settings below, as many
epochs as fit into the plain loop's seconds, decoding included. Both are judged by AUC on the same held-out
patients, after their last epoch: none is chosen on them.
"""

import argparse
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openmed.concurrency import ordered_map
from openmed.dataset.sampling import resample_rows
from openmed.films.images import decode_squares
from openmed.intake.identity import patient_of
from openmed.metrics.classification import auc
from openmed.models.factory import ModelFactory
from openmed.training.loop import Trainer
from openmed.training.settings import Augmentation, Phase, TrainSettings
from openmed.training.source import Films

SIDE_PX, BATCH = 96, 32
OUR_BATCH, OUR_RATE, AVERAGE = 32, 1e-3, 0.99


def main() -> int:
    """Trains both ways for the same time and prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path, help="Zip of class folders, with the patients in the file names.")
    parser.add_argument("--epochs", type=int, default=8, help="Epochs of the plain loop.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpacked(arguments.films, Path(scratch))
        *train, test = by_patient(folder, arguments.seed, 7)
        train = np.concatenate(train)
        print(
            f"{len(train)} films to train on, {len(test)} of other patients to judge, {SIDE_PX} px",
            flush=True,
        )
        started = time.perf_counter()
        theirs = _plain_loop(folder, train, test, arguments.epochs)
        seconds = time.perf_counter() - started
        print(f"plain: {arguments.epochs} epochs, {seconds:.0f} s, AUC {theirs:.4f}", flush=True)
        started = time.perf_counter()
        ours, epochs = _our_loop(folder, train, test, seconds, Path(scratch) / "state", arguments.seed)
        spent = time.perf_counter() - started
    print(f"ours: {epochs} epochs, {spent:.0f} s, AUC {ours:.4f}")
    passed = ours > theirs and spent <= seconds
    print(f"equal-time {ours - theirs:+.4f} >0 {'PASS' if passed else 'FAIL'}")
    return int(not passed)


def unpacked(films: Path, scratch: Path) -> Path:
    """Unpacks the films and returns the folder of the classes' folders."""
    with zipfile.ZipFile(films) as archive:
        archive.extractall(scratch)
    return next(folder.parent for folder in sorted(scratch.rglob("NORMAL")) if folder.is_dir())


def by_patient(folder: Path, seed: int, parts: int) -> list[np.ndarray]:
    """Cuts the patients into parts of equal size; returns their films' positions in ImageFolder's list."""
    patients = pd.Series([patient_of(Path(path).name)[0] for path, _ in ImageFolder(str(folder)).samples])
    names = np.random.default_rng(seed).permutation(patients.unique())
    return [np.flatnonzero(patients.isin(some)) for some in np.array_split(names, parts)]


def labelled_squares(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all films: uint8 (n, S, S) and their labels, int64 (n,), in ImageFolder's order."""
    listed = ImageFolder(str(folder))
    paths = [path for path, _ in listed.samples]
    squares = ordered_map(lambda path: decode_squares(Path(path).read_bytes(), [SIDE_PX], path)[0], paths)
    return np.stack(list(squares)), np.array(listed.targets)


def _plain_loop(folder: Path, train: np.ndarray, test: np.ndarray, epochs: int) -> float:
    size, grey = transforms.Resize((SIDE_PX, SIDE_PX)), transforms.Grayscale(3)
    moved = transforms.RandomAffine(7, (0.05, 0.05), (0.9, 1.1))
    norm = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    changed = ImageFolder(str(folder), transforms.Compose([size, grey, moved, transforms.ToTensor(), norm]))
    still = ImageFolder(str(folder), transforms.Compose([size, grey, transforms.ToTensor(), norm]))
    labels = np.array(changed.targets)[train]
    sampler = WeightedRandomSampler((1 / np.bincount(labels))[labels], len(train))
    batches = DataLoader(torch.utils.data.Subset(changed, train), BATCH, sampler=sampler, num_workers=2)
    model = timm.create_model("resnet50", num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for _ in range(epochs):
        model.train()
        for x, y in batches:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        judged = DataLoader(torch.utils.data.Subset(still, test), BATCH)
        scores = np.concatenate([model(x).softmax(1)[:, 1].numpy() for x, _ in judged])
    return auc(np.array(still.targets)[test] == 1, scores.astype(float))


def _our_loop(
    folder: Path, train: np.ndarray, test: np.ndarray, seconds: float, state: Path, seed: int
) -> tuple[float, int]:
    started = time.perf_counter()
    pixels, labels = labelled_squares(folder)
    rows = train[resample_rows(labels[train], "weighted", seed)]
    films = Films(pixels, rows, labels[rows])
    judged = Films(pixels, test[:64], labels[test[:64]])
    model = ModelFactory.create("resnet50", image_size_px=SIDE_PX, seed=seed)
    step = _seconds_of_a_step(model, films, judged, state / "trial", seed)
    # Five in a hundred are kept back for validation passes and what the clock does.
    left = 0.95 * (seconds - (time.perf_counter() - started))
    epochs = max(1, int(left / (step * len(rows) / OUR_BATCH)))
    model = ModelFactory.create("resnet50", image_size_px=SIDE_PX, seed=seed)
    trainer = Trainer(model, films, judged, _settings(epochs, seed), state / "whole")
    trainer.run()
    # The last average, not the epoch that the judged films would choose.
    last = trainer.learner.judged
    scores = last.predict(pixels[test])[:, 1]
    return auc(labels[test] == 1, scores.astype(float)), epochs


def _settings(epochs: int, seed: int) -> TrainSettings:
    return TrainSettings(
        (Phase("finetune", epochs, OUR_RATE, None, average_decay=AVERAGE),),
        OUR_BATCH,
        OUR_BATCH,
        label_smoothing=0.05,
        patience_epochs=epochs,
        augmentation=Augmentation(),
        seed=seed,
    )


def _seconds_of_a_step(model, films: Films, judged: Films, state: Path, seed: int) -> float:
    few = Films(films.pixels, films.rows[: 12 * OUR_BATCH], films.labels[: 12 * OUR_BATCH])
    times: list[float] = []
    Trainer(
        model,
        few,
        judged,
        _settings(1, seed),
        state,
        report=lambda progress: times.append(time.perf_counter()),
    ).run()
    return float(np.median(np.diff(times[:12])))


if __name__ == "__main__":
    sys.exit(main())
