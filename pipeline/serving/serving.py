"""The model as MLflow serves it: a stored version names this module, which MLflow imports to load it.

The module has to be installed where a version is served. No code of a stored version is ever run.
"""

import inspect
import os
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from openmed.errors import BadInput, ResourceError
from openmed.files import sha256_bytes
from openmed.films.images import usable_squares
from openmed.fitted.spec import ModelSpec
from openmed.inference.answers import FilmAnswer, answer, film_answers
from openmed.inference.ensemble import Ensemble
from openmed.inference.session import load_predictor
from openmed.oversight.answer_log import AnswerLog, answer_journal
from pipeline import registry

_BATCH_FILMS = 32
_COLUMNS = (
    *("label", "probability", "threshold", "probabilities", "thresholds"),
    *("refer", "reason", "model", "warning"),
)


def _load_pyfunc(path: str) -> "FilmClassifier":
    """Loads the model folder of a stored model; MLflow calls it by this name."""
    return FilmClassifier(Path(path))


class FilmClassifier:
    """Classifies film files with a model folder (safetensors, JSON and ONNX, never a pickle)."""

    def __init__(self, folder: Path) -> None:
        """Loads the model folder stored with a version: the exported graph on a CPU, PyTorch on a GPU.

        Raises:
            IntegrityError: Any file of the version is not what the record of decisions says.
            BadInput: The model has no operating threshold, it is on hold and not asked for by its number, or
                it is not known where its answers are logged.
            ResourceError: The log cannot be written.
        """
        self._address, self._warning = _version_of(folder.parents[1])
        self._log = None if self._address is None else _log_of(self._address)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = Ensemble([load_predictor(folder, device)])
        if self._model.threshold is None:
            raise BadInput(
                "the model has no operating threshold: run the evaluate stage and register it again"
            )

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classifies films.

        Args:
            model_input: Column image: the bytes of a JPEG, PNG, TIFF or DICOM file, one film a row.
            params: Unused; MLflow passes it.

        Returns:
            One row a film: label (the finding whose probability reaches its threshold, else the most
            probable other class), probability (of the first finding, 0..1), threshold (0..1), probabilities
            (of every class, by its name), thresholds (of every finding), refer (whether a radiologist should
            decide instead, None for a model that refers none), reason (why, in words, None where it is not
            referred), model (models:/NAME/VERSION, None where MLflow does not say which version it is),
            warning (that the version is on hold, else None).

        Raises:
            MlflowException: A row is not a usable film, or the answers cannot be logged (HTTP status 400
                and 503 where the model is served).
            IntegrityError: The model answers with something that is no number.
        """
        if "image" not in getattr(model_input, "columns", ()):
            raise MlflowException.invalid_parameter_value(
                "the input needs a column 'image' with the bytes of one film in each row"
            )
        images, answers = list(model_input["image"]), []
        for start in range(0, len(images), _BATCH_FILMS):
            answers += self._batch(images, start)
        self._keep(images, answers)
        about = {"model": self._address, "warning": self._warning}
        return _table([vars(each) | about for each in answers])

    def _batch(self, images: list[bytes], start: int) -> list[FilmAnswer]:
        rows = range(start, min(start + _BATCH_FILMS, len(images)))
        films = np.stack([_decoded(images[row], row, self._model.spec) for row in rows])
        return film_answers(self._model, answer(self._model, {self._model.spec.image_size_px: films}))

    def _keep(self, images: list[bytes], answers: list[FilmAnswer]) -> None:
        if self._log is None:
            return
        try:
            self._log.keep([sha256_bytes(image) for image in images], answers)
        except ResourceError as error:
            raise MlflowException(str(error), error_code=TEMPORARILY_UNAVAILABLE) from None


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    # Left to itself, pandas would turn some of what is missing into NaN.
    kinds = {name: float if name in ("probability", "threshold") else object for name in _COLUMNS}
    return pd.DataFrame({name: pd.Series(columns[name], dtype=kinds[name]) for name in _COLUMNS})


def _decoded(image: object, row: int, spec: ModelSpec) -> np.ndarray:
    if not isinstance(image, bytes | bytearray):
        raise MlflowException.invalid_parameter_value(
            f"the image in row {row} is {type(image).__name__}, not the bytes of a film's file"
        )
    try:
        name = f"the image in row {row}"
        return usable_squares(bytes(image), [spec.image_size_px], name, min_side_px=spec.min_side_px)[0]
    except BadInput as error:
        raise MlflowException.invalid_parameter_value(str(error)) from None


def _log_of(address: str) -> AnswerLog:
    """Where the answers of a version are logged; who asks is not known here."""
    journal = answer_journal(_state_folder(address))
    journal.prepare()
    return AnswerLog(journal, address, "serving", None)


def _state_folder(address: str) -> Path:
    """The state folder, found as the command `openmed` does."""
    if home := os.environ.get("OPENMED_HOME"):
        return Path(home).expanduser().resolve()
    project = os.environ.get("OPENMED_PROJECT")
    for folder in (Path(project).expanduser(),) if project else (Path.cwd(), *Path.cwd().parents):
        if (folder / "dvc.yaml").is_file():
            return folder.resolve() / ".openmed"
    raise BadInput(
        f"{address} answers no films where its answers cannot be logged: set OPENMED_HOME to the state folder"
    )


def _version_of(stored: Path) -> tuple[str | None, str | None]:
    """The address of the version that is stored in a folder, and what must be said with its answers.

    MLflow writes name and version into a file when it fetches a version from a registry; a copy of the folder
    that it never fetched has no such file.

    Raises:
        BadInput: The version is on hold, and was not asked for by its number.
        IntegrityError: The folder does not hold what was registered as this version.
    """
    try:
        meta = yaml.safe_load((stored / "registered_model_meta").read_text(encoding="utf-8"))
        name, version = str(meta["model_name"]), str(meta["model_version"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None, None
    address = f"models:/{name}/{version}"
    registry.check_recorded(stored, version, {})
    if (hold := registry.recorded_hold(version)) is None:
        return address, None
    requested, aliases = _requested(), _aliases(name, version)
    by_alias = "@" in requested if requested.startswith("models:/") else bool(aliases)
    if by_alias and os.environ.get("OPENMED_SERVE_ON_HOLD") != "yes":
        raise BadInput(
            f"{hold} and answers no films as {' or '.join(aliases) or requested}: roll back, promote another "
            f"version or release it; with OPENMED_SERVE_ON_HOLD=yes, or in Python as {address}, it answers "
            "and warns"
        )
    return address, f"{hold}: its answers are for finding out why, not for deciding on films"


def _aliases(name: str, version: str) -> list[str]:
    """The aliases of a version; none where the registry cannot be asked."""
    # Without an address MLflow would make a registry of its own where it runs.
    if not mlflow.is_tracking_uri_set():
        return []
    try:
        pointing = mlflow.MlflowClient().get_registered_model(name).aliases.items()
    except MlflowException:
        return []
    return sorted(alias for alias, target in pointing if str(target) == version)


def _requested() -> str:
    """The address that MLflow was asked to load.

    MLflow tells a model only the folder that it fetched, which is the same for an alias and for a number. In
    one process its `load_model` knows the address; its server fetches in a process of its own, the parent of
    the one that answers. Where neither shows it, as with several workers, this is a folder or nothing.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "mlflow.pyfunc" and frame.f_code.co_name == "load_model":
            uri = str(frame.f_locals.get("model_uri", ""))
            return uri if uri.startswith("models:/") else served_address(_parent()) or uri
        frame = frame.f_back
    return ""


def _parent() -> list[str]:
    """The command line of the parent process, nothing where the system does not show it."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def served_address(command: list[str]) -> str | None:
    """The address in a command line `mlflow models serve -m ADDRESS`; None in any other."""
    if "models" not in command or "serve" not in command:
        return None
    for name, value in zip(command, [*command[1:], ""], strict=True):
        if name in ("-m", "--model-uri") and value.startswith("models:/"):
            return value
        if name.startswith(("--model-uri=models:/", "-mmodels:/")):
            return name[name.index("models:/") :]
    return None
