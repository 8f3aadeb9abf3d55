"""Eight processes that write decisions at once, from two state folders; some are killed.

`python -m tests.pipeline.ledger.writers FOLDER_A FOLDER_B`: each holds a state folder `home` and a project
`project`. What a process was told that it is written, it appends to `acknowledged` beside the folders.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from openmed.errors import BadInput, ResourceError
from pipeline import ledger
from pipeline.ledger import decisions
from pipeline.ledger.approval import Approval, Basis

WRITERS, KILLS, BETWEEN_KILLS = 8, 10, 2


def write(number: int, folder: Path, acknowledged: int) -> None:
    """Shows, holds, releases and promotes until it is killed or told to end."""
    os.environ["OPENMED_HOME"] = str(folder / "home")
    os.environ["OPENMED_PROJECT"] = str(folder / "project")
    os.chdir(folder / "project")
    rng = random.Random(os.getpid())
    for turn in range(1000):
        version, mark = str(rng.randint(1, 3)), f"{number}-{os.getpid()}-{turn}"
        if rng.random() < 0.6:
            decisions.show(version, {"champion": None, "verdict": "PASS", "mark": mark})
        else:
            promote(version, mark)
        os.write(acknowledged, f"{mark}\n".encode())


def promote(version: str, mark: str) -> None:
    """Promotes in place of whoever is the champion, until nobody was faster."""
    while True:
        try:
            champion = ledger.champion()
            if champion == version:
                decisions.show(version, {"champion": champion, "verdict": "PASS", "mark": mark})
                return
            basis = Basis(version, "PASS", champion, "0" * 64, {"clinical": "the films"}, None)
            ledger.promote(
                version,
                approval=Approval.of({"clinical": f"Dr {mark}"}, mark),
                expected_champion=champion,
                expected_model=None,
                judge=lambda basis=basis: basis,
            )
            return
        except BadInput:
            time.sleep(0.01)


def main() -> None:
    """Starts the writers, kills some and starts others in their place, and ends them all."""
    folders = [Path(name) for name in sys.argv[1:]]
    told = folders[0].parent / "acknowledged"
    acknowledged = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    # Imported once, before the processes part: MLflow takes seconds.
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    def start(number: int) -> int:
        if pid := os.fork():
            return pid
        try:
            write(number, folders[number % 2], acknowledged)
        except ResourceError as error:
            print(f"writer {number}: {error}", flush=True)
        except BaseException as error:
            print(f"FAILED writer {number}: {type(error).__name__}: {error}", flush=True)
        os._exit(1)

    running = [start(number) for number in range(WRITERS)]
    for kill in range(KILLS):
        while told.read_text().count("\n") < BETWEEN_KILLS * (kill + 1):
            time.sleep(0.02)
        os.kill(running[kill % WRITERS], signal.SIGKILL)
        os.waitpid(running[kill % WRITERS], 0)
        running[kill % WRITERS] = start(kill % WRITERS)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
