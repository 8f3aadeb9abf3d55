"""The versions of the model: what is known about each, and which one is live.

Hides MLflow's tags, aliases and error codes, and that its aliases let the last writer win.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_bytes, sha256_file
from pipeline.settings import project
from pipeline.settings.variables import variables
from pipeline.tracking.relocation import local_path
from pipeline.tracking.store import (
    ENTRY_TAG,
    MODEL_NAME,
    connect,
    fetch,
    is_local,
    registered_model,
    search,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo
    from mlflow.entities.model_registry import ModelVersion

TAGGED_METRICS = ("auc", "sensitivity", "specificity")
_TAGS = (
    *("architecture", "verdict", "decision", "approved_by", "approved_at"),
    *("run_key", "revision", "data_md5"),
)


@dataclass(frozen=True)
class Version:
    """One version of the model, as its tags say it; None where they do not.

    Attributes:
        aliases: What points to it, sorted.
        created: When, ISO 8601 in UTC.
        run_id: The MLflow run that holds its evidence.
        tags: All its tags but the entries of the record.
        architecture, verdict: The kind of network, and what the gates of its evaluation said.
        decision: The last one: promoted, rejected, restored or rolled back.
        approved_by, approved_at: Who promoted it, with their roles, and when, ISO 8601 in UTC.
        run_key, revision, data_md5: The retraining, its git commit, and the version of its data.
        auc, sensitivity, specificity: On test films, 0..1.
    """

    version: str
    aliases: list[str]
    created: str
    run_id: str
    tags: dict[str, str]
    architecture: str | None
    verdict: str | None
    decision: str | None
    approved_by: str | None
    approved_at: str | None
    run_key: str | None
    revision: str | None
    data_md5: str | None
    auc: float | None
    sensitivity: float | None
    specificity: float | None

    @classmethod
    def of(cls, version: "ModelVersion", aliases: Mapping[str, str]) -> "Version":
        """Takes what MLflow says of a version, and alias -> version."""
        number = str(version.version)
        tags = {key: value for key, value in version.tags.items() if not ENTRY_TAG.fullmatch(key)}
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        return cls(
            number,
            sorted(alias for alias, target in aliases.items() if target == number),
            created.isoformat(timespec="seconds"),
            version.run_id,
            tags,
            *(tags.get(key) for key in _TAGS),
            *(_number(tags.get(key)) for key in TAGGED_METRICS),
        )


def get_version(version: str) -> Version:
    """Describes one version; BadInput when there is none of this number."""
    with connect() as client:
        return Version.of(find(client, version), aliases())


def model_digest(version: str) -> str:
    """Returns the digest of a version's model as `Files.model_digest` does."""
    return logged_files(version).model_digest


def list_versions() -> list[Version]:
    """Describes all versions, the newest first."""
    with connect() as client:
        named = aliases()
        versions = [Version.of(version, named) for version in search(client, f"name = '{MODEL_NAME}'")]
    return sorted(versions, key=lambda version: int(version.version), reverse=True)


def aliases() -> dict[str, str]:
    """Returns alias -> version; empty when nothing has been registered."""
    with connect() as client:
        model = registered_model(client)
    return {} if model is None else {alias: str(version) for alias, version in model.aliases.items()}


