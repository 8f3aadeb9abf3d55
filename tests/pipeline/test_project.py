import os
import subprocess
import sys
from pathlib import Path

import pytest

from openmed.errors import BadInput
from pipeline import project


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("OPENMED_PROJECT", "OPENMED_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "a/b").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


def test_the_project_is_the_nearest_folder_above_with_a_graph(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "a/b")
    assert project.project_root() == checkout
    assert project.home() == checkout / ".openmed"
    assert project.tracking_uri() == f"sqlite:///{checkout}/.openmed/mlflow.db"


def test_the_environment_names_project_home_and_store(checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENMED_PROJECT", "checkout")
    assert project.project_root() == checkout
    monkeypatch.setenv("OPENMED_HOME", "state")
    assert project.home() == tmp_path / "state"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert project.tracking_uri() == "http://127.0.0.1:5000"


def test_a_folder_that_is_no_project_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not any((folder / "dvc.yaml").exists() for folder in tmp_path.parents):
        with pytest.raises(BadInput, match="is in no project"):
            project.project_root()
    monkeypatch.setenv("OPENMED_PROJECT", str(tmp_path))
    with pytest.raises(BadInput, match=r"holds no dvc\.yaml"):
        project.project_root()


def test_a_home_needs_no_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path))
    assert project.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_tools_neither_phone_home_nor_unpickle_unless_someone_said_so(monkeypatch):
    for name in project._DEFAULTS:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    project.environment()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["DVC_NO_ANALYTICS"] == "1"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"


def test_importing_it_loads_nothing_beyond_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import pipeline.project;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - {'pipeline', 'openmed'};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    root = Path(project.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
