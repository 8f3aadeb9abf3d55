"""C2: the input of every later epoch, against ImageFolder and DataLoader with two workers.

Ours reads random batches from the uint8 cache and augments them as production does. Theirs decodes, resizes
and augments film by film, as most training loops do: rotation, shift, scale, brightness, contrast, which is
less. Without augmentation both must give the same films within one grey level on average.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from pairs import ratios, verdict
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openmed.cache.film_cache import FilmCache
from openmed.cache.film_store import FilmStore
from openmed.cache.writing import write_cache
from openmed.files import sha256_file
from openmed.phantoms.phantom import draw
from openmed.training.augment import augment
from openmed.training.settings import Augmentation
from pipeline.settings.params import load_params
from pipeline.stages.train import train_settings

SIZE_PX, BATCH = 224, 32
SETTINGS = train_settings(
    load_params(Path(__file__).parents[1] / "params.production.yaml"), "resnet50"
).augmentation
THEIRS = Augmentation()
DRAWN = 16


def main() -> int:
    """Draws films, measures both ways and prints the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", type=int, default=600)
    parser.add_argument("--side", type=int, default=1024, help="Side of the films in pixels.")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        write_films(data / "films", arguments.films, arguments.side)
        folder = ImageFolder(str(data / "films"))
        cache, rows = build_cache(Path(scratch), data, [Path(path) for path, _ in folder.samples])
        _check(folder, cache, rows)
        print(
            f"{len(rows)} films of {arguments.side} px to {SIZE_PX} px, batches of {BATCH}, with augmentation"
        )
        found = ratios(lambda: _their_epoch(folder), lambda: _our_epoch(cache, rows))
    return int(not verdict("C2", found, 10))


def write_films(folder: Path, films: int, side: int) -> None:
    """Writes different JPEGs in two classes: a few drawn films, each turned round to another column."""
    drawn = [draw(k, k, pneumonia=bool(k % 2), size_px=side).film for k in range(DRAWN)]
    for k in range(films):
        path = folder / ("NORMAL", "PNEUMONIA")[k % 2] / f"{k:05d}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        film = np.roll(drawn[k % DRAWN], k // DRAWN * 5, axis=1)
        cv2.imwrite(str(path), film, (cv2.IMWRITE_JPEG_QUALITY, 88))


def build_cache(scratch: Path, data: Path, paths: list[Path]) -> tuple[FilmCache, np.ndarray]:
    """Decodes the films once; returns the cache and their rows in it."""
    names = [path.relative_to(data).as_posix() for path in paths]
    films = pd.DataFrame({"id": names, "path": names, "sha256": [sha256_file(path) for path in paths]})
    with FilmStore(scratch / "store") as store:
        write_cache(scratch / "cache", data, films, [SIZE_PX], store)
    cache = FilmCache(scratch / "cache", SIZE_PX)
    return cache, cache.rows(names)


def _check(folder: ImageFolder, cache: FilmCache, rows: np.ndarray) -> None:
    """Both ways must give the same films."""
    shrink = transforms.Compose([transforms.Grayscale(), transforms.Resize((SIZE_PX, SIZE_PX))])
    sample = range(0, len(folder), max(1, len(folder) // 40))
    theirs = np.stack([np.asarray(shrink(folder[index][0])) for index in sample]).astype(float)
    difference = np.abs(theirs - cache.films[rows[list(sample)]]).mean()
    assert difference <= 1, f"the films differ by {difference:.2f} grey levels"


def usual_changes(last: Callable) -> transforms.Compose:
    """What most training loops do to each film, with `last` making a tensor of it."""
    return transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize((SIZE_PX, SIZE_PX)),
            transforms.RandomAffine(THEIRS.rotate_degrees, (THEIRS.shift,) * 2, (0.9, 1.1)),
            transforms.ColorJitter(THEIRS.brightness, THEIRS.contrast),
            last,
        ]
    )


def _their_epoch(folder: ImageFolder) -> int:
    folder.transform = usual_changes(transforms.ToTensor())
    return sum(len(films) for films, _ in DataLoader(folder, BATCH, shuffle=True, num_workers=2))


def _our_epoch(cache: FilmCache, rows: np.ndarray) -> int:
    order = np.random.default_rng(0).permutation(rows)
    parts = (order[start : start + BATCH] for start in range(0, len(order), BATCH))
    return sum(len(augment(torch.from_numpy(cache.films[part]), SETTINGS)) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
