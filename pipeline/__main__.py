"""Runs one stage of dvc.yaml: `python -m pipeline train --architecture vit`."""

import argparse
import gc
import importlib
import inspect
import signal
import sys
from types import ModuleType

from pipeline.settings.params import load_params
from pipeline.tools.terminal import guarded

STAGES = (
    *("validate", "split", "preprocess", "resample", "train"),
    *("evaluate", "external", "explain", "triage"),
)


def main() -> None:
    """Runs the stage and exits with its code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--architecture", help="For the stages that run once for each.")
    arguments = parser.parse_args()
    run = _imported(arguments.stage).run
    wanted = "architecture" in inspect.signature(run).parameters
    if wanted != (arguments.architecture is not None):
        parser.error(f"{arguments.stage} {'needs' if wanted else 'takes no'} --architecture")
    options = {"architecture": arguments.architecture} if wanted else {}
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(guarded(lambda: run(load_params(), **options)))


def _imported(stage: str) -> ModuleType:
    """Imports a stage in half the time.

    Imports make half a million objects that stay until the end. Looking through them for garbage, again and
    again and once more at the end, takes as long as the imports themselves.
    """
    gc.disable()
    module = importlib.import_module(f"pipeline.stages.{stage}")
    gc.freeze()
    gc.enable()
    return module


def interrupt(signum: int, frame: object) -> None:
    """Ends the process as a command that a signal has ended."""
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main()
