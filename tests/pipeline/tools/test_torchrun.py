"""One training in several processes, as `run.processes` starts it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
WEIGHTS = "model/weights.safetensors"

# What a process of a training is here: it says who it is, and ends as it is told.
LAUNCHED = """
import os, pathlib, sys, time
from pipeline.tools.torchrun import end_with_parent
end_with_parent()
rank = os.environ["RANK"]
told = f"{os.getpid()} {rank} {os.environ['WORLD_SIZE']} {os.environ['MASTER_ADDR']}\\n"
os.write(1, told.encode())  # in one piece: both write to one pipe
# The first that fails ends the other, which must have spoken by then.
pathlib.Path(rank).touch()
while sys.argv[1] == "wait" or not pathlib.Path("0").exists():
    time.sleep(0.05)
sys.exit(int(sys.argv[1]) if rank == "1" else 0)
"""


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "launched.py").write_text(LAUNCHED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def start(what):
        call = f"from pipeline.tools.torchrun import run_processes; run_processes(2, 'launched', {what!r})"
        return subprocess.Popen(
            [sys.executable, "-c", call], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )

    return start


def test_processes_know_of_one_another_and_their_exit_code_is_kept(launch):
    process = launch("2")
    said = [line.split() for line in process.communicate(timeout=120)[0].splitlines()]
    assert sorted(words[1:] for words in said) == [["0", "2", "127.0.0.1"], ["1", "2", "127.0.0.1"]]
    assert process.returncode == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_is_ended_leaves_no_process(launch, how):
    process = launch("wait")
    children = [int(process.stdout.readline().split()[0]) for _ in range(2)]
    process.send_signal(how)
    process.wait(timeout=30)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(child) for child in children)
    assert process.returncode == (143 if how == signal.SIGTERM else -signal.SIGKILL)


@pytest.mark.long
def test_the_train_stage_in_two_processes_reaches_what_one_does(workspace):
    results = workspace / "artifacts/train/vit"
    alone, weights = json.loads((results / "summary.json").read_text()), load_file(results / WEIGHTS)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["run"]["processes"] = 2
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "pipeline", "train", "--architecture", "vit"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train vit: best epoch") == 1
    together = json.loads((results / "summary.json").read_text())
    assert together.keys() == alone.keys()
    # Rounding differs from the first step on and grows with the steps; the models are as good.
    assert together["validation_auc"] == pytest.approx(alone["validation_auc"], abs=0.05)
    assert load_file(results / WEIGHTS).keys() == weights.keys()
