"""Two processes that share a training, as torchrun starts them, against one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openmed.errors import BadInput, ResourceError
from openmed.inference.checkpoint import WEIGHTS_FILE, save_model
from openmed.training.loop import Trainer
from openmed.training.parallel import ALONE, Workers, joined
from openmed.training.settings import Phase
from tests.openmed.training.conftest import SHORT, build_model, make_films

FINETUNE = Phase("finetune", 2, 1e-3, None, average_decay=0.5)
SCRIPT = """
import json, sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests.openmed.training.test_parallel import train_and_save
train_and_save(Path({folder!r}), json.loads({architectures!r}))
"""


def train_and_save(folder, architectures):
    """Trains as one of the processes that the environment names; the leading one saves the weights."""
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as workers:
        for name in architectures:
            model, settings = CASES[name]()
            state = folder / f"{name}-state"
            trainer = Trainer(model, make_films(30), make_films(25, seed=9), settings, state, workers=workers)
            position = trainer.run()
            if workers.leads:
                save_model(folder / name, model)
                rows = [{k: v for k, v in row.items() if k != "seconds"} for row in position.history]
                (folder / f"{name}.json").write_text(json.dumps(rows))


def vit():
    """Micro-batches that are the shares of two processes, of batches of eight and of seven films."""
    model = build_model("vit", model_options={"drop_rate": 0.1, "drop_path_rate": 0.2})
    return model, replace(SHORT, phases=(Phase("head", 1, 3e-3, 0), FINETUNE), micro_batch_films=4)


def resnet50():
    """A net with batch norms sees the whole batch at once in both ways, by other operations."""
    model = build_model("resnet50", model_options={})
    return model.double(), replace(SHORT, phases=(FINETUNE,))


CASES = {"vit": vit, "resnet50": resnet50}


def in_processes(count, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = SCRIPT.format(path=sys.path, folder=str(folder), architectures=json.dumps(list(CASES)))
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
    train_and_save(folder / "1", CASES)
    torch.set_num_threads(threads)
    in_processes(2, folder / "2")
    return folder


def test_two_processes_give_the_bits_of_one_that_learns_from_their_shares_in_turn(trained, assert_same):
    assert_same(*(load_file(trained / count / "vit" / WEIGHTS_FILE) for count in "12"))
    one, two = (json.loads((trained / count / "vit.json").read_text()) for count in "12")
    assert one == two and len(one) == 3


def test_batch_norms_of_two_processes_see_the_whole_batch(trained):
    one, two = (load_file(trained / count / "resnet50" / WEIGHTS_FILE) for count in "12")
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value.double(), two[name].double(), rtol=1e-9, atol=1e-10), name
    one, two = (json.loads((trained / count / "resnet50.json").read_text()) for count in "12")
    for first, second in zip(one, two, strict=True):
        assert first.pop("phase") == second.pop("phase")
        # The steps' losses are float32, whatever the net is.
        assert first.pop("train_loss") == pytest.approx(second.pop("train_loss"), rel=1e-6)
        assert first == pytest.approx(second, rel=1e-9)


def test_a_batch_that_is_too_small_for_all_processes_is_refused(monkeypatch, trainer):
    monkeypatch.setattr(Workers, "wrap", lambda workers, model: model)
    monkeypatch.setattr(Workers, "agree", lambda workers, text: None)
    training = trainer(workers=Workers(0, 9), phases=(FINETUNE,))
    with pytest.raises(BadInput, match="9 processes cannot share a batch of 8 films: raise batch_films"):
        training.run()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("films", [0, 1, 2, 9, 64])
def test_shares_are_nearly_equal_and_leave_nothing_out(count, films):
    shares = [Workers(rank, count).share(films) for rank in range(count)]
    assert np.concatenate([np.arange(films)[share] for share in shares]).tolist() == list(range(films))
    # As a process alone cuts its micro-batches.
    sizes = [share.stop - share.start for share in shares]
    assert sizes == [len(part) for part in np.array_split(np.arange(films), count)]


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
