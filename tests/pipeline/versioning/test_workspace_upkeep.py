"""What is taken away of workspaces while other tasks of the host work."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from openmed.files import read_json, write_json
from pipeline.versioning import workspace


@pytest.fixture
def repo(tmp_path) -> Path:
    """A checkout with one commit."""
    folder = tmp_path / "project"
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    subprocess.run(
        ["git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first"], cwd=folder, check=True
    )
    return folder


def make(repo: Path, home: Path, run_id: str, age_days: float, **known: object) -> Path:
    """Makes the workspace of a run as it was when a task last used it."""
    path = workspace.path_of(run_id, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    add = ["git", "worktree", "add", "--quiet", "--detach", str(path)]
    subprocess.run(add, cwd=repo, check=True)
    commit = workspace.commit_of(path)
    record = path.with_name(f"{path.name}.json")
    write_json(
        record, {"run_id": run_id, "revision": "HEAD", "commit": commit, "seed": None, "whole": True} | known
    )
    at = time.time() - age_days * 86_400
    os.utime(record, (at, at))
    return path


def test_a_complete_run_that_was_cleared_keeps_its_workspace(repo, tmp_path):
    cleared = make(repo, tmp_path, "cleared", 3, complete=True)
    newer = make(repo, tmp_path, "newer", 1, complete=True)
    assert workspace.tidy(repo, tmp_path, 14, {"newer"}.__contains__) == []
    assert workspace.tidy(repo, tmp_path, 14, {"newer", "cleared"}.__contains__) == [cleared]
    assert newer.exists() and not cleared.exists()


def test_a_workspace_that_a_task_uses_is_not_old(repo, tmp_path):
    used, unused = (make(repo, tmp_path, name, 20) for name in ("used", "unused"))
    commit = read_json(used.with_name("used.json"))["commit"]
    assert workspace.find(repo, commit, "used", tmp_path) == used
    assert workspace.tidy(repo, tmp_path, 14, set().__contains__) == [unused]
    assert used.exists()


def test_the_newest_complete_workspace_stays_although_an_older_one_was_known_as_complete_later(
    repo, tmp_path
):
    older = make(repo, tmp_path, "older", 3)
    newer = make(repo, tmp_path, "newer", 1, complete=True)
    runs = {"older", "newer"}.__contains__
    assert workspace.tidy(repo, tmp_path, 14, runs) == [older]
    assert workspace.tidy(repo, tmp_path, 14, runs) == [] and newer.exists()
