"""Promotions of two state folders at once, some killed: one champion, one record."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import ledger
from pipeline.tracking.versions import aliases
from tests.pipeline.conftest import make_workspace, register

OPENMED = Path(sys.executable).with_name("openmed")


@pytest.fixture
def hosts(tmp_path, migrated, monkeypatch):
    """Two state folders of one project, and a store with four versions that each would pass."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").write_text("stages: {}\n")
    subprocess.run(["git", "init", "--quiet", project], check=True)
    shutil.copy(migrated, tmp_path / "shared.db")
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        home.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    monkeypatch.setenv("OPENMED_PROJECT", str(project))
    monkeypatch.setenv("OPENMED_HOME", str(homes[0]))
    for number in range(4):
        register(
            make_workspace(tmp_path / str(number), ("vit",), seed=number, films_seed=number), f"run-{number}"
        )
    return homes


def start(home, version, person):
    command = [OPENMED, "registry", "promote", version, "--by", f"clinical={person}"]
    environment = os.environ | {"OPENMED_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.long
def test_eight_promotions_of_two_state_folders_with_ten_kills_leave_one_champion_and_one_record(
    hosts, monkeypatch
):
    rng = random.Random(7)
    asked = [(hosts[number % 2], str(1 + number // 2), f"Dr {number}") for number in range(8)]
    running = [start(*each) for each in asked]
    for kill in range(10):
        time.sleep(rng.uniform(0.5, 4))
        victim = kill % len(asked)
        running[victim].send_signal(signal.SIGKILL)
        running[victim].communicate()
        running[victim] = start(*asked[victim])
    ends = [(process.communicate()[0], process.returncode) for process in running]
    # Refused for a reason, or done; nothing in between.
    assert {code for _, code in ends} <= {0, 2, 4}, ends
    # Whatever a kill left half done is finished by the next decision.
    ledger.hold("4", by="Dr Adams", reason="edges are wrong")
    records = []
    for home in hosts:
        monkeypatch.setenv("OPENMED_HOME", str(home))
        records.append(ledger.history())
        for version in "1234":
            done = subprocess.run([OPENMED, "registry", "verify", version], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    assert records[0] == records[1]
    moves = [entry for entry in records[0] if entry.event == ledger.PROMOTED]
    assert moves and aliases()["champion"] == moves[-1].version == ledger.champion()
    assert [entry.content["replaced"] for entry in moves] == [None, *(entry.version for entry in moves[:-1])]
    assert len({entry.version for entry in moves}) == len(moves)
