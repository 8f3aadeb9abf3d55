"""Two processes that share a training, as torchrun starts them, against one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openmed.errors import ResourceError
from openmed.inference.checkpoint import WEIGHTS_FILE, save_model
from openmed.training.parallel import ALONE, Workers, joined
from openmed.training.settings import Phase

ARCHITECTURES = ("resnet50", "vit")
SCRIPT = """
import json, sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests.openmed.training.test_parallel import train_and_save
train_and_save(Path({folder!r}), json.loads({architectures!r}))
"""


def train_and_save(folder, architectures):
    """Trains as one of the processes that the environment names; the leading one saves the weights."""
    from dataclasses import replace

    from openmed.training.loop import Trainer
    from tests.openmed.training.conftest import SHORT, build_model, make_films

    torch.set_num_threads(1)
    settings = replace(
        SHORT,
        phases=(Phase("head", 1, 3e-3, 0), Phase("finetune", 2, 1e-3, None, average_decay=0.5)),
        micro_batch_films=4,
    )
    with joined(torch.device("cpu")) as workers:
        for name in architectures:
            model = build_model(name, model_options={})
            # A net with batch norms sees the whole batch at once in both ways.
            one = replace(settings, micro_batch_films=8) if name == "resnet50" else settings
            state = folder / f"{name}-state"
            trainer = Trainer(model, make_films(30), make_films(25, seed=9), one, state, workers=workers)
            position = trainer.run()
            if workers.leads:
                save_model(folder / name, model)
                rows = [{k: v for k, v in row.items() if k != "seconds"} for row in position.history]
                (folder / f"{name}.json").write_text(json.dumps(rows))


def in_processes(count, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = SCRIPT.format(path=sys.path, folder=str(folder), architectures=json.dumps(ARCHITECTURES))
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **shared, "GLOO_SOCKET_IFNAME": "lo"}
    folder.mkdir()
    children = [
        subprocess.Popen([sys.executable, "-c", script], env={**environment, "RANK": str(rank)})
        for rank in range(count)
    ]
    assert [child.wait(timeout=300) for child in children] == [0] * count


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders 1 and 2, for the number of processes."""
    folder = tmp_path_factory.mktemp("parallel")
    threads = torch.get_num_threads()
    train_and_save(folder / "1", ARCHITECTURES)
    torch.set_num_threads(threads)
    in_processes(2, folder / "2")
    return folder


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_two_processes_end_where_one_does(trained, architecture):
    one, two = (load_file(trained / count / architecture / WEIGHTS_FILE) for count in "12")
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), rtol=1e-2, atol=2e-4), name


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_two_processes_report_what_one_does(trained, architecture):
    one, two = (json.loads((trained / count / f"{architecture}.json").read_text()) for count in "12")
    for first, second in zip(one, two, strict=True):
        assert first.pop("phase") == second.pop("phase")
        assert first == pytest.approx(second, rel=2e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("films", [0, 1, 2, 9, 64])
def test_shares_are_nearly_equal_and_leave_nothing_out(count, films):
    shares = [Workers(rank, count).share(films) for rank in range(count)]
    assert np.concatenate([np.arange(films)[share] for share in shares]).tolist() == list(range(films))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_needs_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as workers:
        assert workers == ALONE and workers.leads
    workers.wait()
    workers.agree("anything")
    assert workers.any(True, torch.device("cpu")) and not workers.any(False, torch.device("cpu"))


def test_processes_that_see_different_checkpoints_are_stopped(monkeypatch):
    def gather(numbers, own):
        numbers[0].fill_(own)
        numbers[1].fill_(own + 1)

    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    with pytest.raises(ResourceError, match="OPENMED_HOME must be on storage that all hosts share"):
        Workers(0, 2).agree("epoch 3")
