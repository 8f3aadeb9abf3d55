import json
import pickle
import struct

import pytest
import torch
from torch import nn

from openmed.training import state
from openmed.training.position import STATE_FILE, Position, is_whole
from openmed.training.state import (
    load_state,
    restore_network,
    restore_optimizer,
    save_state,
)

PLACE = Position(
    phase=1,
    epoch=2,
    batch=3,
    step=13,
    loss_sum=0.1 + 0.2,
    seconds=1 / 3,
    stale_epochs=1,
    best={"phase": "head", "epoch": 1, "validation_auc": 2 / 3, "validation_loss": 0.7},
    history=[{"phase": "head", "epoch": 1, "train_loss": 0.69, "seconds": 1.5}],
    scaler={"scale": 65536.0},
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36 * 4, 2))


def steps(net, optimizer, n, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        optimizer.zero_grad()
        net(torch.rand(5, 1, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()


def adamw(net):
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


@pytest.fixture
def trained():
    net = network()
    optimizer = adamw(net)
    steps(net, optimizer, 3, seed=1)
    return net, optimizer


def test_a_position_comes_back_exactly(tmp_path, trained):
    save_state(tmp_path, "mark", PLACE, *trained)
    assert load_state(tmp_path, "mark")[0] == PLACE


def test_a_restored_optimiser_goes_on_as_the_first_one(tmp_path, trained):
    net, optimizer = trained
    save_state(tmp_path, "mark", PLACE, net, optimizer)
    steps(net, optimizer, 2, seed=2)
    other = network(seed=7)
    others = adamw(other)
    _, tensors = load_state(tmp_path, "mark")
    restore_network(other, tensors)
    restore_optimizer(others, tensors)
    steps(other, others, 2, seed=2)
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_state_without_an_optimiser_holds_the_network_alone(tmp_path):
    save_state(tmp_path, "mark", Position(), network(), None)
    position, tensors = load_state(tmp_path, "mark")
    assert position == Position()
    assert tensors.keys() == {f"network.{name}" for name in network().state_dict()}


def test_the_state_of_another_training_is_ignored(tmp_path, trained):
    save_state(tmp_path, "mark", PLACE, *trained)
    assert load_state(tmp_path, "other") is None


def test_no_state_is_no_error(tmp_path):
    assert load_state(tmp_path / "missing", "mark") is None
    assert not is_whole(tmp_path / "missing")


def test_a_file_cut_anywhere_is_ignored(tmp_path, trained):
    save_state(tmp_path, "mark", PLACE, *trained)
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    assert is_whole(path)
    for length in (0, 4, 8, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_state(tmp_path, "mark") is None
        assert not is_whole(path)


def test_a_file_of_something_else_is_ignored(tmp_path):
    (tmp_path / STATE_FILE).write_bytes(pickle.dumps({"weights": [1, 2]}))
    assert load_state(tmp_path, "mark") is None


def test_the_file_is_plain_safetensors(tmp_path, trained):
    save_state(tmp_path, "mark", PLACE, *trained)
    content = (tmp_path / STATE_FILE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["position"])["step"] == 13
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - length
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_failed_write_leaves_the_old_state(tmp_path, trained, monkeypatch):
    save_state(tmp_path, "mark", PLACE, *trained)
    before = (tmp_path / STATE_FILE).read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(state, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, "mark", Position(), *trained)
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
