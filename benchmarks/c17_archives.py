"""C17: what DVC takes for films in archives, against a file for each film.

The steps are `dvc add`, `dvc status`, the workspace of a run and `dvc push`, each in a process of its own, as
tasks start them; DVC alone needs about a second for that. Films are random bytes of the size of a small
JPEG: DVC looks at nothing else of them. A million films are computed from the largest number: seconds in
proportion, the start included, which is too much rather than too little; memory along the line from the
number before.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pairs import verdict

from openmed.archives import pack

ROOT = Path(__file__).parents[1]
FILM_BYTES = 2000
STEPS = ("add", "status", "checkout", "push")
WAYS = ("files", "archives")
MILLION = 1_000_000
Steps = dict[str, dict[str, tuple[float, float]]]
"""Seconds and MiB, by step and way."""
# What the first task of a retraining does.
_CHECKOUT = "import sys; from pipeline.versioning.workspace import create; "
_CHECKOUT += "create(sys.argv[1], 'HEAD', 'measured', sys.argv[2])"


def main() -> int:
    """Measures every number of films both ways and prints the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--films", default="1000,10000,100000")
    parser.add_argument("--folder", type=Path, help="Work below this folder; it must be on a disk with room.")
    arguments = parser.parse_args()
    numbers = sorted(int(number) for number in arguments.films.split(","))
    found = {}
    for number in numbers:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            found[number] = _measure(Path(scratch), number)
            _print(number, found[number])
    if len(numbers) > 1:
        _print(MILLION, _computed(numbers, found))
    largest = found[numbers[-1]]
    passed = [_faster(f"C17-{step}", largest[step]) for step in STEPS]
    memory = max(largest[step]["archives"][1] for step in STEPS)
    passed.append(verdict("C17-memory-mib", [memory], 500, at_least=False))
    return int(not all(passed))


def _faster(name: str, ways: dict[str, tuple[float, float]]) -> bool:
    return verdict(name, [ways["files"][0] / ways["archives"][0]], 20)


def _print(number: int, steps: Steps) -> None:
    how = "computed" if number == MILLION else "measured"
    for step, ways in steps.items():
        each = ", ".join(f"{way} {seconds:.2f} s {mib:.0f} MiB" for way, (seconds, mib) in ways.items())
        times = ways["files"][0] / ways["archives"][0]
        print(f"{number} films, {step}: {each} ({how}), {times:.1f} times", flush=True)


def _measure(scratch: Path, films: int) -> Steps:
    """Seconds and MiB of each step, both ways."""
    projects = {way: scratch / way for way in WAYS}
    for way, project in projects.items():
        _make_project(project, films, packed=way == "archives")
    found: Steps = {step: {} for step in STEPS}
    for step in STEPS:
        for way, project in projects.items():
            found[step][way] = _step(step, project)
    return found


def _step(step: str, project: Path) -> tuple[float, float]:
    dvc = (sys.executable, "-m", "dvc")
    if step == "checkout":
        _git(project, "add", "--all")
        _git(project, "commit", "--quiet", "--message", "Films")
        return _timed(sys.executable, "-c", _CHECKOUT, project, project / "home", folder=project)
    command = {
        "add": ("add", "--quiet", "data"),
        "status": ("status", "--quiet"),
        "push": ("push", "--quiet"),
    }
    return _timed(*dvc, *command[step], folder=project)


def _timed(*command: object, folder: Path) -> tuple[float, float]:
    """Seconds that a process takes, and the most memory in MiB of it or a child."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], cwd=folder, env=_environment())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, usage.ru_maxrss / 1024


def _environment() -> dict[str, str]:
    return {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}


def _make_project(project: Path, films: int, *, packed: bool) -> None:
    """Makes a checkout with films that DVC does not know yet, and a remote in a folder beside it."""
    project.mkdir(parents=True)
    _git(project, "init", "--quiet")
    _git(project, "config", "user.name", "c17")
    _git(project, "config", "user.email", "c17@localhost")
    remote = project.with_name(f"{project.name}-remote")
    for command in (("init", "--quiet"), ("remote", "add", "--quiet", "--default", "store", remote)):
        _timed(sys.executable, "-m", "dvc", *command, folder=project)
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / ".gitignore").write_text("home\n")
    data, contents = project / "data", _films(films)
    paths = pack(data, contents) if packed else _write_files(data, contents)
    with (project / "films.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("path", "label", "patient", "split", "sha256"))
        for number, path in enumerate(paths):
            label = "PNEUMONIA" if number % 4 else "NORMAL"
            table.writerow((path, label, f"p{number // 2:016x}", "", f"{number:064x}"))
    (project / "films.csv").rename(data / "films.csv")


def _films(count: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        yield f"films/NORMAL/{number:016x}.jpeg", rng.bytes(FILM_BYTES)


def _write_files(data: Path, films: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    for path, content in films:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(content)
        yield path


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(("git", *arguments), cwd=folder, check=True)


def _computed(numbers: list[int], found: dict[int, Steps]) -> Steps:
    """What a million films would take, see the top."""
    before, largest = numbers[-2:]

    def at_a_million(step: str, way: str) -> tuple[float, float]:
        (_, less), (seconds, mib) = found[before][step][way], found[largest][step][way]
        slope = (mib - less) / (largest - before)
        return seconds * MILLION / largest, mib + slope * (MILLION - largest)

    return {step: {way: at_a_million(step, way) for way in WAYS} for step in STEPS}


if __name__ == "__main__":
    sys.exit(main())
