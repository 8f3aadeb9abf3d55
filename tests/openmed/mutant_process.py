"""Judges mutants in a child process, which may crash, hang or take too much.

The child says which mutant it is at. When it dies or hangs, the parent records that mutant as unexpected and
goes on with a new child behind it.
"""

import argparse
import faulthandler
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from openmed.films import isolated

LONGEST_S, _START_S = 70, 60  # decoding itself gives up after 60 s
MOST_MIB, MOST_S = 1430, 10
"""What a mutant may take of a process, 1.5 GB and 10 s of CPU time."""

Task = tuple[str, str]
"""Kind and number of a mutant."""
Judge = Callable[[str, str], str]
"""Says of a task what became of it: the success, "refused", or what is wrong."""


@dataclass
class Outcome:
    """What became of the mutants; `unexpected` names each by kind and number.

    Attributes:
        what: What was damaged.
        success: How the judge calls what is usable after all.
    """

    what: str
    success: str
    succeeded: int = 0
    refused: int = 0
    unexpected: list[str] = field(default_factory=list)

    @property
    def mutants(self) -> int:
        return self.succeeded + self.refused + len(self.unexpected)

    def add(self, task: Task, result: str) -> None:
        if result == self.success:
            self.succeeded += 1
        elif result == "refused":
            self.refused += 1
        else:
            self.unexpected.append(f"{' '.join(task)}: {result}")

    def __str__(self) -> str:
        counts = f"{self.mutants} {self.what}, {self.succeeded} {self.success}, {self.refused} refused"
        return f"fuzz: {counts}, {len(self.unexpected)} unexpected"


def judge_all(tasks: Sequence[Task], make_judge: Callable[[], Judge], outcome: Outcome) -> Outcome:
    """Judges all tasks and adds what became of them to the outcome.

    What takes more memory or time than it may is unexpected, whatever became of it.

    Args:
        tasks: The mutants.
        make_judge: Called in each child; can be pickled.
        outcome: Where it is counted.
    """
    while outcome.mutants < len(tasks):
        done = outcome.mutants
        for task, result in zip(tasks[done:], _child(tasks[done:], make_judge), strict=False):
            outcome.add(task, result)
    return outcome


def _child(tasks: Sequence[Task], make_judge: Callable[[], Judge]) -> Iterator[str]:
    """Yields what became of each task until the child dies, hangs or grows, which is the last it yields."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, tasks, make_judge), daemon=True)
    process.start()
    theirs.close()
    try:
        for index in range(len(tasks)):
            if not ours.poll(LONGEST_S + (0 if index else _START_S)):
                yield f"hangs for more than {LONGEST_S} s"
                return
            yield (result := ours.recv())
            if result.startswith("takes "):
                return
    except EOFError:
        process.join()
        yield f"the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _work(pipe: Connection, tasks: Sequence[Task], make_judge: Callable[[], Judge]) -> None:
    faulthandler.enable()
    judge = make_judge()
    for kind, number in tasks:
        before = time.process_time(), _of_decoders()[1]
        result = judge(kind, number)
        pipe.send(_excess(*before) or result)


def _excess(own_s: float, decoders_s: float) -> str:
    """Says what this process or one of its decoders took too much of since it had used so much CPU time."""
    mib, seconds = _of_decoders()
    mib, seconds = max(mib, _peak_mib("self")), max(seconds - decoders_s, time.process_time() - own_s)
    return f"takes {mib} MiB and {seconds:.0f} s" if mib > MOST_MIB or seconds > MOST_S else ""


def _of_decoders() -> tuple[int, float]:
    """Peak memory of the largest in MiB, and the CPU time of all in seconds, of those that ended too."""
    peak, ended = 0, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime
    for process in isolated._idle:
        peak = max(peak, _peak_mib(str(process.pid)))
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        seconds += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return peak, seconds


def _peak_mib(process: str) -> int:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


def report(fuzz: Callable[..., Outcome], about: str, mutants: int) -> int:
    """Fuzzes as the command line says and ends with one line of counts.

    Args:
        fuzz: Takes a number of mutants, and seed and only by name.
        about: What the command says of itself, in its first line.
        mutants: How many, unless the command says otherwise.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=mutants)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Kind to take alone.")
    arguments = parser.parse_args()
    outcome = fuzz(arguments.mutants, seed=arguments.seed, only=arguments.only)
    for line in outcome.unexpected:
        print(line)
    print(outcome)
    return int(bool(outcome.unexpected))
