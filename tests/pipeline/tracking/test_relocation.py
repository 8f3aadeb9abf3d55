"""A state folder that was moved, copied, or has a strange name serves its own files and no others."""

import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from openmed.errors import ResourceError
from openmed.files import sha256_file
from pipeline import registry
from pipeline.inference import assemble, predict_films
from pipeline.tracking.relocation import relocate
from pipeline.tracking.store import connect
from pipeline.tracking.versions import address_of
from tests.pipeline.conftest import make_workspace, register

STRANGE = "my films é #1 100%20?x=y;z&"


def contents(folder):
    return {path: sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def addresses(home):
    """Every address that MLflow's tables hold, from the tables themselves."""
    with sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True) as store:
        return "\n".join(line for line in store.iterdump() if "file://" in line)


def broken(version="1"):
    return [link.problem for link in registry.verify(version) if link.problem]


@pytest.fixture
def copied(shared, tmp_path, monkeypatch):
    """A copy of a state folder with one version, and its workspace."""
    home = tmp_path / "elsewhere" / "home"
    shutil.copytree(shared[0], home)
    monkeypatch.setenv("OPENMED_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


def test_a_copy_reads_and_writes_its_own_files_and_leaves_the_original(copied, shared, capsys):
    original = contents(shared[0])
    assert registry.list_versions()[0].version == "1"
    assert f"was moved or copied to {copied}" in capsys.readouterr().err
    assert str(registry.artifact("1", "report.html")).startswith(str(copied))
    with connect() as client:
        run = client.create_run(client.get_experiment_by_name("openmed-cxr").experiment_id)
        client.log_text(run.info.run_id, "x", "new.txt")
    assert [path.parent.name for path in copied.rglob("new.txt")] == ["artifacts"]
    assert contents(shared[0]) == original
    registry.list_versions()
    assert capsys.readouterr().err == ""
    # Tags tell what was, and so they keep the address of the day.
    moved = [line for line in addresses(copied).splitlines() if "version_tags" not in line]
    assert moved and not any(shared[0].as_uri() in line for line in moved)


def test_every_link_of_a_moved_version_is_intact_and_it_answers(copied, tmp_path, shared, monkeypatch):
    broken()
    copied.rename(tmp_path / STRANGE)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / STRANGE))
    assert broken() == []
    film = next((shared[1] / "data/films").rglob("*.png"))
    address = f"models:/{registry.MODEL_NAME}/1"
    (answer,) = predict_films(assemble([address]), [film])
    assert answer.label in ("NORMAL", "PNEUMONIA")


def test_a_folder_of_any_name_keeps_a_registry_and_nothing_lies_beside_it(tmp_path, monkeypatch):
    home = tmp_path / "state" / STRANGE
    monkeypatch.setenv("OPENMED_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = make_workspace(tmp_path / "workspace")
    register(workspace)
    assert broken() == [] and registry.list_versions()[0].version == "1"
    assert Path(address_of("1", "report.html")).read_text() == "<p>Report</p>"
    assert list(home.parent.iterdir()) == [home]
    assert (home / "mlflow.db").is_file() and (home / "mlartifacts").is_dir()


def test_tables_that_came_without_their_files_are_read_and_add_none_to_the_original(copied, shared, tmp_path):
    shutil.rmtree(copied / "mlartifacts")
    before = contents(shared[0])
    assert broken() == []
    with pytest.raises(ResourceError, match="came without its files"):
        register(make_workspace(tmp_path / "more"), "another")
    with pytest.raises(ResourceError, match="came without its files"):
        registry.keep_review("1", "<p>Page</p>", {}, {})
    assert contents(shared[0]) == before


def test_tables_whose_files_are_nowhere_are_refused(copied, tmp_path, monkeypatch):
    registry.list_versions()  # they are told that they are here now
    (copied / "mlartifacts").rename(tmp_path / "gone")
    alone = copied.rename(tmp_path / "alone")
    monkeypatch.setenv("OPENMED_HOME", str(alone))
    before = hashlib.sha256((alone / "mlflow.db").read_bytes()).digest()
    with pytest.raises(ResourceError, match="came without its files"):
        registry.list_versions()
    assert hashlib.sha256((alone / "mlflow.db").read_bytes()).digest() == before


def test_another_name_of_the_same_folder_is_no_move(copied, tmp_path, monkeypatch, capsys):
    registry.list_versions()
    before = addresses(copied)
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").touch()
    (project / ".openmed").symlink_to(copied)
    monkeypatch.delenv("OPENMED_HOME")
    monkeypatch.chdir(project)
    capsys.readouterr()
    registry.list_versions()
    # As under a second mount: the name differs, the folder does not.
    relocate(project / ".openmed", "openmed-cxr")
    assert addresses(copied) == before and capsys.readouterr().err == ""


def test_a_store_that_is_named_is_never_rewritten(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copied}/mlflow.db")
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "other"))
    before = addresses(copied)
    registry.list_versions()
    assert addresses(copied) == before
