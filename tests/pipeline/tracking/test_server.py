import os
import stat

import mlflow
import pytest

from openmed.errors import BadInput, ResourceError
from openmed.files import read_json
from pipeline.local.services import Services
from pipeline.tracking import doors, server
from pipeline.tracking.store import EXPERIMENT, connect
from tests.mlflow_server import free_port, running


class Became(Exception):
    """What this process would have become."""


@pytest.fixture
def become(monkeypatch, tmp_path):
    """Runs `main` up to where it becomes the server: (command, environment)."""
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path))

    def execve(path, command, environment):
        raise Became(command, environment)

    monkeypatch.setattr(os, "execve", execve)

    def run(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Became) as became:
            server.main(5000)
        return became.value.args

    return run


def destination(command):
    return command[command.index("--artifacts-destination") + 1]


def test_artifacts_lie_in_the_state_folder_unless_mlflows_variable_names_a_place(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_ARTIFACTS_DESTINATION", raising=False)
    assert destination(server.command(5000)) == (tmp_path / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", "s3://models")
    assert destination(server.command(5000)) == "s3://models"


def test_a_database_server_is_not_asked_before_the_server_itself_asks_it(become):
    # Nobody listens at port 1.
    address = "postgresql://mlflow:secret@127.0.0.1:1/mlflow"
    command, environment = become(MLFLOW_TRACKING_URI=address)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == address
    assert not any("secret" in part for part in command)


def test_mlflows_own_variable_for_the_store_comes_before_that_of_its_clients(become):
    address = "postgresql://mlflow:secret@127.0.0.1:1/mlflow"
    command, environment = become(MLFLOW_BACKEND_STORE_URI=address, MLFLOW_TRACKING_URI="sqlite:///other.db")
    assert environment["MLFLOW_BACKEND_STORE_URI"] == address and not any(
        "secret" in part for part in command
    )


def test_tasks_reach_a_named_store_through_the_server_and_never_see_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://mlflow:secret@db/mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = server.given(os.environ)
    services = Services(tmp_path, tmp_path, mlflow_port=5000, store=store)
    task, mlflow_server = services.environment("scheduler"), services.environment("mlflow")
    assert task["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000" and "secret" not in str(task)
    assert task["OPENMED_MLFLOW_PASSWORD_FILE"] == str(doors.admin_file(tmp_path))
    assert mlflow_server["MLFLOW_BACKEND_STORE_URI"] == store["MLFLOW_BACKEND_STORE_URI"]
    # A demo, which is given none, does not use it either.
    assert "secret" not in str(Services(tmp_path, tmp_path).environment("mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.hospital:5000")
    with pytest.raises(BadInput, match="and MLFLOW_TRACKING_URI a server elsewhere: keep one of them"):
        Services(tmp_path, tmp_path, store=store)
    with pytest.raises(BadInput, match="MLFLOW_ARTIFACTS_DESTINATION needs a database server"):
        server.given({"MLFLOW_ARTIFACTS_DESTINATION": "s3://models"})


@pytest.mark.slow
def test_a_task_logs_through_the_server_with_the_password_of_a_file(tmp_path, monkeypatch):
    home, files = tmp_path / "home", tmp_path / "elsewhere"
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    # Not in the user's home either.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENMED_HOME", str(home))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", files.as_uri())
    port = free_port()
    with running(["pipeline.tracking.server", str(port)], tmp_path, port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(ResourceError, match="OPENMED_MLFLOW_PASSWORD"), connect() as client:
            client.search_experiments()
        secret = doors.admin_file(home)
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert secret.read_text() == read_json(doors.password_file(home))["admin"]
        monkeypatch.setenv("OPENMED_MLFLOW_PASSWORD_FILE", str(secret))
        try:
            with connect(adds_files=True) as client:
                experiment = client.get_experiment_by_name(EXPERIMENT)
                run = client.create_run(experiment.experiment_id)
                client.log_text(run.info.run_id, "seen", "note.txt")
        finally:
            for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
                os.environ.pop(name, None)
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    assert [path.read_text() for path in files.rglob("note.txt")] == ["seen"]
    assert not (home / "mlflow.db").exists() and (tmp_path / "elsewhere.db").exists()
