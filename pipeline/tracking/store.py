"""The MLflow store: where it is, how it is made on first use, and its errors in one sentence.

Hides MLflow's global state and the races of a fresh SQLite file.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from openmed.errors import IntegrityError, ResourceError
from pipeline.settings import project
from pipeline.settings.project import locked
from pipeline.settings.variables import variables
from pipeline.tracking.relocation import ARTIFACTS, check_own_files, relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

MODEL_NAME = "openmed-cxr"
EXPERIMENT = "openmed-cxr"
# Stores that this process has found ready: asking again costs more than most of what is asked of them.
_READY: set[str] = set()
ENTRY_TAG = re.compile(r"audit\.(\d{6})")
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


@contextmanager
def connect(*, adds_files: bool = False) -> Iterator["MlflowClient"]:
    """Gives a client of the store and turns MLflow's errors into one sentence.

    Args:
        adds_files: Whether files are to be logged, which a store without files of its own refuses.
    """
    project.environment()
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = project.tracking_uri()
    own = "MLFLOW_TRACKING_URI" not in os.environ
    try:
        client = _client(mlflow, uri)
        if adds_files and own:
            check_own_files(project.home(), EXPERIMENT)
        yield client
    except MlflowException as error:
        first = str(error).strip().splitlines()[0].replace(uri, without_password(uri))[:300]
        if re.search(r"error code 40[13]\b", first):
            raise ResourceError(
                f"the model registry at {without_password(uri)} refuses this account: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or OPENMED_MLFLOW_PASSWORD, to one "
                "that may do that"
            ) from error
        raise ResourceError(
            f"the model registry at {without_password(uri)} cannot be used ({first}): "
            "check that it runs and MLFLOW_TRACKING_URI"
        ) from error
    except Exception as error:
        if not _is_of_database(error):
            raise
        raise ResourceError(
            f"the model registry at {without_password(uri)} cannot be used ({type(error).__name__}): its "
            "database is damaged, full or of another version of MLflow; restore it from its backup"
        ) from error


def _is_of_database(error: Exception) -> bool:
    # Told by name: only a local store loads these libraries, and they are slow to import.
    return any(
        kind.__module__.partition(".")[0] in ("sqlalchemy", "alembic", "sqlite3")
        for kind in type(error).__mro__
    )


def _client(mlflow: Any, uri: str) -> "MlflowClient":
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if uri.startswith("http"):
        _log_in()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # MLflow writes the address into the environment, where it would outlive a change of the state folder.
    if named is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    # A file of tables may have been taken away in the meantime.
    local = uri.startswith("sqlite")
    if uri in _READY and (not local or Path(unquote(uri.partition(":///")[2])).exists()):
        return mlflow.MlflowClient(uri, uri)
    # The first use of a fresh SQLite file builds its tables, which breaks when two processes do it at once.
    with locked("store"):
        if named is None:
            relocate(project.home(), EXPERIMENT)
        client = mlflow.MlflowClient(uri, uri)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            _create_experiment(client, (project.home() / ARTIFACTS).as_uri() if local else None)
    _READY.add(uri)
    return client


def _create_experiment(client: "MlflowClient", place: str | None) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(EXPERIMENT, place)
    except MlflowException:
        # Another host, which shares no lock with this one, was first.
        if client.get_experiment_by_name(EXPERIMENT) is None:
            raise


def _log_in() -> None:
    """Puts the password of a file where MLflow looks for it, in this process alone."""
    password = variables().mlflow_password.get_secret_value()
    if password and "MLFLOW_TRACKING_USERNAME" not in os.environ:
        os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}


def search(client: "MlflowClient", query: str) -> Iterator["ModelVersion"]:
    """Gives all versions that a query finds, page after page."""
    page = client.search_model_versions(query, max_results=1000)
    yield from page
    while page.token:
        page = client.search_model_versions(query, max_results=1000, page_token=page.token)
        yield from page


def registered_model(client: "MlflowClient") -> "RegisteredModel | None":
    """Gives the model with its aliases and tags; None when nothing has been registered."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def fetch(uri: str, folder: str | None, what: str) -> Path:
    """Downloads a file or folder of the artifact store; None leaves a local one where it is.

    Raises:
        IntegrityError: It is lost.
        ResourceError: The store does not answer, or the disk is full: it may be there when asked again.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        if folder is None or not is_local(uri):
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        # MLflow copies local files too, each in a task of its own, which takes ten times as long.
        source = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        return _copy(source, Path(folder) / source.name)
    except (OSError, MlflowException) as error:
        kind = type(error).__name__
        if _is_lost(error, uri):
            raise IntegrityError(
                f"{what} cannot be fetched ({kind}): restore it, or register it again"
            ) from error
        raise ResourceError(f"{what} cannot be fetched now ({kind}): check the artifact store") from error


@contextmanager
def fetched(uri: str, what: str, *, copied: bool = False) -> Iterator[Path]:
    """Gives a file or folder while the block lasts; a local one in place unless `copied`. See `fetch`."""
    with tempfile.TemporaryDirectory() as folder:
        yield fetch(uri, folder if copied or not is_local(uri) else None, what)


def _copy(source: Path, target: Path) -> Path:
    if not source.is_dir():
        shutil.copyfile(source, target)
        return target
    target.mkdir(parents=True, exist_ok=True)
    for each in source.iterdir():
        _copy(each, target / each.name)
    return target


def _is_lost(error: Exception, uri: str) -> bool:
    """Tells a part that is not there from a store that cannot be asked."""
    if is_local(uri):
        # MLflow's own OSError for a missing file has no number.
        missing = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
        unanswered = isinstance(error, ConnectionError | TimeoutError)
        return not (unanswered or (isinstance(error, OSError) and error.errno not in missing))
    code = getattr(error, "error_code", "")
    answer = getattr(getattr(error, "response", None), "status_code", None)
    # MLflow repeats the answers of a server in its own error as text.
    return code == "RESOURCE_DOES_NOT_EXIST" or answer == 404 or "404 Client Error" in str(error)


def is_local(uri: str) -> bool:
    """Tells whether artifacts lie in a folder of this machine."""
    return uri.startswith(("file:", "/"))


def without_password(uri: str) -> str:
    """Returns an address that may be shown and logged."""
    return re.sub(r"//[^/@]*@", "//", uri)
