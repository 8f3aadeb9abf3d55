"""git and DVC as commands: their own sentence reaches the user, and no commit gets lost."""

import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openmed.errors import BadInput, ResourceError
from pipeline.tools.git import check_branch, check_commit, disk_is_full, dvc, git, run


@pytest.fixture
def repo(tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@localhost")
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    return folder


def test_only_a_branch_with_a_commit_takes_new_commits(repo):
    for check in (check_commit, check_branch):
        with pytest.raises(BadInput, match="has no commit yet: commit the project first"):
            check(repo)
    git(repo, "commit", "--quiet", "--allow-empty", "--message", "first")
    check_commit(repo)
    check_branch(repo)
    git(repo, "checkout", "--quiet", "--detach")
    with pytest.raises(BadInput, match=r"detached HEAD.*`git switch -c NAME`"):
        check_branch(repo)
    git(repo, "switch", "--quiet", "--create", "films")
    check_branch(repo)


def test_what_dvc_refuses_is_told_in_its_own_words(repo):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=repo, check=True)
    with pytest.raises(
        ResourceError, match=r"`dvc add absent` failed in .*repo: ERROR: .*absent.*does not exist"
    ):
        dvc(repo, "add", "absent")
    with pytest.raises(ResourceError, match="no remote"):
        dvc(repo, "push")


def test_variables_of_a_hook_lead_nowhere_else(repo, tmp_path, monkeypatch):
    git(repo, "commit", "--quiet", "--allow-empty", "--message", "first")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "kept")
    (repo / "file").touch()
    git(repo, "add", "file")
    git(repo, "commit", "--quiet", "--message", "second")
    assert git(repo, "log", "--format=%an %s", "--max-count=1") == "kept second"
    assert not (tmp_path / "elsewhere").exists()


def test_stages_run_on_the_interpreter_that_runs_this_whatever_the_path_says(repo, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", "/bin"]))
    done = run(repo, "sh", "-c", "command -v python")
    assert Path(done.stdout.strip()).parent == Path(sys.executable).parent


def test_a_full_disk_is_known_by_what_numpy_and_sqlite_say_of_it(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as numpy_error:
            np.save(tmp_path / "array", np.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as sqlite_error:
        database.execute("CREATE TABLE films (pixels)")
        database.execute("INSERT INTO films VALUES (zeroblob(100000))")
    for error in (numpy_error, sqlite_error):
        assert disk_is_full(f"ERROR: unexpected error - {error.value}")
    assert disk_is_full("OSError: Not enough free space to write 32000000 bytes after offset 128")
    assert not disk_is_full("ERROR: unexpected error - unable to open database file")
