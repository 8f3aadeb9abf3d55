"""Registries to decide on at once: a state folder with versions, and two hosts that share its store."""

import shutil
import subprocess

import pytest

from pipeline.ledger import repository
from pipeline.tracking.store import MODEL_NAME, connect

SHOWN = {"champion": None, "verdict": "PASS"}


def git(folder, *arguments):
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def log(folder, form="%s"):
    return git(folder, "log", "--reverse", f"--format={form}", repository.BRANCH).splitlines()


@pytest.fixture
def three(store):
    """Three versions without a model."""
    with connect() as client:
        client.create_registered_model(MODEL_NAME)
        for _ in range(3):
            run = client.create_run("1")
            client.create_model_version(MODEL_NAME, run.info.artifact_uri, run.info.run_id)
    return store


@pytest.fixture
def hosts(three, tmp_path, monkeypatch):
    """Two state folders, each with a project of its own, that share the store of `three`."""
    shutil.move(three / "mlflow.db", tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        (folder / "home").mkdir(parents=True)
        (folder / "project").mkdir()
        (folder / "project/dvc.yaml").write_text("stages: {}\n")
        git(folder / "project", "init", "--quiet")
    return folders


def at(host, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(host / "home"))
    monkeypatch.setenv("OPENMED_PROJECT", str(host / "project"))


@pytest.fixture
def remote(hosts, tmp_path, monkeypatch):
    """The git remote of the record of both hosts."""
    git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    monkeypatch.setenv("OPENMED_RECORD_REMOTE", str(tmp_path / "remote.git"))
    return tmp_path / "remote.git"
