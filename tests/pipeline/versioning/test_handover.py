"""What other hosts made, taken over while DVC itself writes."""

import subprocess
import sys
import textwrap

import pytest
import yaml

from openmed.errors import IntegrityError, ResourceError
from pipeline.versioning import handover

GRAPH = """
stages:
  one:
    cmd: sleep 0.3; echo one > one
    outs: [one]
  two:
    cmd: sleep 0.3; echo two > two
    outs: [two]
"""


@pytest.fixture
def workspace(tmp_path):
    """A project of DVC with two stages, in which nothing has run."""
    from dvc.repo import Repo

    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    Repo.init(str(folder), no_scm=True).close()
    (folder / "dvc.yaml").write_text(textwrap.dedent(GRAPH))
    return folder


def entry(number: int) -> dict:
    return {
        "cmd": f"echo {number}",
        "outs": [{"path": f"out{number}", "hash": "md5", "md5": f"{number:032x}"}],
    }


def test_no_entry_is_lost_while_two_stages_run(workspace):
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
    running = [
        subprocess.Popen([*command, name], cwd=workspace, stdout=subprocess.DEVNULL)
        for name in ("one", "two")
    ]
    number = 0
    while any(process.poll() is None for process in running):
        number += 1
        handover.receive(workspace, {f"far{number}": entry(number)}, lambda out: False)
    assert [process.returncode for process in running] == [0, 0]
    stages = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    assert number > 1
    assert stages.keys() == {"one", "two", *(f"far{each}" for each in range(1, number + 1))}
    assert stages["far1"] == entry(1)


def test_what_this_host_made_is_neither_fetched_nor_written_again(workspace):
    assert handover.run_dvc(workspace, "repro")[0] == 0
    made = {name: handover.hand_on(workspace, name, {}) for name in ("one", "two")}
    before = (workspace / "dvc.lock").stat().st_mtime_ns
    handover.receive(workspace, made, lambda out: True, dvc=None)
    assert (workspace / "dvc.lock").stat().st_mtime_ns == before
    # From the cache of this host, where the file was lost or a stage has begun to write it again.
    (workspace / "one").unlink()
    handover.receive(workspace, made, lambda out: True)
    assert (workspace / "one").read_text() == "one\n"
    handover.begin(workspace, ["two"])
    (workspace / "two").write_text("in part")
    handover.receive(workspace, made, lambda out: True)
    assert (workspace / "two").read_text() == "two\n"


def test_what_is_nowhere_is_one_sentence(workspace):
    with pytest.raises(ResourceError, match="what out1 stand for is neither in the DVC cache nor") as said:
        handover.receive(workspace, {"one": {**entry(1)}}, lambda out: True)
    assert "\n" not in str(said.value)


def test_stages_that_do_not_fit_together_are_not_taken(workspace):
    reads = {**entry(2), "deps": [{"path": "out1", "md5": "f" * 32}, {"path": "code.py", "md5": "0"}]}
    with pytest.raises(IntegrityError, match="later read another out1 than earlier wrote: run it"):
        handover.receive(workspace, {"earlier": entry(1), "later": reads}, lambda out: False)
    assert not (workspace / "dvc.lock").exists()
