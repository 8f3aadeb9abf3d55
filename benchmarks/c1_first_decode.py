"""C1: the first decoding of large films to 224 px, against torchvision's ImageFolder.

Ours is `decode_squares` over a folder by `ordered_map`, as caches are written. Theirs is the default loader
(PIL, RGB), Resize and Grayscale. Both run on one and the same core: the process is bound to it, OpenCV and
torch get one thread. The films must agree within one grey level on average.

Without an argument the films are phantoms of 1,000 to 2,500 px; with one, those of a folder or .zip, of which
small films (below 1,000 px) are left out.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from pairs import ratios, verdict
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openmed.concurrency import ordered_map
from openmed.films.images import decode_squares
from openmed.intake.readers import folder_files, zip_files
from openmed.phantoms.phantom import draw

SIZE_PX, LEAST_PX = 224, 1000
TARGETS = {"jpeg": 3.5, "png": 1.25}
SIDES_PX = (1000, 1300, 1600, 1900, 2200, 2500)
SHRINK = transforms.Compose([transforms.Resize((SIZE_PX, SIZE_PX)), transforms.Grayscale()])


def main() -> int:
    """Writes films as JPEG and PNG, measures both ways and prints a verdict for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?", help="Folder or .zip of films; phantoms without it.")
    parser.add_argument("--films", type=int, default=24)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    passed = []
    with tempfile.TemporaryDirectory() as scratch:
        films = _films(arguments.source) if arguments.source else _phantoms()
        count = _write(Path(scratch), films, arguments.films)
        for kind, target in TARGETS.items():
            folder = ImageFolder(str(Path(scratch) / kind), SHRINK)
            paths = [Path(path) for path, _ in folder.samples]
            difference = _difference(folder, paths)
            assert difference <= 1, f"the films differ by {difference:.2f} grey levels"
            print(f"{count} films as {kind}, mean difference {difference:.3f} grey levels")
            found = ratios(lambda it=folder: _theirs(it), lambda them=paths: _ours(them))
            passed.append(verdict(f"C1-{kind}", found, target))
    return int(not all(passed))


def _phantoms() -> Iterator[bytes]:
    for index in range(len(SIDES_PX) * 100):
        side = SIDES_PX[index % len(SIDES_PX)]
        film = draw(index, 0, pneumonia=index % 2 == 0, size_px=side).film[: int(side * 0.85)]
        yield cv2.imencode(".jpeg", film, (cv2.IMWRITE_JPEG_QUALITY, 92))[1].tobytes()


def _films(source: Path) -> Iterator[bytes]:
    files = zip_files(source) if source.suffix == ".zip" else folder_files(source)
    for name, reader in files:
        if name.lower().endswith((".jpeg", ".jpg")):
            yield reader()


def _write(folder: Path, films: Iterable[bytes], most: int) -> int:
    """Writes the large films as they are and as PNG, each kind into one class folder."""
    for kind in TARGETS:
        (folder / kind / "films").mkdir(parents=True)
    count = 0
    for content in films:
        film = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if count < most and min(film.shape[:2]) >= LEAST_PX * 0.85:
            (folder / f"jpeg/films/{count:04}.jpeg").write_bytes(content)
            cv2.imwrite(str(folder / f"png/films/{count:04}.png"), film)
            count += 1
        if count == most:
            break
    return count


def _difference(folder: ImageFolder, paths: list[Path]) -> float:
    ours = [decode_squares(path.read_bytes(), [SIZE_PX])[0].astype(int) for path in paths]
    return float(np.mean([np.abs(np.asarray(folder[k][0]) - film).mean() for k, film in enumerate(ours)]))


def _theirs(folder: ImageFolder) -> int:
    return sum(np.asarray(folder[index][0]).size for index in range(len(folder)))


def _ours(paths: list[Path]) -> int:
    squares = ordered_map(lambda path: decode_squares(path.read_bytes(), [SIZE_PX])[0], paths)
    return sum(square.size for square in squares)


if __name__ == "__main__":
    sys.exit(main())
