"""A worker on another host: what it needs, what it becomes and what it writes down."""

import configparser
import os
import socket
import stat
from pathlib import Path

import pytest

from openmed.errors import BadInput
from pipeline.local import airflow_variables
from pipeline.local.worker import run_worker

ROOT = Path(__file__).parents[3]
NEEDED = {
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "https://airflow.hospital/execution/",
    "AIRFLOW__CELERY__BROKER_URL": "redis://:hidden@broker.hospital/0",
    "AIRFLOW__CELERY__RESULT_BACKEND_CMD": "cat /etc/openmed/results",
}


@pytest.fixture
def host(monkeypatch):
    """A host with the packages and the variables of a worker; what it would become is written down."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        monkeypatch.delenv(name)
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(airflow_variables, "_installed", lambda _: True)
    became = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    monkeypatch.chdir(ROOT)
    return became


def test_a_worker_reads_broker_and_api_from_a_file_of_its_owner_and_listens_nowhere(
    host, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OPENMED_SITE_SECRET", "hidden")
    monkeypatch.setattr(socket, "gethostname", lambda: "b")
    run_worker(ROOT, tmp_path, "default,gpu", 2)
    ((_, command, environment),) = host
    assert command[1:4] == ["-m", "pipeline.local.celery_worker", "--skip-serve-logs"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options == {"--queues": "default,gpu", "--concurrency": "2", "--celery-hostname": "default-gpu@b"}
    assert not [value for value in (*command, *environment.values()) if "hidden" in value]
    assert "hidden" not in capsys.readouterr().out
    folder = tmp_path / "worker"
    assert environment["AIRFLOW_HOME"] == str(folder)
    assert Path(environment["OPENMED_SITE_SECRET_FILE"]).read_text() == "hidden"
    written = configparser.ConfigParser()
    written.read(folder / "airflow.cfg")
    assert written["celery"]["broker_url"] == NEEDED["AIRFLOW__CELERY__BROKER_URL"]
    assert written["core"]["execution_api_server_url"] == "https://airflow.hospital/execution/"
    assert written["core"]["dags_folder"] == str(ROOT / "dags")
    # Its accounts are those of Airflow's own host.
    assert not (folder / "passwords.json").exists()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("missing", NEEDED)
def test_what_a_worker_lacks_is_named(host, tmp_path, monkeypatch, missing):
    monkeypatch.delenv(missing)
    with pytest.raises(BadInput, match=rf"a worker needs {missing.removesuffix('_CMD')}, the same as"):
        run_worker(ROOT, tmp_path, "default", 1)
    assert not host


def test_a_worker_without_celery_says_how_to_install_it(host, tmp_path, monkeypatch):
    monkeypatch.setattr(airflow_variables, "_installed", lambda _: False)
    with pytest.raises(BadInput, match="apache-airflow-providers-celery: `make distributed`"):
        run_worker(ROOT, tmp_path, "default", 1)
