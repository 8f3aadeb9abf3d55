"""A training goes on with another host's state, to the same bits; whatever the storage does, it trains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openmed.files import sha256_file, write_json
from openmed.training.position import STATE_FILE, Position, read_position
from openmed.training.state import save_state
from pipeline.settings.project import checkpoint_folder
from pipeline.versioning import training_states
from pipeline.versioning.objects import store
from pipeline.versioning.training_states import carried, forget, forget_old
from pipeline.versioning.workspace import path_of

SECRET, STAGE, RUN = "a secret of this site", "train@vit", "run 1"
NEWEST = f"states/{path_of(RUN, Path()).name}/{STAGE}/newest.json"
BEST = {"phase": "head", "epoch": 1, "validation_auc": 0.9, "validation_loss": 0.3}


def record_of(workspace, remote):
    """Notes what is the default remote of a run, as `workspace.create` does."""
    write_json(workspace.with_name(f"{workspace.name}.json"), {"remote": remote})


class Failed(Exception):
    """What ends a stage."""


class Host:
    """One host: a checkout and a state folder of its own; in common are the remote and the secret."""

    def __init__(self, folder: Path, remote: Path) -> None:
        self.project, self.home = folder / "checkout", folder / "home"
        self.said: list[str] = []
        (self.project / ".dvc").mkdir(parents=True)
        (self.project / ".dvc" / "config").write_text(
            f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {remote}\n"
        )
        self.workspace = path_of(RUN, self.home)
        record_of(self.workspace, "shared")
        self.states = checkpoint_folder(self.home.resolve(), self.workspace, "vit")

    def carried(self, stage=STAGE):
        return carried(self.project, self.home, self.workspace, stage, self.said.append)

    def write(self, position, fingerprint="mark", seed=0):
        """Writes a state with best weights of its own, as a training does."""
        torch.manual_seed(seed)
        position = replace(position, best=BEST, best_after=position.epoch + 1)
        self.states.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.randn(5)}, self.states / position.best_file)
        save_state(self.states, fingerprint, position, nn.Linear(4, 2), None)
        for file in self.states.glob("best-*"):
            if file.name != position.best_file:
                file.unlink()

    def hashes(self):
        return {file.name: sha256_file(file) for file in self.states.iterdir()}


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    monkeypatch.setattr(training_states, "_LOOKS_EVERY_S", 0.02)
    monkeypatch.setattr(training_states, "_AGAIN_AFTER_S", 0.02)
    return [Host(tmp_path / name, tmp_path / "remote") for name in ("a", "b")]


def wait_for(what, timeout_s=60.0):
    until = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def order_stored(host):
    content = store(host.project).read(NEWEST)
    order = content and json.loads(json.loads(content)["content"])["about"]["order"]
    return order and [int(number) for number in order.split()]


def lost(host, position, **options):
    """A host that writes a state, sends it and then fails."""
    with pytest.raises(Failed), host.carried():
        host.write(position, **options)
        raise Failed


def test_another_host_takes_up_the_newest_state_with_its_best_weights(hosts):
    first, second = hosts
    with pytest.raises(Failed), first.carried():
        for epoch in (1, 2, 3):
            first.write(Position(phase=1, epoch=epoch), seed=epoch)
            wait_for(lambda epoch=epoch: order_stored(first) == [1, epoch, 0])
        raise Failed
    with second.carried():
        assert second.hashes() == first.hashes()
    assert read_position(second.states)[1].epoch == 3
    [line] = second.said
    assert line.startswith("goes on from the state that host ")
    # What was sent before is gone: the state, the best weights, and what says that they are the newest.
    assert len(store(first.project).names("states")) == 3


def test_the_state_is_sent_while_the_training_runs_and_also_when_it_fails(hosts):
    first, _ = hosts
    with pytest.raises(Failed), first.carried():
        first.write(Position(phase=0, epoch=1))
        wait_for(lambda: order_stored(first) == [0, 1, 0])
        first.write(Position(phase=0, epoch=1, batch=7))
        raise Failed
    assert order_stored(first) == [0, 1, 7]
    assert first.said == []


@pytest.mark.parametrize(
    ("here", "fingerprint", "taken"),
    [
        (Position(phase=0, epoch=9), "mark", True),
        (Position(phase=1, epoch=2, batch=1), "mark", True),
        (Position(phase=1, epoch=2, batch=5), "mark", False),
        (Position(phase=1, epoch=3), "mark", False),
        (Position(phase=0, epoch=1), "of another device", False),
    ],
)
def test_only_a_state_that_is_further_takes_the_place_of_the_one_here(hosts, here, fingerprint, taken):
    first, second = hosts
    lost(first, Position(phase=1, epoch=2, batch=5))
    second.write(here, fingerprint, seed=1)
    before = second.hashes()
    with second.carried():
        assert second.hashes().items() >= (first.hashes() if taken else before).items()
        assert (second.hashes() == before) is not taken


def test_a_state_that_cannot_be_taken_up_here_does_not_keep_the_stored_one_out(hosts):
    first, second = hosts
    lost(first, Position(phase=0, epoch=1))
    second.write(Position(phase=1, epoch=4))
    next(second.states.glob("best-*")).unlink()
    with second.carried():
        assert second.hashes().items() >= first.hashes().items()


def test_the_hosts_paths_do_not_matter_to_where_a_state_lies(hosts, tmp_path):
    first, second = hosts
    assert first.states.name == second.states.name
    by_hand = [checkpoint_folder(tmp_path, tmp_path.parent / name, "vit").name for name in ("x", "y")]
    assert len({first.states.name, *by_hand}) == 3


@pytest.mark.parametrize("stage", ["evaluate@vit", "validate", "train"])
def test_other_stages_have_no_state(hosts, stage):
    with hosts[0].carried(stage):
        hosts[0].write(Position())
    assert not (hosts[0].project.parents[1] / "remote").exists()


def test_without_a_default_remote_nothing_is_sent_and_nothing_said(hosts):
    first, second = hosts
    (first.project / ".dvc" / "config").write_text("")
    lost(first, Position())
    record_of(second.workspace, None)  # it began without one
    lost(second, Position())
    assert first.said == second.said == [] and store(second.project).names("states") == []


def test_an_outage_is_one_line_and_what_was_not_sent_is_sent_after_it(hosts, tmp_path):
    first, second = hosts
    (tmp_path / "remote").write_text("a file where the folder was")
    with pytest.raises(Failed), first.carried():
        assert [line.split(":")[0] for line in first.said] == [
            "train@vit starts from what this host has of it"
        ]
        first.write(Position(phase=0, epoch=1))
        wait_for(lambda: len(first.said) > 1)
        time.sleep(0.2)  # ten further tries
        assert len(first.said) == 2 and "does not answer" in first.said[1]
        (tmp_path / "remote").unlink()
        wait_for(lambda: order_stored(first) == [0, 1, 0])
        wait_for(lambda: first.said[2:] == ["the state of the training is sent again"])
        raise Failed
    with second.carried():
        assert second.hashes() == first.hashes()


def test_storage_that_hangs_keeps_no_training_waiting(hosts, monkeypatch):
    first, _ = hosts
    monkeypatch.setattr(training_states, "_LAST_SENDING_S", 0.2)
    monkeypatch.setattr(training_states.Store, "put", lambda *_: time.sleep(30))
    started = time.monotonic()
    lost(first, Position())
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("what", ["seal", "content", "file", "moved"])
def test_a_state_that_something_else_wrote_is_not_taken_up(hosts, tmp_path, what):
    first, second = hosts
    lost(first, Position(phase=1))
    newest = tmp_path / "remote" / "openmed" / NEWEST
    stored = json.loads(newest.read_text())
    if what == "seal":
        stored["hmac"] = "0" * 64
    elif what == "content":
        stored["content"] = stored["content"].replace('"order": "1', '"order": "2')
    elif what == "file":
        digest = json.loads(stored["content"])["files"][STATE_FILE]
        (newest.parent / digest).write_bytes(b"another")
    else:  # the seal of another training of the same site
        shutil.copytree(newest.parent, newest.parent.with_name("train@resnet50"))
        second.states = checkpoint_folder(second.home.resolve(), second.workspace, "resnet50")
    newest.write_text(json.dumps(stored))
    with second.carried("train@resnet50" if what == "moved" else STAGE):
        assert not second.states.exists()
    assert "seal" in second.said[0] or "was changed since it was sent" in second.said[0]


def test_a_state_under_another_secret_is_told_apart_from_a_forged_one(hosts, monkeypatch):
    first, second = hosts
    lost(first, Position(phase=1))
    monkeypatch.setenv("OPENMED_SITE_SECRET", "the secret of another site")
    with second.carried():
        assert not second.states.exists()
    assert "another site secret" in second.said[0] and "OPENMED_SITE_SECRET" in second.said[0]


def test_states_are_deleted_with_their_run_and_no_other(hosts):
    first, _ = hosts
    lost(first, Position())
    store(first.project).write("states/run-2/train@vit/newest.json", b"{}")
    forget(first.project, first.workspace, first.said.append)
    assert store(first.project).names("states") == ["states/run-2/train@vit/newest.json"]
    assert first.said == []


def test_states_of_runs_that_sent_none_for_days_are_deleted(hosts, tmp_path):
    first, _ = hosts
    lost(first, Position())
    store(first.project).write("states/old/train@vit/newest.json", b"{}")
    old = time.time() - 15 * 86_400
    os.utime(tmp_path / "remote/openmed/states/old/train@vit/newest.json", (old, old))
    forget_old(first.project, 14, first.said.append)
    kept = store(first.project).names("states")
    assert NEWEST in kept and not [name for name in kept if "old" in name]


def test_deleting_ends_nothing_when_the_storage_is_out(hosts, tmp_path):
    (tmp_path / "remote").write_text("a file where the folder was")
    forget_old(hosts[0].project, 14, hosts[0].said.append)
    assert "old training states are still stored" in hosts[0].said[0]


HOST = """
import contextlib, sys, time
from pathlib import Path
from openmed.training import loop
from pipeline.settings.params import load_params
from pipeline.stages import train
from pipeline.versioning.training_states import carried

