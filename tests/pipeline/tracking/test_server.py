import os

import pytest

from pipeline.tracking import server


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
