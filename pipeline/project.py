"""Where the project and its state are, and the settings its tools need. Standard library only."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openmed.errors import BadInput

_GRAPH_FILE = "dvc.yaml"

_DEFAULTS = {
    # Nothing phones home.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    # A pickle runs code when it is loaded; MLflow would load one by default.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # With MLflow's own defaults one call to a server that is down hangs for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow warns where git is not installed; it is not needed to serve a model.
    "GIT_PYTHON_REFRESH": "quiet",
}


def project_root() -> Path:
    """Returns the checkout to work in: OPENMED_PROJECT, or the nearest folder that holds dvc.yaml.

    Raises:
        BadInput: Neither the named folder nor any above the current one is a project.
    """
    named = os.environ.get("OPENMED_PROJECT")
    if named:
        root = Path(named).expanduser().resolve()
        if not (root / _GRAPH_FILE).is_file():
            raise BadInput(
                f"OPENMED_PROJECT is {named}, which holds no {_GRAPH_FILE}: name the project's folder"
            )
        return root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / _GRAPH_FILE).is_file():
            return folder
    raise BadInput(
        f"{here} is in no project: go to a folder that holds {_GRAPH_FILE}, or set OPENMED_PROJECT"
    )


def home() -> Path:
    """Returns the folder of all state that git does not hold: OPENMED_HOME or `.openmed` in the project.

    Raises:
        BadInput: OPENMED_HOME is not set and there is no project.
    """
    named = os.environ.get("OPENMED_HOME")
    return Path(named).expanduser().resolve() if named else project_root() / ".openmed"


def tracking_uri() -> str:
    """Returns the address of the MLflow store: MLFLOW_TRACKING_URI or an SQLite file in `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def environment() -> None:
    """Sets, where nothing else is set, how the tools behave: no telemetry, no pickle, short waits."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def locked(what: str) -> Iterator[None]:
    """Lets one process or thread of this state folder do `what` at a time; a killed holder lets go."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{what}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
