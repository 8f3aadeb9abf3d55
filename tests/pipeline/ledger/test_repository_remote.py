"""What is usual between gits: clones that are behind or ahead, hooks, locks, checkouts, other languages."""

import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from openmed.errors import IntegrityError, ResourceError
from pipeline import ledger
from pipeline.ledger import decisions, repository
from tests.pipeline.ledger.conftest import SHOWN, at, git, log


def show(host, monkeypatch):
    at(host, monkeypatch)
    return decisions.show("1", SHOWN)


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_entries_that_were_written_without_the_remote_are_pushed_with_the_next(hosts, remote, monkeypatch):
    show(hosts[0], monkeypatch)
    monkeypatch.delenv("OPENMED_RECORD_REMOTE")
    show(hosts[0], monkeypatch)
    monkeypatch.setenv("OPENMED_RECORD_REMOTE", str(remote))
    assert len(ledger.history()) == 2 and len(log(remote)) == 1
    assert show(hosts[0], monkeypatch).number == 3
    assert log(remote, "%H") == log(hosts[0] / "project", "%H") and len(log(remote)) == 3


def test_a_branch_that_is_checked_out_is_still_brought_up_to_date(hosts, remote, monkeypatch, tmp_path):
    show(hosts[1], monkeypatch)
    git(hosts[1] / "project", "worktree", "add", "--quiet", tmp_path / "looked at", repository.BRANCH)
    show(hosts[0], monkeypatch)
    at(hosts[1], monkeypatch)
    assert len(ledger.history()) == 2
    assert git(tmp_path / "looked at", "status", "--porcelain") == ""


def test_all_readers_of_a_machine_may_find_the_same_new_entry_at_once(hosts, remote, monkeypatch):
    show(hosts[1], monkeypatch)
    for number in range(2, 5):
        show(hosts[0], monkeypatch)
        at(hosts[1], monkeypatch)
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda _: repository.texts(), range(8)))
        assert [len(texts) for _, texts in read] == [number] * 8


def test_a_remote_that_was_rewritten_is_named(hosts, remote, monkeypatch):
    show(hosts[0], monkeypatch)
    show(hosts[0], monkeypatch)
    tree = git(remote, "rev-parse", f"{repository.BRANCH}^{{tree}}")
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    other = git(remote, *identity, "commit-tree", "-p", f"{repository.BRANCH}~1", "-m", "2 shown", tree)
    git(remote, "update-ref", f"refs/heads/{repository.BRANCH}", other)
    with pytest.raises(IntegrityError, match="one of them was rewritten"):
        ledger.history()
    assert len(log(hosts[0] / "project")) == 2


def test_a_remote_that_takes_no_entry_says_why_at_once(hosts, remote, monkeypatch):
    show(hosts[0], monkeypatch)
    executable(
        remote / "hooks/pre-receive", f"echo x >> {remote}/asked; echo the branch is protected >&2; exit 1"
    )
    with pytest.raises(ResourceError, match="the branch is protected"):
        show(hosts[0], monkeypatch)
    assert (remote / "asked").read_text() == "x\n" and len(log(hosts[0] / "project")) == 1


def test_a_push_whose_answer_got_lost_is_no_second_entry(hosts, remote, monkeypatch):
    show(hosts[0], monkeypatch)
    # git push fails when the other side dies after it moved the branch.
    executable(remote / "hooks/post-update", "kill -9 $PPID")
    show(hosts[0], monkeypatch)
    assert len(ledger.history()) == len(log(remote)) == 2


def test_hooks_of_the_project_are_not_asked(hosts, remote, monkeypatch, tmp_path):
    executable(hosts[0] / "project/.git/hooks/pre-push", f"touch {tmp_path}/asked; exit 1")
    show(hosts[0], monkeypatch)
    assert len(log(remote)) == 1 and not (tmp_path / "asked").exists()


def test_hosts_take_turns_in_every_language_of_git(hosts, remote, monkeypatch):
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    show(hosts[0], monkeypatch)
    executable(remote / "hooks/pre-receive", 'echo "language $LC_ALL" >&2; exit 1')
    with pytest.raises(ResourceError, match=r"language C .*failed to push"):
        show(hosts[0], monkeypatch)


def test_a_lock_that_a_killed_git_has_left_is_named(hosts, monkeypatch):
    show(hosts[0], monkeypatch)
    lock = hosts[0] / f"project/.git/refs/heads/{repository.BRANCH}.lock"
    lock.touch()
    monkeypatch.setattr(repository, "_SETTINGS", ("-c", "core.filesRefLockTimeout=100"))
    with pytest.raises(ResourceError, match=f"is locked: .* has left {lock}, to be removed"):
        show(hosts[0], monkeypatch)
    lock.unlink()
    assert show(hosts[0], monkeypatch).number == 2