@dataclass(frozen=True)
class Files:
    """The files logged with a version and with its retraining.

    Attributes:
        version: The version.
        tags: What its registration says, the files and their hashes too.
        run_id: The MLflow run that holds its evidence.
    """

    version: str
    tags: Mapping[str, str]
    run_id: str

    @property
    def model_digest(self) -> str:
        """What a decision is bound to: the hash of the list of all files of the stored model."""
        return sha256_bytes(self.tags["model_files"].encode())

    def find(self, path: str) -> Path | None:
        """Returns a file as `get` does, None when no such file was logged."""
        own, shared = (json.loads(self.tags.get(key, "{}")) for key in ("evidence", "shared_evidence"))
        if (expected := own.get(path) or shared.get(path)) is None:
            return None
        # What lies in a local store is used in place; anything else is fetched into the state folder.
        root = _roots(project.tracking_uri(), self.run_id)[path not in own]
        target = None if is_local(root) else str(project.home() / "downloads" / self.version)
        what = f"{path} of version {self.version}"
        file = fetch(f"{root}/{path}", target, what)
        if not file.is_file() or sha256_file(file) != expected:
            raise IntegrityError(f"{what} was changed: restore it, or register it again")
        return file

    def get(self, path: str) -> Path:
        """Returns a file as a path here that is only to be read.

        Raises:
            BadInput: No such file was logged.
            IntegrityError: It is lost, or is not the one that was logged.
            ResourceError: The store does not answer.
        """
        if (file := self.find(path)) is None:
            raise BadInput(f"version {self.version} of {MODEL_NAME} has no {path} among its evidence")
        return file


def logged_files(version: str) -> Files:
    """Returns the files of a version; BadInput when there is none of this number."""
    with connect() as client:
        known = find(client, version)
    return Files(str(known.version), known.tags, known.run_id)


def artifact(version: str, path: str) -> Path:
    """Returns a file of a version as `Files.get` does."""
    return logged_files(version).get(path)


@lru_cache(maxsize=64)
def _roots(uri: str, run_id: str) -> tuple[str, str]:
    """Where the files of a run and of its retraining lie; that never changes."""
    with connect() as client:
        run = client.get_run(run_id)
        parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    return run.info.artifact_uri, parent.info.artifact_uri


def report_address(version: str) -> str | None:
    """Returns where a person can open the report of a version, as `address_of` does; None without one."""
    with connect() as client:
        stored = find(client, version).tags.get("report")
    return address_of(version, "report.html") if stored else None


def address_of(version: str, path: str) -> str:
    """Returns where a person can open a file logged with a version: a page of MLflow, or a path here.

    OPENMED_MLFLOW_URL is MLflow's address as a browser reaches it; without it, it is that of the
    tracking server, and with a store of local files the path of the file.
    """
    run, server = _shown_at(version)
    if server is None:
        return str(local_path(run.artifact_uri) / path)
    return f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{path}"


def file_address(version: str, path: str) -> str | None:
    """Returns where a browser gets a file logged with a version itself; None where no server has it."""
    run, server = _shown_at(version)
    query = urlencode({"path": path, "run_uuid": run.run_id})
    return None if server is None else f"{server}/get-artifact?{query}"


def _shown_at(version: str) -> "tuple[RunInfo, str | None]":
    with connect() as client:
        run = client.get_run(find(client, version).run_id).info
    shown = variables().mlflow_url
    if is_local(run.artifact_uri) and not shown:
        return run, None
    return run, (shown or without_password(project.tracking_uri())).rstrip("/")


def find(client: "MlflowClient", version: str) -> "ModelVersion":
    """Returns one version as MLflow has it; BadInput with those that exist when there is no such version."""
    from mlflow.exceptions import MlflowException

    if is_number(str(version)):
        try:
            return client.get_model_version(MODEL_NAME, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    known = sorted((int(each.version) for each in search(client, f"name = '{MODEL_NAME}'")), reverse=True)
    remedy = f"choose one of {', '.join(map(str, known[:10]))}" if known else "register a retraining first"
    raise BadInput(f"{MODEL_NAME} has no version {version}: {remedy}")


def is_number(text: str) -> bool:
    """Tells whether a text can be the number of a version, as MLflow writes it."""
    # str.isdigit takes the digits of all scripts, and MLflow's tables hold 32 bits.
    return re.fullmatch(r"[1-9][0-9]{0,8}", text) is not None


def _number(text: str | None) -> float | None:
    return None if text is None or text in ("None", "") else float(text)
