"""C16: how validate and preprocess grow with the films: time a film, memory, and the cost of 1 % new films.

Films are variations of phantoms, drawn by code and packed as imports pack them. Each number of films is
measured in a process of its own, which first loads everything and runs once on a few other films.
"""

import argparse
import csv
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from pairs import verdict

from openmed.archives import pack
from openmed.files import sha256_bytes
from openmed.phantoms.phantom import draw

ROOT = Path(__file__).parents[1]
SIDE_PX, DRAWN = 320, 200
_drawn: list[np.ndarray] = []


def main() -> int:
    """Measures every number of films and prints the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", default="1000,10000,100000")
    parser.add_argument("--folder", type=Path, help="Keep the films here for another run.")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return _measure(arguments.measure)
    numbers = [int(number) for number in arguments.films.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        base = arguments.folder or Path(scratch)
        found = [_grow(base / str(number), number) for number in numbers]
    each = [one["seconds"] / one["films"] for one in found]
    memory = [one["memory_mib"] for one in found]
    passed = [
        verdict("C16-time-per-film", [max(each[1:]) / each[0]], 1.1, at_least=False),
        verdict("C16-memory", [max(memory[1:]) / memory[0]], 1.1, at_least=False),
        verdict("C16-one-percent-new", [max(one["share"] for one in found[1:])], 0.05, at_least=False),
    ]
    return int(not all(passed))


def _grow(project: Path, films: int) -> dict:
    """Measures a full run on `films` films, then one on 1 % more."""
    _write_films(project, films, films // 100)
    rows = list(csv.reader((project / "all.csv").open()))
    shutil.rmtree(project / "home", ignore_errors=True)
    runs = []
    for count in (films, films + films // 100):
        with (project / "data/films.csv").open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows[: count + 1])
        shutil.rmtree(project / "artifacts", ignore_errors=True)
        command = [sys.executable, __file__, "--measure", str(project)]
        environment = {**os.environ, "OPENMED_HOME": str(project / "home"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    full, more = runs
    share = more["seconds"] / full["seconds"]
    print(
        f"{films} films: {full['seconds']:.1f} s, {1000 * full['seconds'] / films:.2f} ms a film, "
        f"peak {full['memory_mib']:.0f} MiB; with {films // 100} new ones {more['seconds']:.1f} s "
        f"({100 * share:.1f} %), peak {more['memory_mib']:.0f} MiB",
        flush=True,
    )
    return full | {"films": films, "share": share}


def _measure(project: Path) -> int:
    """Runs both stages once on other films and then, timed, on the project; prints JSON."""
    from pipeline.settings.params import load_params
    from pipeline.stages import preprocess, validate

    def run(folder: Path) -> float:
        os.chdir(folder)
        params, started = load_params(), time.perf_counter()
        validate.run(params)
        preprocess.run(params)
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as scratch:
        _write_films(Path(scratch), 60)
        (Path(scratch) / "all.csv").rename(Path(scratch) / "data/films.csv")
        home = os.environ["OPENMED_HOME"]
        os.environ["OPENMED_HOME"] = str(Path(scratch) / "home")
        run(Path(scratch))
        os.environ["OPENMED_HOME"] = home
        seconds = run(project)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "memory_mib": peak}))
    return 0


def _write_films(project: Path, films: int, more: int = 0) -> None:
    """Packs films, JPEG and all different, as one import and one addition, and lists them beside the data."""
    if (project / "all.csv").is_file():
        return
    data = project / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name in ("params.yaml", "decisions.csv"):
        shutil.copy(ROOT / name, project)
    drawn = [draw(k, k, pneumonia=k % 4 > 0, size_px=SIDE_PX) for k in range(min(DRAWN, films))]
    with (project / "all.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("path", "label", "patient", "split", "sha256"))
        with multiprocessing.Pool(initializer=_drawn.extend, initargs=([one.film for one in drawn],)) as pool:
            for first, end in ((0, films), (films, films + more)):
                hashes: list[str] = []
                made = _noted(pool.imap(_film, range(first, end), chunksize=200), hashes)
                archives = len(list(data.rglob("*.tar")))
                for number, path in enumerate(pack(data, made, archives), first):
                    label = "PNEUMONIA" if drawn[number % len(drawn)].label else "NORMAL"
                    table.writerow((path, label, f"patient{number // 2}", "", hashes[number - first]))


def _noted(films: Iterable[bytes], hashes: list[str]) -> Iterator[tuple[str, bytes]]:
    """Names films and notes their hashes, each before it is packed."""
    for content in films:
        hashes.append(sha256_bytes(content))
        yield f"films/{hashes[-1][:16]}.jpeg", content


def _film(number: int) -> bytes:
    film, rng = _drawn[number % len(_drawn)], np.random.default_rng(number)
    shift = np.array([[1, 0, rng.uniform(-9, 9)], [0, 1, rng.uniform(-9, 9)]])
    moved = cv2.warpAffine(film, shift, film.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    return cv2.imencode(".jpeg", cv2.add(moved, rng.integers(0, 12, moved.shape, np.uint8)))[1].tobytes()


if __name__ == "__main__":
    sys.exit(main())
