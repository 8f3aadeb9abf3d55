"""One training in several processes, as `run.processes` starts it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

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


def train(folder, processes):
    """Trains the ViT by micro-batches of half a batch; returns the table of its epochs and its weights."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    settings = params["train"]["vit"]
    settings["micro_batch_films"] = settings["batch_films"] // 2
    params["run"]["processes"] = processes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "pipeline", "train", "--architecture", "vit"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train vit: best epoch") == 1
    results = folder / "artifacts/train/vit"
    return (results / "history.csv").read_text(), load_file(results / "model/weights.safetensors")


@pytest.mark.long
def test_the_train_stage_in_two_processes_gives_the_bits_of_one(workspace):
    (history, weights), (shared_history, shared_weights) = train(workspace, 1), train(workspace, 2)
    assert weights.keys() == shared_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], shared_weights[name])] == []
    assert history == shared_history
