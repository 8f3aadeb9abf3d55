"""Airflow for the DAG tests: a home of its own, set before anything imports airflow."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_HOME = tempfile.mkdtemp(prefix="openmed-airflow-tests-")

os.environ["AIRFLOW_HOME"] = _HOME
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(ROOT / "dags")
sys.path.insert(0, str(ROOT / "dags"))

from tests.dags.hosts import begun, hosts, registered, template  # noqa: E402, F401


@pytest.fixture(autouse=True)
def state_folder(tmp_path, monkeypatch):
    """The secret that seals what tasks hand on, and their workspaces, stay in the folder of the test."""
    import host

    monkeypatch.setattr(host, "HOME", tmp_path / "state")
    return tmp_path / "state"


def pytest_sessionfinish():
    """Takes the temporary home away."""
    shutil.rmtree(_HOME, ignore_errors=True)
