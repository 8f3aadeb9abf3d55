"""What is usual between gits: clones that are behind or ahead, hooks, locks, checkouts, other languages."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

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
