"""A worker of Airflow's Celery executor on this host, which runs the tasks of some queues."""

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from pipeline.local import airflow_variables
from pipeline.local.airflow_settings import AirflowSettings
from pipeline.settings.project import state_folder


def run_worker(project: Path, home: Path, queues: str, slots: int) -> NoReturn:
    """Becomes the worker, with what Airflow's own variables say of broker, API and logs.

    It serves no logs, whose server would listen on every interface: they go to the storage that
    AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER names when a task has ended.

    Args:
        project: The checkout of this host.
        home: Its state folder.
        queues: Separated by commas.
        slots: How many tasks may run at once.

    Raises:
        BadInput: A variable that it needs is missing, or is none that it takes.
    """
    given = airflow_variables.given(os.environ, worker=True)
    state_folder(home)
    settings = AirflowSettings(project.resolve(), home.resolve(), 8080, None, slots, given, name="worker")
    settings.write_configuration()
    print(f"Taken from the environment: {', '.join(airflow_variables.names(given))}.", flush=True)
    # Two workers of one host need two names.
    name = f"{queues.replace(',', '-')}@{socket.gethostname()}"
    arguments = ["--skip-serve-logs", "--queues", queues, "--concurrency", str(slots)]
    arguments += ["--celery-hostname", name]
    command = [sys.executable, "-m", "pipeline.local.celery_worker", *arguments]
    os.chdir(home)
    os.execve(sys.executable, command, settings.environment())
