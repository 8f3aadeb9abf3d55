"""Where the project and its state are, and the settings its tools need.

Importing it loads the standard library alone, so that the command answers at once.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from openmed.errors import BadInput, ResourceError

_GRAPH_FILE = "dvc.yaml"
_OWNER_ALONE = 0o077
# Programs differ in which of the two they read.
_NO_PROXY = ("NO_PROXY", "no_proxy")

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
    from pipeline.settings.variables import variables

    if named := variables().project:
        root = named.expanduser().resolve()
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
    from pipeline.settings.variables import variables

    named = variables().home
    return (named.expanduser() if named else project_root() / ".openmed").resolve()


def state_folder(folder: Path | None = None) -> Path:
    """Returns a state folder, `home()` by default, and lets its owner alone read what is written from now on.

    Films, scores and secrets lie in it, whatever the umask of a shell says.
    """
    folder = folder or home()
    os.umask(_OWNER_ALONE)
    folder.mkdir(parents=True, exist_ok=True)
    # Somebody else's folder stays as it is, and so does a project that is its own state folder.
    if folder.stat().st_uid == os.geteuid() and not (folder / _GRAPH_FILE).exists():
        with suppress(OSError):  # a file system may know no owners
            folder.chmod(0o700)
    return folder


def checkpoint_folder(state: Path, workspace: Path, architecture: str) -> Path:
    """Returns where a training keeps its state, given the state folder; apart for every workspace.

    The workspace of a run has the same on every host, wherever the state folder lies there. It is outside the
    outputs, which DVC deletes before a stage runs. With "*" it is a pattern for all.
    """
    outputs, state_path = (workspace / "artifacts").resolve(), state.resolve()
    place = outputs.relative_to(state_path) if outputs.is_relative_to(state_path) else outputs
    mark = hashlib.sha256(str(place).encode()).hexdigest()[:12]
    return state / "checkpoints" / f"{mark}-{architecture}"


def tracking_uri() -> str:
    """Returns the address of the MLflow store: MLFLOW_TRACKING_URI or an SQLite file in `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(home() / "mlflow.db", "+pysqlite")


def sqlite_address(file: Path, driver: str = "") -> str:
    """Returns the address of an SQLite file as SQLAlchemy reads it, whatever characters its path has.

    Args:
        file: Absolute path.
        driver: Named in an address with escapes alone. MLflow makes the folder of an address that names no
            driver, and takes escapes for characters of the folder's name.
    """
    if set("?%") & set(str(file)):
        return f"sqlite{driver}:///{quote(str(file))}"
    return f"sqlite:///{file}"


def environment() -> None:
    """Sets how the tools behave: no telemetry, no pickle, short waits, no proxy for this machine itself.

    What somebody has set stays; to NO_PROXY this machine is added.
    """
    os.umask(_OWNER_ALONE)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(without_proxy(os.environ))


def without_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns NO_PROXY and no_proxy with this machine added to the hosts that some variables name.

    A proxy would get the tokens of calls that never leave this machine, and cannot reach it.
    """
    named = [host for name in _NO_PROXY for host in variables.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys(filter(None, [*map(str.strip, named), "127.0.0.1", "localhost"])))
    return dict.fromkeys(_NO_PROXY, hosts)


@contextmanager
def locked(what: str, *, wait_s: float = -1) -> Iterator[None]:
    """Lets one process or thread of this state folder do `what` at a time; a killed holder lets go.

    Raises:
        ResourceError: Another one holds it for longer than `wait_s` seconds; negative waits for ever.
    """
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(state_folder() / f"{what}.lock", wait_s).acquire()
    except Timeout:
        raise ResourceError(
            f"another command works on the {what}, for {wait_s:g} s by now: try again when it has ended"
        ) from None
    with lock:
        yield
