"""The workspaces of runs on their hosts: at which commit they are, and when they go."""

import os
import time

import handing
import host
import pytest
import retrain
from airflow.sdk.exceptions import AirflowFailException
from host import Outage

from openmed.errors import BadInput
from openmed.files import read_json, write_json
from pipeline.tools.git import git
from pipeline.versioning import workspace
from tests.dags.hosts import COMMIT
from tests.dags.runs import Handed


def test_new_data_of_another_host_are_what_is_retrained_on(hosts, tmp_path):
    one, two = (hosts.root / name / "project" for name in ("one", "two"))
    before = [git(each, "rev-parse", "HEAD") for each in (one, two)]
    git(one, *COMMIT, "new data", "--allow-empty")
    new = git(one, "rev-parse", "HEAD")
    hosts.ti.run_id, hosts.ti.written = "asset_triggered__1", {}
    hosts.on("two")
    host.HOME = tmp_path
    with pytest.raises(Outage, match=f"commit {new} of this run is not in .*: push it"):
        hosts.prepare(announced=[before[0], new])
    git(one, "push", "--quiet", "origin", "HEAD:news")
    hosts.prepare(announced=[before[0], new])
    assert handing.needed(hosts.ti, "prepare")["revision"] == new
    git(two, "reset", "--quiet", "--hard", new)
    git(two, *COMMIT, "moved on", "--allow-empty")
    for run_id, commit in (("asset_triggered__1", new), ("later", git(two, "rev-parse", "HEAD"))):
        hosts.ti.run_id = run_id
        hosts.prepare(announced=[before[0], new])
        assert handing.needed(hosts.ti, "prepare")["revision"] == commit
    for each, commit in zip((one, two), before, strict=True):
        git(each, "reset", "--quiet", "--hard", commit)


def test_a_run_whose_workspace_was_never_whole_may_begin_elsewhere_at_another_commit(hosts, tmp_path):
    one, home = hosts.root / "one/project", tmp_path
    here = git(one, "rev-parse", "HEAD")
    path = workspace.path_of("run", home)
    write_json(
        path.with_name("run.json"), {"run_id": "run", "revision": "HEAD", "commit": "0" * 40, "whole": False}
    )
    assert workspace.commit_of(workspace.find(one, here, "run", home)) == here
    with pytest.raises(BadInput, match="start a new run"):
        workspace.find(one, "1" * 40, "run", home)


def test_a_commit_that_a_host_lacks_is_fetched_and_head_moves_nothing(hosts):
    one, two = (hosts.root / name / "project" for name in ("one", "two"))
    first = git(one, "rev-parse", "HEAD")
    (one / "params.yaml").write_text("run:\n  seed: 8\n")
    git(one, *COMMIT, "second", "--all")
    second = git(one, "rev-parse", "HEAD")
    hosts.on("one")
    hosts.ti.run_id = "manual__2"
    hosts.prepare()
    folder = hosts.on("two")
    with pytest.raises(Outage, match=f"commit {second} of this run is not in .* nor on its remotes"):
        handing.workspace_of(hosts.ti)
    git(one, "push", "--quiet", "origin", "main")
    git(one, *COMMIT, "third", "--allow-empty")
    assert handing.workspace_of(hosts.ti) == folder
    assert (git(two, "rev-parse", "HEAD"), git(folder, "rev-parse", "HEAD")) == (first, second)
    assert (folder / "params.yaml").read_text() == "run:\n  seed: 8\n"


def test_a_host_takes_away_what_runs_left_that_ended_elsewhere(hosts):
    for number, run_id in enumerate(("first", "second", "third", "running")):
        folder = workspace.path_of(run_id, host.HOME)
        folder.mkdir(parents=True)
        record = folder.with_name(f"{run_id}.json")
        write_json(record, {"run_id": run_id, "revision": "HEAD", "commit": "0"})
        os.utime(record, (0, time.time() - 100 + number))
        hosts.ti.states[run_id] = {"second": "failed", "running": "running"}.get(run_id, "success")
    handing.tidy(hosts.ti)
    left = {path.name for path in (host.HOME / "runs").iterdir() if path.is_dir()}
    assert left - {"manual__2"} == {"second", "third", "running", hosts.ti.run_id}


def test_a_failed_run_keeps_its_workspace(state_folder):
    folder = state_folder / "runs/manual__1"
    folder.mkdir(parents=True)
    said = retrain.cleanup.function(ti=Handed())
    assert "are kept for 14 days" in said and folder.exists()


def test_a_registration_written_by_hand_removes_no_workspace(state_folder, monkeypatch):
    record = state_folder / "runs/manual__1.json"
    write_json(record, {"run_id": "manual__1"})
    run = Handed(register={"version": "7"})
    run.written["register"] |= {"version": "8"}
    with pytest.raises(AirflowFailException, match="XCom of task 'register' is not what the task handed on"):
        retrain.cleanup.function(ti=run)
    run.xcom_pull = lambda task_ids, key="return_value": {"version": "8"} if key == "candidate" else None
    assert "are kept for 14 days" in retrain.cleanup.function(ti=run)
    assert "complete" not in read_json(record)
    assert "is kept for the gate" in retrain.cleanup.function(ti=Handed(register={"version": "7"}))
    assert read_json(record)["complete"] is True
