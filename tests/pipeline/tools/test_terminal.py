"""What all stages share: exit codes, progress, and that a killed training goes on where it was."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from openmed.errors import BadInput, IntegrityError, OpenMedError, ResourceError
from openmed.files import sha256_file
from pipeline import __main__
from pipeline.settings.artifacts import folder
from pipeline.stages import train
from pipeline.tools import terminal
from pipeline.tools.terminal import guarded, progress
from tests.conftest import ROOT, run_stages


class Terminal(io.StringIO):
    def isatty(self):
        return True


def raising(error):
    def action():
        raise error

    return action


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch):
    monkeypatch.delenv("OPENMED_DEBUG", raising=False)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (BadInput("bad"), 2, "bad"),
        (IntegrityError("changed"), 3, "changed"),
        (ResourceError("full"), 4, "full"),
        (OpenMedError("other"), 1, "other"),
        (MemoryError(), 4, "the memory is not enough: lower the batch or the image size"),
        (OSError(28, "No space left on device", "x.npy"), 4, "No space left on device (x.npy)"),
        (OSError("strange"), 4, "strange"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to go on"),
    ],
)
def test_each_error_is_one_sentence_and_its_exit_code(capsys, error, code, sentence):
    assert guarded(raising(error)) == code
    assert capsys.readouterr() == ("", f"openmed: {sentence}\n")


def test_work_that_ends_well_is_silent(capsys):
    assert guarded(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("stop", "code"), [(0, 0), (None, 0), (143, 143), ("a text", 1)])
def test_an_exit_keeps_its_code(stop, code):
    assert guarded(raising(SystemExit(stop))) == code


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_debug_adds_the_traceback(capsys, monkeypatch, way):
    if way == "environment":
        monkeypatch.setenv("OPENMED_DEBUG", "1")
    assert guarded(raising(BadInput("bad")), debug=way == "argument") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("openmed: bad\n")


def test_each_stage_writes_in_a_folder_of_its_own():
    assert folder("train", "vit").as_posix() == "artifacts/train/vit"
    assert folder("split").as_posix() == "artifacts/split"


def test_a_log_gets_lines_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_LOG_EVERY_S", 0)
    clock = iter([0.0, 0.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with progress(3, "films") as tick:
        for _ in range(3):
            tick()
    assert capsys.readouterr().err.splitlines() == [
        "films: 1 of 3, about 4 s left",
        "films: 2 of 3, about 2 s left",
        "films: 3 of 3, about 0 s left",
    ]


def test_quick_work_says_nothing_in_a_log(capsys):
    with progress(3, "films") as tick:
        for _ in range(3):
            tick()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("done", [0, 2, 3, 4])
def test_a_terminal_gets_a_bar_and_stdout_nothing(monkeypatch, capsys, done):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(3, "films") as tick:
        for _ in range(done):
            tick()
    assert "films" in sys.stderr.getvalue()
    assert f"{min(100, round(done * 100 / 3))}%" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_an_error_under_the_bar_comes_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(BadInput, match="half-way"), progress(3, "films") as tick:
        tick()
        raise BadInput("half-way")
    with progress(1, "again") as tick:  # rich refuses a second bar while one is alive
        tick()


def test_a_stage_is_told_its_architecture_and_refuses_to_guess_it(workspace, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(train, "run", lambda params, architecture: seen.append(architecture))
    for arguments, code in (
        (["train", "--architecture", "vit"], 0),
        (["train"], 2),
        (["split", "--architecture", "vit"], 2),
        (["paint"], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as stop:
            __main__.main()
        assert stop.value.code == code
    assert seen == ["vit"]
    assert "train needs --architecture" in capsys.readouterr().err


def test_sigterm_between_stages_of_work_ends_with_143():
    assert guarded(lambda: __main__.interrupt(signal.SIGTERM, None)) == 143


def test_a_training_that_is_told_to_stop_saves_its_state_and_goes_on_to_the_same_weights(toy, workspace):
    # The toy's own training was never interrupted. It took the same settings.
    weights = "artifacts/train/vit/model/weights.safetensors"
    expected = sha256_file(toy / weights)
    (workspace / weights).unlink()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipeline", "train", "--architecture", "vit"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert "finetune epoch 1:" in "".join(until(process.stdout, "finetune epoch 1:"))
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert errors == "openmed: the training was stopped; it continues from here when it is run again\n"
    assert not (workspace / weights).exists()
    checkpoints = workspace.parent / "home" / "checkpoints"
    assert len(list(checkpoints.glob("*-vit/state.safetensors"))) == 1
    run_stages(workspace, ["train@vit"])
    assert sha256_file(workspace / weights) == expected
    # What is finished takes no more room.
    assert not list(checkpoints.iterdir())


def until(stream, part, seconds=120):
    end = time.monotonic() + seconds
    for line in stream:
        yield line
        if part in line or time.monotonic() > end:
            return
