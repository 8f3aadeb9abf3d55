"""What other hosts made, taken over while DVC itself writes."""

import shutil
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


@pytest.fixture
def bare(tmp_path):
    """A checkout with a remote by its side that has the data, of which neither it nor its cache has any."""
    from dvc.repo import Repo

    folder = tmp_path / "checkout"
    (folder / "data/films").mkdir(parents=True)
    (tmp_path / "storage").mkdir()
    for name in ("a", "b", "c"):
        (folder / "data/films" / name).write_text(f"film {name}")
    Repo.init(str(folder), no_scm=True).close()
    (folder / ".dvc/config").write_text(
        f"[core]\n    remote = store\n    no_scm = true\n['remote \"store\"']\n    url = {tmp_path}/storage\n"
        "    verify = true\n"
    )
    with Repo(str(folder)) as repo:
        repo.add(str(folder / "data"))
        repo.push()
    for made in (folder / "data", folder / ".dvc/cache"):
        shutil.rmtree(made)
    return folder


def cached(folder):
    return {path.read_text() for path in (folder / ".dvc/cache/files").rglob("*") if path.is_file()}


def test_some_files_of_the_data_are_fetched_without_the_others(bare, tmp_path):
    handover.name_data(bare, ["films/a", "films/none"], tmp_path / "first")
    handover.name_data(bare, ["films/a", "films/b"], tmp_path / "second")
    assert [path.name for path in (tmp_path / "first/films").iterdir()] == ["a"]
    assert {path.read_text() for path in (tmp_path / "second/films").iterdir()} == {"film a", "film b"}
    assert {"film a", "film b"} < cached(bare) and "film c" not in cached(bare)
    assert not (bare / "data").exists()


def test_an_outage_leaves_what_is_there_and_is_over_when_it_is_over(bare, tmp_path):
    handover.name_data(bare, ["films/a"], tmp_path / "first")
    (tmp_path / "storage").rename(tmp_path / "away")
    with pytest.raises(ResourceError, match="neither in the DVC cache nor whole on a remote"):
        handover.name_data(bare, ["films/a", "films/b", "films/c"], tmp_path / "second")
    assert (tmp_path / "first/films/a").read_text() == "film a"
    (tmp_path / "storage").rmdir() if (tmp_path / "storage").exists() else None
    (tmp_path / "away").rename(tmp_path / "storage")
    handover.name_data(bare, ["films/a", "films/b"], tmp_path / "second")
    assert (tmp_path / "second/films/b").read_text() == "film b"


def test_a_damaged_file_in_the_cache_is_fetched_again_and_one_on_the_remote_refused(bare, tmp_path):
    handover.name_data(bare, ["films/a"], tmp_path / "first")
    damaged = (tmp_path / "first/films/a").resolve()
    damaged.chmod(0o644)
    damaged.write_text("another film")
    handover.name_data(bare, ["films/a"], tmp_path / "second")
    assert (tmp_path / "second/films/a").read_text() == "film a"
    (there,) = (path for path in (tmp_path / "storage").rglob("*") if path.name == damaged.name)
    damaged.unlink()
    there.chmod(0o644)
    there.write_text("film x")
    with pytest.raises(ResourceError, match="nor whole on a remote"):
        handover.name_data(bare, ["films/a"], tmp_path / "third")
