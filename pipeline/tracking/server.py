"""The web page of the store: an MLflow server on loopback over the store that `connect` uses, with passwords.

MLFLOW_TRACKING_URI may name a database server, and MLFLOW_ARTIFACTS_DESTINATION object storage.

Hides MLflow's command line. Run as `python -m pipeline.tracking.server PORT`.
"""

import os
import sys
from collections.abc import Mapping

from openmed.errors import BadInput
from pipeline.settings import project
from pipeline.tracking import doors
from pipeline.tracking.relocation import ARTIFACTS
from pipeline.tracking.store import connect

LOOPBACK = "127.0.0.1"
STORE, FILES = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"


def given(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns MLflow's own variables that say where tables and files are; none where both are our own.

    Raises:
        BadInput: Files are to be elsewhere, and the tables are not.
    """
    named = {name: environment[name] for name in (STORE, FILES) if environment.get(name)}
    if named and STORE not in named:
        raise BadInput(f"{FILES} needs a database server for MLflow's tables: set {STORE}")
    return named


def command(port: int) -> list[str]:
    """Returns the command of the server; the address of the store is in its environment."""
    # Artifacts logged past the server lie in this folder too, and the server reads them there.
    folder = os.environ.get(FILES) or (project.home() / ARTIFACTS).as_uri()
    artifacts = ["--artifacts-destination", folder]
    address = ["--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *artifacts, *address]


def main(port: int) -> None:
    """Makes the store, if it is not there, and becomes the server."""
    project.environment()
    shared = os.environ.get(STORE)
    # An address may hold a password, which a command line would show to everybody.
    environment = os.environ | {STORE: shared or project.tracking_uri()}
    environment |= {"OPENMED_HOME": str(project.home()), **doors.write_settings(project.home())}
    # Whose password it is to ask for, the server must not be told by the caller.
    for name in ("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD"):
        environment.pop(name, None)
    # The server builds a fresh store too, and breaks it when a task does so at the same moment: `connect`
    # builds it under a lock. A database server keeps order itself, and what is made past this server would
    # have its artifacts in the current folder.
    if not shared and project.tracking_uri().startswith("sqlite"):
        with connect():
            pass
    os.execve(sys.executable, command(port), environment)


if __name__ == "__main__":
    main(int(sys.argv[1]))