loop._LEAST_BETWEEN_SAVES_S, loop._MOST_SAVING = 0.0, 1e9  # a state each epoch
told = train._print_epoch
def slowly(progress):
    told(progress)
    time.sleep(float(sys.argv[4]))
train._print_epoch = slowly
project, home, workspace = map(Path, sys.argv[1:4])
with contextlib.chdir(workspace), carried(project, home, workspace, "train@vit", print):
    train.run(load_params(), "vit")
"""


@pytest.mark.long
def test_a_host_whose_power_is_cut_costs_the_training_no_bit(hosts, toy):
    """The whole of it, killed in the middle of the second phase; the other host ends what it began."""

    def start(host, slowly):
        host.workspace.mkdir(parents=True)
        shutil.copy(toy / "params.yaml", host.workspace)
        for name in ("split", "preprocess", "resample"):
            shutil.copytree(toy / "artifacts" / name, host.workspace / "artifacts" / name)
        command = [sys.executable, "-c", HOST, host.project, host.home, host.workspace, str(slowly)]
        return subprocess.Popen(
            list(map(str, command)),
            env=os.environ | {"OPENMED_HOME": str(host.home), "OPENMED_PROJECT": str(host.project)},
            stdout=subprocess.PIPE,
            text=True,
        )

    first, second = hosts
    cut = start(first, 0.5)
    wait_for(lambda: (order_stored(first) or [0, 0])[:2] >= [1, 2])
    cut.send_signal(signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL and not (first.workspace / "artifacts" / "train").exists()
    cut.stdout.close()
    other = start(second, 0)
    said, _ = other.communicate()
    assert other.returncode == 0
    assert "goes on from the state that host" in said and "head epoch 1" not in said
    for name in ("model/weights.safetensors", "history.csv"):
        made, expected = (path / "artifacts" / "train" / "vit" / name for path in (second.workspace, toy))
        assert made.read_bytes() == expected.read_bytes()
