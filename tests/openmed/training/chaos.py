"""Kills trainings with SIGKILL at seeded moments and holds what they end with against an undisturbed one.

`python -m tests.openmed.training.chaos --kills 200` is `make chaos`; the tests run fewer.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ARCHITECTURES = ("vit", "resnet50")
# Forked from a process that has loaded everything and computed nothing, so a kill costs no import.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.openmed.training.conftest", "torch._dynamo"])


def train(architecture: str, folder: str, reports) -> None:
    """Trains to the end; sends a byte at each report and then a hash of weights and history."""
    import torch

    from openmed.training.loop import Trainer
    from tests.openmed.training.conftest import SHORT, build_model, make_films

    torch.set_num_threads(1)
    phases = tuple(
        replace(phase, average_decay=0.9 if phase.name == "finetune" else 0) for phase in SHORT.phases
    )
    settings = replace(SHORT, phases=phases, checkpoint_every_s=0)
    trainer = Trainer(
        build_model(architecture),
        make_films(24),
        make_films(16, seed=9),
        settings,
        Path(folder),
        report=lambda progress: reports.send_bytes(b"."),
    )
    position = trainer.run()
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in position.history]
    digest = hashlib.sha256(json.dumps([history, position.best]).encode())
    for name, value in sorted(trainer.model.network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    reports.send_bytes(digest.hexdigest().encode())


def outcome(architecture: str, folder: Path) -> bytes:
    """Runs to the end, however often it was killed before."""
    reader, writer = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=train, args=(architecture, str(folder), writer))
    child.start()
    writer.close()
    message = b"."
    while message == b".":
        message = reader.recv_bytes()
    child.join()
    return message


def kill(architecture: str, folder: Path, reports: int, delay_s: float) -> bool:
    """Kills a training a moment after its n-th report; False when it had ended before."""
    reader, writer = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=train, args=(architecture, str(folder), writer))
    child.start()
    writer.close()
    for _ in range(reports):
        if reader.recv_bytes() != b".":
            break
    time.sleep(delay_s)
    child.kill()  # no error when it has ended by now
    child.join()
    return child.exitcode == -signal.SIGKILL


def chaos(kills: int, seed: int, folder: Path) -> Iterator[tuple[str, int, bool]]:
    """Kills one training after another, some of them several times.

    Yields:
        The architecture, how often it was killed, and whether it ended as the undisturbed one did.
    """
    draw = random.Random(seed)
    whole = {name: outcome(name, folder / f"{name}-whole") for name in ARCHITECTURES}
    done = number = 0
    while done < kills:
        number += 1
        architecture = ARCHITECTURES[number % len(ARCHITECTURES)]
        here = folder / f"{number}"
        times = min(draw.choice((1, 1, 2, 3)), kills - done)
        hit = sum(kill(architecture, here, draw.randint(1, 10), draw.uniform(0, 0.02)) for _ in range(times))
        done += hit
        yield architecture, hit, outcome(architecture, here) == whole[architecture]


def main() -> int:
    """Prints each training and the count; fails when one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kills = trainings = different = 0
    with tempfile.TemporaryDirectory() as folder:
        for architecture, hit, same in chaos(arguments.kills, arguments.seed, Path(folder)):
            kills, trainings, different = kills + hit, trainings + 1, different + (not same)
            if sys.stderr.isatty() or not same:
                print(
                    f"{architecture}: killed {hit} times, {'the same' if same else 'DIFFERENT'}",
                    file=sys.stderr,
                )
    print(f"chaos: {kills} kills of {trainings} trainings, {different} ended differently")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
