"""Two hosts without a common disk, for real, on one machine: a promotion, then nine faults. `make two-hosts`.

Run as `python -m tests.two_hosts`; `--faults 1,5` runs those faults alone.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.tools.processes import ending_signals
from tests.conftest import toy_params, write_params, write_plan
from tests.two_hosts.faults import FAULTS
from tests.two_hosts.host import refusal
from tests.two_hosts.promotion import promoted
from tests.two_hosts.retraining import Left, Run, entries, on_one_machine
from tests.two_hosts.scene import Scene

_PACKAGES = {"redis-server": "redis-server", "postgresql": "initdb", "git": "git"}


def main() -> int:
    """Runs everything and returns the exit code."""
    asked = argparse.ArgumentParser(prog="python -m tests.two_hosts")
    asked.add_argument("--faults", default=",".join(map(str, range(1, len(FAULTS) + 1))))
    asked.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if reason := refusal():
        print(f"make two-hosts is skipped: {reason}.")
        return 0
    if problem := _install():
        print(problem)
        return 4
    if not options.inside:
        # What is mounted here is gone with this process, whatever ends it.
        command = ["unshare", "--mount", sys.executable, "-m", "tests.two_hosts", "--inside"]
        os.execvp(command[0], [*command, "--faults", options.faults])
    for number in {*ending_signals()} - {signal.SIGINT}:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="openmed-two-hosts-"))
    folder.chmod(0o711)
    try:
        return _play(folder, [int(number) for number in options.faults.split(",") if number])
    except KeyboardInterrupt:
        print("Stopped.")
        return 130
    finally:
        for number in ending_signals():
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)


def _play(folder: Path, asked: list[int]) -> int:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    say("Starting Postgres, Redis, S3, git, MLflow, Airflow and two workers, each a machine of its own")
    with Scene(folder, _settle) as scene:
        say(f"The workers are {scene.told()}")
        run = Run(scene, "undisturbed")
        run.end()
        left = run.left()
        say(f"retrain: {run.where()}")
        say(promoted(scene, run))
        alone = on_one_machine(scene)
        say(f"dvc repro on one machine: {_compared(left, alone)}")
        scene.client().set_paused("promote", True)
        survived = sum(
            _survives(number, text, scene, alone, say)
            for number, text in enumerate(FAULTS, start=1)
            if number in asked
        )
    took = (time.monotonic() - started) / 60
    print(f"\n{len(asked)} faults, {survived} survived, in {took:.0f} minutes")
    same = not _differences(left, alone)
    return 0 if survived == len(asked) and same else 1


def _survives(number: int, text: str, scene: Scene, alone: Left, say: Callable[[str], None]) -> bool:
    """Runs one fault and says what was lost."""
    started, before = time.monotonic(), entries(scene)
    try:
        runs, detail = FAULTS[text](scene)
        left = [run.left() for run in runs]
    except Exception as error:  # whatever it is, the next fault is to be tried
        say(f"{number}. {text}: NOT survived: {' '.join(str(error).split())[:1500]}")
        return False
    films = sum(alone.films - each.films for each in left)
    models = sum(each.weights.get(name) != alone.weights[name] for each in left for name in alone.weights)
    lost = len({*before} - {*entries(scene)})
    bits = sorted({path for each in left for path in _differences(each, alone)})
    fine = not (films or models or lost or bits)
    same = "" if not left else "; same bits" if not bits else f"; other bits in {', '.join(bits[:5])}"
    say(
        f"{number}. {text} ({detail}): {'survived' if fine else 'NOT survived'}; lost {films} films, "
        f"{models} models, {lost} entries{same} ({time.monotonic() - started:.0f} s)"
    )
    return fine


def _compared(left: Left, alone: Left) -> str:
    different = _differences(left, alone)
    if not different:
        return (
            f"equal: the weights of {len(alone.weights)} models, {len(alone.metrics)} files of metrics, "
            f"{len(alone.outputs)} hashes of outputs"
        )
    return f"DIFFERENT: {', '.join(different)}"


def _differences(left: Left, alone: Left) -> list[str]:
    """Returns what two retrainings do not have in common."""
    weights = [
        f"weights of {name}" for name in alone.weights if left.weights.get(name) != alone.weights[name]
    ]
    outputs = [path for path in alone.outputs if left.outputs.get(path) != alone.outputs[path]]
    metrics = [path for path in left.metrics if left.metrics[path] != alone.metrics.get(path)]
    return sorted({*weights, *outputs, *metrics, *(left.outputs.keys() - alone.outputs.keys())})


def _settle(checkout: Path) -> None:
    """Writes settings under which the sample takes minutes: two tiny networks, one thread, a lenient plan."""
    write_params(checkout, toy_params() | {"architectures": ["resnet50", "vit"]})
    write_plan(checkout)


def _install() -> str | None:
    """Installs what is missing of Debian's packages where it may; returns what is left to do."""
    from tests.two_hosts.servers import program

    missing = [package for package, command in _PACKAGES.items() if not program(command)]
    if not missing:
        return None
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if shutil.which("apt-get"):
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return None
    return f"make two-hosts needs {' and '.join(missing)}: {' '.join(command)}"


if __name__ == "__main__":
    sys.exit(main())
