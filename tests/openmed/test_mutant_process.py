"""What mutants do to the process that judges them is seen: a crash, a hang, too much memory or time."""

import multiprocessing
import os
import signal
import time

import pytest

from tests.openmed import mutant_process

FORK = multiprocessing.get_context("fork")
TASKS = [("png", "0-1"), ("png", "0-2"), ("png", "0-3")]


def test_too_much_memory_and_time_are_seen(monkeypatch):
    # Tests before this one may have taken much.
    monkeypatch.setattr(mutant_process, "MOST_MIB", 1 << 20)
    assert mutant_process._excess(time.process_time(), mutant_process._of_decoders()[1]) == ""
    monkeypatch.setattr(mutant_process, "MOST_MIB", 10)
    assert mutant_process._excess(0, 0).startswith("takes ")
    monkeypatch.setattr(mutant_process, "MOST_MIB", 1 << 20)
    said = mutant_process._excess(time.process_time() - 11, mutant_process._of_decoders()[1])
    assert said == f"takes {mutant_process._peak_mib('self')} MiB and 11 s"


def _crash(pipe, tasks, make_judge):
    pipe.send("images")
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(pipe, tasks, make_judge):
    pipe.send("refused")
    time.sleep(60)


@pytest.mark.parametrize(
    ("work", "first", "last"),
    [
        (_crash, "images", "the process ended with -9"),
        (_hang, "refused", "hangs for more than 0 s"),
    ],
)
def test_a_crash_and_a_hang_are_seen(monkeypatch, work, first, last):
    monkeypatch.setattr(mutant_process, "_work", work)
    monkeypatch.setattr(mutant_process, "LONGEST_S", 0 if work is _hang else 10)
    monkeypatch.setattr(mutant_process.multiprocessing, "get_context", lambda kind: FORK)
    assert list(mutant_process._child(TASKS, dict)) == [first, last]


def _odd():
    return lambda kind, number: {"1": "images", "2": "refused"}.get(number) or os._exit(3)


def test_after_a_crash_the_rest_is_judged_and_all_are_counted():
    outcome = mutant_process.Outcome("mutants", "images")
    mutant_process.judge_all([("png", number) for number in "13212"], _odd, outcome)
    assert outcome.unexpected == ["png 3: the process ended with 3"]
    assert str(outcome) == "fuzz: 5 mutants, 2 images, 2 refused, 1 unexpected"


def _large():
    held = []
    return lambda kind, number: held.append(b"x" * (int(number) << 20)) or "images"


def test_the_one_that_took_too_much_does_not_stand_for_the_next():
    outcome = mutant_process.Outcome("mutants", "images")
    mutant_process.judge_all([("png", number) for number in ("1", "1500", "2")], _large, outcome)
    assert len(outcome.unexpected) == 1 and outcome.unexpected[0].startswith("png 1500: takes 1")
