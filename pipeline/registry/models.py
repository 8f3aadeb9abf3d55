"""Models in the store, given back only unchanged.

Hides what MLflow stores of a model, which here holds a folder of safetensors and JSON and nothing pickled,
and the addresses of models.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import BadInput, IntegrityError
from openmed.files import check_hashes, hashes_below, sha256_bytes, sha256_file
from pipeline.ledger import Entry, champion, check_verdict, hold_of, on_hold, registration_of
from pipeline.registry.retraining import Candidate
from pipeline.registry.serving_format import DATA_FOLDER
from pipeline.settings.yaml_file import read_yaml
from pipeline.tracking.store import CHAMPION, MODEL_NAME, connect, fetched
from pipeline.tracking.versions import aliases, find, is_number

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from openmed.fitted.spec import ModelSpec
    from openmed.inference.predictor import Predictor
    from openmed.models.base import BaseModel

_EARLIER_DATA_FOLDER = "artifacts/model"
_META_FILE = "registered_model_meta"


def load(address: str | Path) -> "BaseModel":
    """Loads a model, ready to predict, to be explained and to be trained further, on the CPU.

    It is at a model folder, `models:/openmed-cxr@champion` or `models:/openmed-cxr/7`.

    Raises:
        BadInput: There is no such folder, version or alias, or the alias points to a version on hold.
        IntegrityError: The stored model is not the one that was registered.
    """
    from openmed.inference.checkpoint import load_model

    with _model_folder(address) as folder:
        return load_model(folder)


def load_predictor(address: str | Path, device: "torch.device | str" = "cpu") -> "Predictor":
    """Loads a model in the fastest way to predict on a device; it need not be explainable. See `load`."""
    from openmed.inference.session import load_predictor as load_folder

    with _model_folder(address) as folder:
        return load_folder(folder, device)


@contextmanager
def _model_folder(address: str | Path) -> Iterator[Path]:
    """The model folder at an address; that of a version is there for as long as the block lasts."""
    from openmed.inference.checkpoint import SPEC_FILE

    if not str(address).startswith("models:"):
        if not (Path(address) / SPEC_FILE).is_file():
            raise BadInput(
                f"{address} is no model folder: name one with a {SPEC_FILE}, or models:/{MODEL_NAME}@champion"
            )
        yield Path(address)
        return
    with stored(resolve(str(address))) as folder:
        yield folder


def check_model(version: str) -> "ModelSpec":
    """Checks that the stored model of a version is the one that was registered; returns its description."""
    from openmed.inference.checkpoint import read_spec

    with stored(version, copied=False) as folder:
        return read_spec(folder)[0]


@contextmanager
def stored(version: str, *, copied: bool = True) -> Iterator[Path]:
    """Gives the checked model folder of a version while the block lasts; see `stored_whole`."""
    with stored_whole(version, copied=copied) as folder:
        yield _data(folder)


@contextmanager
def stored_whole(version: str, *, copied: bool = True) -> Iterator[Path]:
    """Gives all that is stored of a version's model while the block lasts, held against the record.

    Args:
        version: The version.
        copied: Whether it is a copy that nobody else knows, so that what is loaded is what was checked.

    Raises:
        BadInput: There is no such version.
        IntegrityError: Any file of it was changed, added or lost, or the record knows no such version.
    """
    with connect() as client:
        listed = _listed(find(client, version).tags.get("model_files", ""))
        uri = _location(client, str(registration_of(version).content.get("model_id")))
        with _fetched(uri, f"version {version}", copied=copied) as folder:
            check_recorded(folder, version, listed)
            yield folder


def check_recorded(folder: Path, version: str, listed: Mapping[str, str]) -> None:
    """Refuses a stored model of which any file is not what the record of decisions says.

    Args:
        folder: What is stored.
        version: The version that it is to be.
        listed: Path -> SHA-256 as the store has it, only to name a file that differs.

    Raises:
        IntegrityError: They differ, or the record knows no such version.
    """
    files = {path: digest for path, digest in hashes_below(folder).items() if path != _META_FILE}
    if sha256_bytes(json.dumps(files).encode()) != registration_of(version).content.get("model_files"):
        changed = {path for path, _ in files.items() ^ listed.items()} if listed else set()
        raise IntegrityError(
            f"{min(changed, default='a file')} of version {version} in the store is not what was registered: "
            "restore it, or retrain"
        )


def _listed(text: str) -> dict[str, str]:
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        return {}


def _data(folder: Path) -> Path:
    # Versions of before December 2026 were stored with their code, and the data beside it.
    return next(filter(Path.is_dir, (folder / DATA_FOLDER, folder / _EARLIER_DATA_FOLDER)))


def check_stored(client: "MlflowClient", model_id: str, candidate: Candidate) -> dict[str, str]:
    """Refuses a model that was stored in part, which MLflow would register; returns path -> SHA-256."""
    status = str(client.get_logged_model(model_id).status)
    if status != "READY":
        raise IntegrityError(
            f"the store holds {candidate.architecture} as {status}, not READY: register it again"
        )
    with _fetched(_location(client, model_id), candidate.architecture) as folder:
        _check_hashes(
            folder / DATA_FOLDER, candidate.weights_sha256, candidate.spec_sha256, candidate.architecture
        )
        return hashes_below(folder)


def check_files(client: "MlflowClient", version: "ModelVersion") -> None:
    """Refuses a version of whose stored model any file, MLflow's own too, was changed, added or lost."""
    what, number = f"version {version.version}", str(version.version)
    with _fetched(_location(client, version.tags["model_id"]), what) as folder:
        hashes = {path: digest for path, digest in hashes_below(folder).items() if path != _META_FILE}
        # MLflow writes this file into a local store when it loads a version; it has nothing else to say.
        if (folder / _META_FILE).exists() and not _names_version(folder / _META_FILE, number):
            raise IntegrityError(f"{_META_FILE} of {what} does not name it: restore it from the backup")
        check_hashes(hashes, json.loads(version.tags["model_files"]), what)


