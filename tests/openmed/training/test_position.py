"""Where a training stands is read from its state without PyTorch, and only where that could be taken up."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openmed.training.position import STATE_FILE, Position, read_position
from openmed.training.state import save_state

BEST = {"phase": "head", "epoch": 2, "validation_auc": 0.9, "validation_loss": 0.3}


def test_the_place_of_a_state_and_its_training_are_read(tmp_path):
    place = Position(phase=1, epoch=2, batch=3, history=[{"phase": "head", "epoch": 1}])
    save_state(tmp_path, "mark", place, nn.Linear(2, 2), None)
    assert read_position(tmp_path) == ("mark", place)


def test_a_state_without_its_own_best_weights_counts_as_none(tmp_path):
    place = Position(phase=1, best=BEST, best_after=2)
    save_state(tmp_path, "mark", place, None, None)
    save_file({"weight": torch.zeros(3)}, tmp_path / "best-5.safetensors")
    assert read_position(tmp_path) is None
    save_file({"weight": torch.zeros(3)}, tmp_path / place.best_file)
    assert read_position(tmp_path) == ("mark", place)
    (tmp_path / place.best_file).write_bytes(b"cut")
    assert read_position(tmp_path) is None


@pytest.mark.parametrize("content", [None, b"", b"cut short", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_state_counts_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / STATE_FILE).write_bytes(content)
    assert read_position(tmp_path) is None


def test_positions_are_in_the_order_of_the_training():
    places = [Position(phase, epoch, batch) for phase in (0, 1) for epoch in (0, 1, 11) for batch in (0, 9)]
    assert sorted(places, key=lambda place: place.order) == places


def test_reading_a_place_loads_no_pytorch():
    code = "import sys, openmed.training.position; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
