"""The branch of the record: two who write at once lose nothing, and what is rewritten is named."""

import os
import shutil
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from openmed.errors import IntegrityError, ResourceError
from pipeline import ledger
from pipeline.ledger import decisions, record, repository
from pipeline.ledger.champion import alias_problem
from pipeline.ledger.entry import PROMOTED
from pipeline.ledger.mirror import check, read
from pipeline.tracking.store import MODEL_NAME, connect
from tests.pipeline.conftest import crown
from tests.pipeline.ledger.conftest import SHOWN, at, git, log


def complete():
    """Reads the record, and holds it against store and aliases as `verify` does."""
    with connect() as client:
        shown = read(client)
        entries = record.written(shown)
        check(shown, entries, complete=True)
        assert alias_problem(entries) is None
    return entries


def test_every_entry_is_a_commit_that_tells_what_was_done(three):
    crown("1")
    ledger.hold("2", by="Dr Adams", reason="misses apical opacities")
    with connect() as client:
        entries = record.read(client)
    assert log(three / "record.git") == [
        "1 promoted version 1 by Dr Adams (clinical)",
        "2 moved version 1",
        "3 held version 2 by Dr Adams",
    ]
    assert log(three / "record.git", "%b")[::2] == [entry.to_text() for entry in entries]
    assert complete() == entries


@pytest.mark.parametrize("shared", ["one repository", "a remote"])
def test_eight_writers_of_two_state_folders_lose_and_double_nothing_in_ten_kills(
    hosts, shared, tmp_path, monkeypatch
):
    if shared == "a remote":
        git(tmp_path, "init", "--quiet", "--bare", "remote.git")
        monkeypatch.setenv("OPENMED_RECORD_REMOTE", str(tmp_path / "remote.git"))
    else:
        shutil.rmtree(hosts[1] / "project")
        (hosts[1] / "project").symlink_to(hosts[0] / "project")
    command = [sys.executable, "-m", "tests.pipeline.ledger.writers", *map(str, hosts)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=True)
    assert "FAILED" not in done.stdout, done.stdout
    at(hosts[0], monkeypatch)
    # Whatever a kill left half done is finished by the next decision.
    decisions.show("1", SHOWN)
    champion = ledger.champion()
    crown("1" if champion == "2" else "2", champion)
    entries = complete()
    at(hosts[1], monkeypatch)
    assert complete() == entries
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    marks = [entry.content.get("mark") or entry.content.get("comment") for entry in entries]
    acknowledged = (tmp_path / "acknowledged").read_text().split()
    for mark in acknowledged:
        assert marks.count(mark) == 1, mark
    assert len(acknowledged) >= 20
    moves = [entry for entry in entries if entry.event == PROMOTED]
    for before, after in pairwise(moves):
        assert after.content["replaced"] == before.version


def test_a_host_that_does_not_share_the_record_is_told_so_and_destroys_nothing(hosts, monkeypatch):
    at(hosts[0], monkeypatch)
    decisions.show("1", SHOWN)
    at(hosts[1], monkeypatch)
    # It takes over what the store shows; after that each keeps its own.
    decisions.show("1", SHOWN)
    at(hosts[0], monkeypatch)
    with pytest.raises(IntegrityError, match=r"entry 2, which the record lacks.*OPENMED_RECORD_REMOTE"):
        decisions.show("2", SHOWN)
    assert len(log(hosts[0] / "project")) == 1


def test_whoever_names_the_store_of_a_state_folder_shares_its_record(three, tmp_path, monkeypatch):
    decisions.show("1", SHOWN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{three}/mlflow.db")
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "laptop"))
    decisions.show("2", SHOWN)
    monkeypatch.setenv("OPENMED_HOME", str(three))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    decisions.show("3", SHOWN)
    assert [entry.version for entry in complete()] == ["1", "2", "3"]
    assert len(log(three / "record.git")) == 3


def test_a_remote_that_does_not_answer_refuses_a_decision_and_writes_nothing(hosts, monkeypatch, tmp_path):
    at(hosts[0], monkeypatch)
    decisions.show("1", SHOWN)
    monkeypatch.setenv("OPENMED_RECORD_REMOTE", str(tmp_path / "gone.git"))
    with pytest.raises(ResourceError, match="record of decisions"):
        decisions.show("1", SHOWN)
    assert len(log(hosts[0] / "project")) == 1


def test_a_store_that_was_rewritten_as_a_whole_is_named(three, tmp_path):
    crown("1")
    crown("2", "1")
    kept = tmp_path / "kept.git"
    shutil.copytree(three / "record.git", kept)
    shutil.rmtree(three / "record.git")
    # Whoever rewrites the store has the means to write a record that holds in itself.
    with sqlite3.connect(three / "mlflow.db") as database:
        for table in ("model_version_tags", "registered_model_tags", "registered_model_aliases"):
            database.execute(f"DELETE FROM {table}")
    crown("3")
    shutil.rmtree(three / "record.git")
    shutil.copytree(kept, three / "record.git")
    with pytest.raises(IntegrityError, match=r"entry 1 of the record \(promoted, version 1\) was changed"):
        ledger.history()