def _names_version(path: Path, version: str) -> bool:
    """Tells whether MLflow's own file beside a loaded model names this version and says nothing else."""
    try:
        meta = read_yaml(path)
    except BadInput:
        return False
    # Asked for an alias, MLflow writes the version as a number.
    return meta in ({"model_name": MODEL_NAME, "model_version": each} for each in (version, int(version)))


def _location(client: "MlflowClient", model_id: str) -> str:
    return client.get_logged_model(model_id).artifact_location.rstrip("/")


def _fetched(uri: str, what: str, *, copied: bool = False) -> AbstractContextManager[Path]:
    """Gives what MLflow stored of a model, or a folder of it, for as long as the block lasts."""
    return fetched(uri, f"the stored model of {what}", copied=copied)


def _check_hashes(folder: Path, weights_sha256: str | None, spec_sha256: str | None, what: str) -> None:
    from openmed.fitted.feature_statistics import STATISTICS_FILE
    from openmed.inference import checkpoint

    _check_hash(folder / checkpoint.WEIGHTS_FILE, weights_sha256, what)
    _check_hash(folder / checkpoint.SPEC_FILE, spec_sha256, what)
    if (export_sha256 := checkpoint.export_hash(folder)) is not None:
        _check_hash(folder / checkpoint.EXPORT_FILE, export_sha256, what)
    checkpoint.read_control(folder)
    if (novelty := checkpoint.read_spec(folder)[0].novelty) is not None:
        _check_hash(folder / STATISTICS_FILE, novelty.statistics_sha256, what)


def _check_hash(path: Path, expected: str | None, what: str) -> None:
    if not path.is_file() or sha256_file(path) != expected:
        raise IntegrityError(
            f"{path.name} of {what} in the store is not what was registered: restore it, or retrain"
        )


def version_at(address: str) -> str:
    """Returns the version at models:/openmed-cxr@champion, models:/openmed-cxr/7 or 7, by alias or number.

    Raises:
        BadInput: It is no address, or there is no such alias.
    """
    if is_number(address):
        return address
    match = re.fullmatch(rf"models:/{MODEL_NAME}(?:@([\w-]+)|/([1-9][0-9]{{0,8}}))", address)
    if match is None:
        raise BadInput(
            f"{address} is no model address: use models:/{MODEL_NAME}@champion or models:/{MODEL_NAME}/1"
        )
    alias, version = match.groups()
    if version is not None:
        return version
    known = aliases()
    if alias not in known:
        names = ", ".join(sorted(known))
        remedy = f"choose one of {names}" if known else "register and promote a model first"
        raise BadInput(f"{MODEL_NAME} has no {alias}: {remedy}")
    return known[alias]


def answering(address: str | Path) -> str:
    """Returns the address by number of the version that an address stands for now; a folder as it is.

    Raises:
        BadInput: There is no such alias, or it points to a version on hold.
    """
    if not str(address).startswith("models:"):
        return str(address)
    return f"models:/{MODEL_NAME}/{resolve(str(address))}"


def hold_warning(address: str | Path) -> str | None:
    """Says that a version that is named by its number is on hold; None where it is not, and for a folder."""
    match = re.fullmatch(rf"models:/{MODEL_NAME}/(\d+)", str(address))
    if match is None or (entry := on_hold().get(match[1])) is None:
        return None
    return f"{_held(entry)}: its answers are for finding out why, not for deciding on films"


def recorded_hold(version: str) -> str | None:
    """Says that a version is on hold, None where it is not; by the record alone, whatever the store shows."""
    entry = hold_of(version)
    return None if entry is None else _held(entry)


def _held(entry: Entry) -> str:
    reason = entry.reason.rstrip(".")
    return f"version {entry.version} is on hold since {entry.at} ({reason})"


def resolve(address: str, *, on_hold_too: bool = False) -> str:
    """Returns the version at an address that may be loaded; see `version_at`.

    Args:
        address: As models:/openmed-cxr@champion or models:/openmed-cxr/7.
        on_hold_too: Whether an alias may lead to a version on hold.

    Raises:
        BadInput: There is no such alias, or it points to a version on hold.
        IntegrityError: It is the champion's, and was moved by something else, or leads to a version that was
            not promoted for passing its gates.
    """
    # Only the champion's alias stands for a decision; it may have been moved by something else.
    live = champion() if address == f"models:/{MODEL_NAME}@{CHAMPION}" else None
    if live is not None:
        check_verdict(live)
    version = live or version_at(address)
    if "@" in address and not on_hold_too and (entry := on_hold().get(version)) is not None:
        raise BadInput(
            f"{_held(entry)} and {address} answers no films: roll back, promote another version, release it "
            f"with `openmed registry release`, or name it as models:/{MODEL_NAME}/{version}"
        )
    return version