def test_a_repository_that_cannot_be_written_is_named(hosts, monkeypatch):
    show(hosts[0], monkeypatch)
    lock = hosts[0] / f"project/.git/{repository.BRANCH}.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(ResourceError, match="cannot be written: Is a directory"):
        show(hosts[0], monkeypatch)


def test_a_shallow_clone_is_told_from_a_record_that_was_changed(hosts, remote, monkeypatch):
    for _ in range(3):
        show(hosts[0], monkeypatch)
    shutil.rmtree(hosts[1] / "project")
    url = f"file://{remote}"
    git(hosts[1], "clone", "--quiet", "--depth=1", f"--branch={repository.BRANCH}", url, "project")
    (hosts[1] / "project/dvc.yaml").write_text("stages: {}\n")
    at(hosts[1], monkeypatch)
    with pytest.raises(ResourceError, match="shallow: `git fetch --unshallow`"):
        ledger.history()
    git(hosts[1] / "project", "fetch", "--quiet", "--unshallow")
    assert len(ledger.history()) == 3


def test_a_repository_of_sha256_keeps_the_record_too(three, monkeypatch):
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    assert [decisions.show("1", SHOWN).number for _ in range(2)] == [1, 2]
    assert {len(commit) for commit in log(three / "record.git", "%H")} == {64}


def test_a_remote_that_hangs_is_an_outage_and_leaves_no_process(hosts, remote, monkeypatch, tmp_path):
    show(hosts[0], monkeypatch)
    executable(remote / "hooks/pre-receive", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(repository, "_REMOTE_ANSWERS_WITHIN_S", 1.0)
    began = time.monotonic()
    with pytest.raises(ResourceError, match="has not answered within 1 s"):
        show(hosts[0], monkeypatch)
    assert time.monotonic() - began < 20
    pid = (tmp_path / "pid").read_text().strip()
    assert subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout[:1] in "Z"
    executable(remote / "hooks/pre-receive", "exit 0")
    assert show(hosts[0], monkeypatch).number == 2


def test_a_decision_that_another_process_holds_up_ends_with_its_lock(hosts, monkeypatch):
    show(hosts[0], monkeypatch)
    lock = hosts[0] / f"project/.git/{repository.BRANCH}.lock"
    monkeypatch.setattr(repository, "_DECIDED_WITHIN_S", 0.2)
    with FileLock(lock), pytest.raises(ResourceError, match=f"has held {lock} for 0.2 s: end it"):
        show(hosts[0], monkeypatch)
    assert show(hosts[0], monkeypatch).number == 2


def test_a_lock_that_a_killed_git_has_left_at_the_remote_is_named(hosts, remote, monkeypatch):
    show(hosts[0], monkeypatch)
    lock = remote / f"refs/heads/{repository.BRANCH}.lock"
    lock.touch()
    monkeypatch.setattr(repository, "_REMOTE_LOCKED_S", 0.5)
    with pytest.raises(ResourceError, match=r"at the remote for 0.5 s: .* to be removed") as caught:
        show(hosts[0], monkeypatch)
    assert re.search(r"/remote\.git/\S*openmed-record\.lock there", str(caught.value))
    lock.unlink()
    assert show(hosts[0], monkeypatch).number == 2


@pytest.mark.parametrize("way", ["deleted", "set back"])
def test_entries_that_are_gone_at_the_remote_are_named(hosts, remote, monkeypatch, way):
    for _ in range(2):
        show(hosts[0], monkeypatch)
    reference = f"refs/heads/{repository.BRANCH}"
    git(remote, "update-ref", *(["-d", reference] if way == "deleted" else [reference, f"{reference}~1"]))
    with pytest.raises(IntegrityError, match=r"remote has lost entries.*deleted or set back"):
        show(hosts[0], monkeypatch)
    with pytest.raises(IntegrityError, match=r"lost entries") as caught:
        ledger.history()
    command = re.search("`(.*)`", str(caught.value))[1]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert show(hosts[0], monkeypatch).number == 3 and len(log(remote)) == 3


def test_a_new_record_begins_where_the_old_one_was_put_away_at_both_sides(hosts, remote, monkeypatch):
    show(hosts[0], monkeypatch)
    for folder in (remote, hosts[0] / "project"):
        git(folder, "branch", "-m", repository.BRANCH, "openmed-record-2026")
    assert repository.texts() == (None, [])


def test_git_that_tells_of_its_own_work_changes_nothing(hosts, remote, monkeypatch, tmp_path):
    for name in ("GIT_TRACE", "GIT_TRACE2", "GIT_TRACE_SETUP", "GIT_TRACE_PACKET"):
        monkeypatch.setenv(name, "1")
    settings = tmp_path / "gitconfig"
    settings.write_text("[trace2]\n\tnormalTarget = 2\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(settings))
    assert show(hosts[0], monkeypatch).number == 1 and len(ledger.history()) == 1