@pytest.mark.parametrize("lost", [1, 3])
def test_an_entry_that_was_taken_off_the_branch_is_named(three, lost):
    crown("1")
    crown("2", "1")
    git(
        three / "record.git", "update-ref", f"refs/heads/{repository.BRANCH}", f"{repository.BRANCH}~{lost}"
    ) if (lost < 4) else git(three / "record.git", "update-ref", "-d", f"refs/heads/{repository.BRANCH}")
    if lost == 4:
        # All that is left is what the store shows, from which it is taken over again, to the byte.
        assert [entry.number for entry in complete()] == [1, 2, 3, 4]
        return
    with pytest.raises(IntegrityError, match=f"entry {5 - lost}, which the record lacks"):
        ledger.history()


def test_a_branch_that_is_gone_is_made_again_from_what_the_store_shows(three):
    crown("1")
    before = log(three / "record.git", "%H")
    shutil.rmtree(three / "record.git")
    assert [entry.number for entry in complete()] == [1, 2] and log(three / "record.git", "%H") == before


def test_a_branch_that_is_damaged_is_not_taken_for_a_missing_one(three):
    crown("1")
    ref = three / "record.git/refs/heads" / repository.BRANCH
    for content in ("", "0123", f"{'1' * 40}\n"):
        ref.write_text(content)
        with pytest.raises((IntegrityError, ResourceError), match=r"record|damaged"):
            ledger.history()
        assert ref.read_text() == content


def test_a_commit_that_is_no_entry_is_named(three):
    crown("1")
    folder = three / "record.git"
    tree = git(folder, "rev-parse", f"{repository.BRANCH}^{{tree}}")
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    forged = git(folder, *identity, "commit-tree", "-p", repository.BRANCH, "-m", "3 held", "-m", "{}", tree)
    git(folder, "update-ref", f"refs/heads/{repository.BRANCH}", forged)
    with pytest.raises(IntegrityError, match="entry 3 of the record was changed"):
        ledger.history()


def test_repair_shows_the_record_anew_where_the_store_was_rewritten(three):
    crown("1")
    crown("2", "1")
    with connect() as client:
        client.delete_model_version_tag(MODEL_NAME, "1", "audit.000002")
        client.set_model_version_tag(MODEL_NAME, "3", "audit.000009", "{}")
    with pytest.raises(IntegrityError, match=r"entry 2 of the record \(moved, version 1\) is missing"):
        ledger.history()
    ledger.repair(by="Dr Adams", reason="an account of the machine wrote into MLflow")
    assert [entry.event for entry in complete()][-2:] == ["repaired", "moved"]


def test_a_store_that_is_gone_is_named_with_both_ways_out(three, migrated):
    crown("1")
    shutil.copy(migrated, three / "mlflow.db")
    with pytest.raises(
        IntegrityError, match=r"has 2 entries and the tracking store shows none.*git branch -m"
    ):
        ledger.history()
    git(three / "record.git", "branch", "-m", repository.BRANCH, "openmed-record-old")
    assert ledger.history() == [] and ledger.champion() is None


def test_repair_takes_nothing_from_the_store_that_a_branch_set_back_has_lost(three):
    crown("1")
    crown("2", "1")
    git(three / "record.git", "update-ref", f"refs/heads/{repository.BRANCH}", f"{repository.BRANCH}~2")
    with pytest.raises(IntegrityError, match="entry 2, but the tracking store goes on with 3"):
        ledger.repair(by="Dr Adams", reason="it looks odd")
    git(three / "record.git", "update-ref", f"refs/heads/{repository.BRANCH}", f"{repository.BRANCH}@{{1}}")
    assert len(complete()) == 4


def test_a_fresh_clone_does_not_believe_the_store_where_its_remote_has_a_record(hosts, monkeypatch, tmp_path):
    at(hosts[0], monkeypatch)
    decisions.show("1", SHOWN)
    shutil.rmtree(hosts[1] / "project")
    git(tmp_path, "clone", "--quiet", hosts[0] / "project", hosts[1] / "project")
    (hosts[1] / "project/dvc.yaml").write_text("stages: {}\n")
    at(hosts[1], monkeypatch)
    with pytest.raises(ResourceError, match="at origin/openmed-record and not in this clone"):
        ledger.history()


def test_commits_are_signed_where_git_signs(three, tmp_path):
    decisions.show("1", SHOWN)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    allowed = tmp_path / "allowed"
    allowed.write_text(f"openmed@localhost {key.with_suffix('.pub').read_text()}")
    folder = three / "record.git"
    for name, value in (
        ("commit.gpgsign", "true"),
        ("gpg.format", "ssh"),
        ("user.signingkey", str(key)),
        ("gpg.ssh.allowedSignersFile", str(allowed)),
    ):
        git(folder, "config", name, value)
    decisions.show("1", SHOWN)
    assert log(folder, "%G?") == ["N", "G"]
