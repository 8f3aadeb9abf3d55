"""The registry of models: the only module that knows MLflow.

What is logged describes films by the hash of their content and patients by a number that means nothing
outside one retraining. Models are folders of safetensors and JSON; nothing is pickled.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import atomic_path, read_json, sha256_file, write_json
from pipeline import project

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from openmed.models.base import BaseModel
    from openmed.models.spec import ModelSpec

MODEL_NAME = "openmed-cxr"
EXPERIMENT = "openmed-cxr"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

_SERVED_WITH = ("mlflow", "numpy", "opencv-python-headless", "pandas", "safetensors", "timm", "torch")
_JUDGED = ("auc", "sensitivity", "specificity")
_BATCH_FILMS = 32
_METRICS_PER_CALL = 1000
# Shorter identifiers are found in any text; they can name nobody.
_SHORTEST_IDENTIFIER = 5


# --- registering ------------------------------------------------------------------------------------------


def register_candidates(workspace: Path, *, run_key: str, revision: str) -> dict[str, Any]:
    """Registers the models of one retraining, each as a version of `openmed-cxr`.

    The current champion is scored on the same test films, while they are at hand, so that it can be
    compared later. The candidate with the best AUC on validation films becomes the challenger; test
    films choose nothing. Calling again with the same `run_key`, after a kill too, adds only what is
    missing: a version is made last, when everything it stands for is stored and checked.

    Args:
        workspace: A checkout in which the pipeline has run.
        run_key: Names the retraining, such as the id of the scheduled run.
        revision: The git commit it ran at.

    Returns:
        version, architecture, verdict and metrics of the challenger; versions: architecture -> version;
        run_id of the MLflow run that stands for the retraining.

    Raises:
        BadInput: An artefact is missing, or the run key belongs to another revision.
        IntegrityError: A stored model is not the one that was evaluated.
        ResourceError: The MLflow store does not answer.
    """
    if not re.fullmatch(r"[^'\"`\\\s]{1,250}", run_key):
        raise BadInput(f"the run key {run_key!r} holds quotes or spaces, or is too long: choose another")
    done = _Retraining.read(Path(workspace))
    with _locked("register"), _store() as client:
        parent = _parent_run(client, done, run_key, revision)
        made: list[str] = []
        versions = {}
        against = None
        for name, candidate in done.candidates.items():
            version = _existing(client, run_key, candidate)
            if version is None:
                against = against or score_champion(done.workspace)
                version = _candidate(client, parent, done, candidate, against)
                made.append(version)
            versions[name] = version
        best = max(done.candidates.values(), key=lambda candidate: candidate.validation_auc)
        if made or parent.info.status != "FINISHED":
            client.set_registered_model_alias(MODEL_NAME, CHALLENGER, versions[best.architecture])
            client.set_terminated(parent.info.run_id)
    return {
        "version": versions[best.architecture],
        "architecture": best.architecture,
        "verdict": best.verdict,
        "versions": versions,
        "run_id": parent.info.run_id,
        "metrics": {name: best.metrics["test"][name]["value"] for name in _JUDGED},
    }


@dataclass(frozen=True)
class _Candidate:
    """One trained and evaluated model of a workspace."""

    architecture: str
    folder: Path
    metrics: dict[str, Any]
    verdict: str
    weights_sha256: str
    spec_sha256: str

    @classmethod
    def read(cls, workspace: Path, architecture: str) -> "_Candidate":
        from openmed.models.checkpoint import SPEC_FILE, WEIGHTS_FILE, read_spec

        folder = workspace / "artifacts" / "evaluate" / architecture
        metrics, gates = read_json(folder / "metrics.json"), read_json(folder / "gates.json")
        spec, expected = read_spec(folder / "model")
        found = sha256_file(folder / "model" / WEIGHTS_FILE)
        if not found == expected == metrics["model"]["weights_sha256"]:
            raise IntegrityError(
                f"{folder} was evaluated with other weights than it holds: run evaluate again"
            )
        if spec.threshold is None or spec.threshold != metrics["threshold"]:
            raise IntegrityError(
                f"{folder} was evaluated at another threshold than its model has: run it again"
            )
        digest = sha256_file(folder / "model" / SPEC_FILE)
        return cls(architecture, folder, metrics, gates["verdict"], found, digest)

    @property
    def validation_auc(self) -> float:
        """AUC on validation films; minus infinity when it could not be computed, so it is never best."""
        value = self.metrics["validation"]["auc"]
        return -math.inf if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class _Retraining:
    """What a workspace holds when the pipeline has run in it."""

    workspace: Path
    params: dict[str, Any]
    data_md5: str
    films: "pd.DataFrame"
    """id, patient, label, split, path, sha256 of every film in a split."""
    candidates: dict[str, _Candidate]

    @classmethod
    def read(cls, workspace: Path) -> "_Retraining":
        params = _read_yaml(workspace / "params.yaml")
        data = _read_yaml(workspace / "data.dvc")
        _read_yaml(workspace / "dvc.lock")
        try:
            names, data_md5 = list(params["architectures"]), data["outs"][0]["md5"]
        except (KeyError, IndexError, TypeError):
            raise BadInput(
                f"{workspace} lacks `architectures` in params.yaml or a hash in data.dvc"
            ) from None
        candidates = {name: _Candidate.read(workspace, name) for name in names}
        if not candidates:
            raise BadInput(f"params.yaml in {workspace} names no architecture: there is nothing to register")
        return cls(workspace, params, data_md5, films_of(workspace), candidates)

    def pseudonyms(self) -> dict[str, str]:
        """Patient -> number by the patient's first film id: stable, and not to be guessed backwards."""
        # A hash of the identifier could be undone by trying all identifiers there are.
        first = self.films.groupby("patient")["id"].min().sort_values()
        return {patient: f"p{number:06d}" for number, patient in enumerate(first.index, start=1)}

    def names_a_patient(self, text: str) -> bool:
        """Tells whether an identifier of a patient stands in a text, embedded images aside."""
        text = re.sub(r"data:[\w/+.-]+;base64,[\w+/=]+", "", text)
        known = {str(name) for name in self.films["patient"].unique()}
        return any(
            re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text)
            for name in known
            if len(name) >= _SHORTEST_IDENTIFIER and name in text
        )


def films_of(workspace: Path) -> "pd.DataFrame":
    """Reads the films of a workspace: id, patient, label, split, path (below data/) and sha256.

    Raises:
        BadInput: The pipeline has not run there.
    """
    artifacts = Path(workspace) / "artifacts"
    split = _read_table(artifacts / "split" / "split.parquet", ["id", "patient", "label", "split"])
    manifest = _read_table(artifacts / "validate" / "manifest.parquet", ["id", "path", "sha256"])
    films = split.merge(manifest, on="id", how="left", validate="one_to_one")
    if films["sha256"].isna().any():
        raise BadInput(f"{artifacts} holds a split of other films than its manifest: run the pipeline again")
    return films


def score_films(model: "BaseModel", data: Path, films: "pd.DataFrame") -> "pd.DataFrame":
    """Scores films with a model's own preprocessing.

    Args:
        model: The model.
        data: The data folder.
        films: Columns id, path, sha256.

    Returns:
        Columns id, sha256 and score, the probability of the model's positive class (0..1).

    Raises:
        IntegrityError: A film is not the one the manifest recorded.
    """
    import numpy as np

    from openmed.data.images import decode_film, resize_film

    scores = []
    for start in range(0, len(films), _BATCH_FILMS):
        batch = []
        for film in films.iloc[start : start + _BATCH_FILMS].itertuples():
            content = (Path(data) / film.path).read_bytes() if (Path(data) / film.path).is_file() else b""
            if hashlib.sha256(content).hexdigest() != film.sha256:
                raise IntegrityError(
                    f"film {film.id} was changed after it was validated: run the pipeline again"
                )
            batch.append(resize_film(decode_film(content, film.id), model.spec.image_size_px))
        scores.append(model.predict(np.stack(batch))[:, model.spec.positive_index])
    return films[["id", "sha256"]].assign(score=np.concatenate(scores) if scores else [])


def score_champion(workspace: Path) -> tuple[dict[str, Any], "pd.DataFrame | None"]:
    """Scores the current champion on the test films of a workspace.

    Returns:
        {version, threshold, positive, problem} and the scores. `version` is None when there is no
        champion; `problem` says why a champion could not be scored, else it is None.
    """
    films = films_of(workspace)
    with _store():
        now = champion()
        about: dict[str, Any] = {"version": now, "threshold": None, "positive": None, "problem": None}
        if now is None:
            return about, None
        try:
            model = load(f"models:/{MODEL_NAME}/{now}")
        except (BadInput, IntegrityError) as error:
            # A damaged champion must not stop the retraining that may replace it.
            return about | {"problem": str(error)}, None
    about |= {"threshold": model.spec.threshold, "positive": model.spec.positive}
    return about, score_films(model, Path(workspace) / "data", films[films["split"] == "test"])


def _parent_run(client: "MlflowClient", done: _Retraining, run_key: str, revision: str) -> "Run":
    """Finds or makes the run that stands for the retraining, and logs what all candidates share."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    found = client.search_runs([experiment], f"tags.run_key = '{run_key}' and tags.kind = 'retraining'")
    if found:
        known = found[0].data.tags["revision"]
        if known != revision:
            raise BadInput(
                f"run key {run_key} was registered at revision {known}, not {revision}: use a new key"
            )
        parent = found[0]
    else:
        tags = {"kind": "retraining", "run_key": run_key, "revision": revision, "data_md5": done.data_md5}
        parent = client.create_run(experiment, run_name=run_key, tags=tags)
    if parent.info.status != "FINISHED":
        with tempfile.TemporaryDirectory() as folder:
            withheld = _stage_parent(done, Path(folder))
            client.log_artifacts(parent.info.run_id, folder)
        tags = {"dvc_lock_sha256": sha256_file(done.workspace / "dvc.lock"), "withheld": ", ".join(withheld)}
        _set_run_tags(client, parent.info.run_id, tags)
    return parent


def _stage_parent(done: _Retraining, folder: Path) -> list[str]:
    """Copies what all candidates share; returns the files left out because they name a patient."""
    artifacts = done.workspace / "artifacts"
    texts = {
        "params.yaml": done.workspace / "params.yaml",
        "dvc.lock": done.workspace / "dvc.lock",
        "validate/summary.json": artifacts / "validate" / "summary.json",
        "validate/expectations.html": artifacts / "validate" / "expectations.html",
    }
    withheld = _copy_texts(done, texts, folder)
    split = done.films[["id", "patient", "label", "split"]]
    _write_table(folder / "split" / "split.parquet", _pseudonymous(split, done.pseudonyms()))
    return withheld


def _existing(client: "MlflowClient", run_key: str, candidate: _Candidate) -> str | None:
    """Finds the version that an earlier try registered for the very same model."""
    wanted = {
        "architecture": candidate.architecture,
        "weights_sha256": candidate.weights_sha256,
        "spec_sha256": candidate.spec_sha256,
    }
    for found in _search(client, f"name = '{MODEL_NAME}' and tags.run_key = '{run_key}'"):
        if wanted.items() <= found.tags.items():
            return str(found.version)
    return None


def _candidate(
    client: "MlflowClient",
    parent: "Run",
    done: _Retraining,
    candidate: _Candidate,
    against: tuple[dict[str, Any], "pd.DataFrame | None"],
) -> str:
    """Logs a candidate as a child run, checks what was stored and makes it a version."""
    _discard_unfinished(client, parent, candidate.architecture)
    shared = {key: parent.data.tags[key] for key in ("run_key", "revision", "data_md5")}
    tags = {"mlflow.parentRunId": parent.info.run_id, "architecture": candidate.architecture, **shared}
    run = client.create_run(parent.info.experiment_id, run_name=candidate.architecture, tags=tags)
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as folder:
        evidence, withheld = _stage_candidate(done, candidate, against, Path(folder))
        client.log_artifacts(run_id, folder)
    _log_numbers(client, run_id, done, candidate)
    model_id = _log_model(run_id, candidate.folder / "model")
    _check_stored(client, model_id, candidate)
    return _make_version(
        client,
        model_id,
        run_id,
        shared
        | {
            "architecture": candidate.architecture,
            "verdict": candidate.verdict,
            "dvc_lock_sha256": sha256_file(done.workspace / "dvc.lock"),
            "model_id": model_id,
            "weights_sha256": candidate.weights_sha256,
            "spec_sha256": candidate.spec_sha256,
            "evidence": json.dumps(evidence),
            "withheld": ", ".join(withheld),
            "report": f"{run.info.artifact_uri}/report.html" if "report.html" in evidence else "",
            "threshold": str(candidate.metrics["threshold"]),
            "validation_auc": str(candidate.metrics["validation"]["auc"]),
            "champion_version": against[0]["version"] or "",
        }
        | {name: str(candidate.metrics["test"][name]["value"]) for name in _JUDGED},
    )


def _discard_unfinished(client: "MlflowClient", parent: "Run", architecture: str) -> None:
    """Deletes the child runs of an earlier, killed try that never became a version."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.architecture = '{architecture}'"
    registered = {found.run_id for found in _search(client, f"name = '{MODEL_NAME}'")}
    for run in client.search_runs([parent.info.experiment_id], query):
        if run.info.run_id not in registered:
            client.set_terminated(run.info.run_id, "KILLED")
            client.delete_run(run.info.run_id)


def _stage_candidate(
    done: _Retraining,
    candidate: _Candidate,
    against: tuple[dict[str, Any], "pd.DataFrame | None"],
    folder: Path,
) -> tuple[dict[str, str], list[str]]:
    """Copies the evidence on one candidate into a folder.

    Returns:
        The SHA-256 of each file in it, and the names of files left out because they name a patient.
    """
    name, artifacts = candidate.architecture, done.workspace / "artifacts"
    explain = artifacts / "explain" / name
    texts = {
        path.name: path for path in sorted(candidate.folder.iterdir()) if path.suffix in (".json", ".csv")
    }
    texts |= {path.name: path for path in (explain / "explain.json", explain / "report.html")}
    texts |= {"history.csv": artifacts / "train" / name / "history.csv"}
    texts |= {"training_summary.json": artifacts / "train" / name / "summary.json"}
    texts |= {"params.yaml": done.workspace / "params.yaml"}
    withheld = _copy_texts(done, texts, folder)
    if {"metrics.json", "gates.json"} & set(withheld):
        raise BadInput(f"metrics.json or gates.json of {name} names a patient: it cannot be registered")
    for image in sorted((explain / "examples").glob("*.jpg")):
        (folder / "examples").mkdir(exist_ok=True)
        (folder / "examples" / image.name).write_bytes(image.read_bytes())
    predictions = _read_table(candidate.folder / "predictions.parquet")
    _write_table(folder / "predictions.parquet", _pseudonymous(predictions, done.pseudonyms()))
    # Validation and calibration films have shaped the model too: they count as seen.
    seen = done.films.loc[
        done.films["split"].isin(["train", "validation", "calibration"]), ["sha256", "split"]
    ]
    _write_table(folder / "training_films.parquet", seen.reset_index(drop=True))
    about, scores = against
    write_json(folder / "champion.json", about)
    if scores is not None:
        _write_table(folder / "champion_predictions.parquet", scores.reset_index(drop=True))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}, withheld


def _copy_texts(done: _Retraining, texts: Mapping[str, Path], folder: Path) -> list[str]:
    """Copies the texts that exist and name no patient; returns the names of those that do."""
    withheld = []
    for name, source in texts.items():
        if not source.is_file():
            continue
        text = source.read_text(encoding="utf-8")
        if done.names_a_patient(text):
            withheld.append(name)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return withheld


def _pseudonymous(films: "pd.DataFrame", pseudonyms: Mapping[str, str]) -> "pd.DataFrame":
    codes = films["patient"].map(pseudonyms)
    if codes.isna().any():
        raise BadInput(
            "predictions.parquet holds patients that are in no split: run the evaluate stage again"
        )
    return films.assign(patient=codes)


def _log_numbers(client: "MlflowClient", run_id: str, done: _Retraining, candidate: _Candidate) -> None:
    from mlflow.entities import Metric, Param

    name, now_ms = candidate.architecture, int(time.time() * 1000)
    sections = {key: done.params.get(key) for key in ("run", "resample", "evaluate", "promotion")}
    sections["train"] = (done.params.get("train") or {}).get(name)
    params = [Param(key, str(value)) for key, value in _flat(sections).items()]
    client.log_batch(run_id, params=params)
    numbers = {"best_validation_auc": candidate.metrics["validation"]["auc"]}
    for key, value in candidate.metrics["test"].items():
        if isinstance(value, Mapping):
            numbers |= {f"test_{key}": value["value"]}
            numbers |= {f"test_{key}_{end}": value[end] for end in ("low", "high")}
        else:
            numbers[f"test_{key}"] = value
    metrics = [Metric(key, float(value), now_ms, 0) for key, value in numbers.items() if value is not None]
    metrics += _history(done.workspace / "artifacts" / "train" / name / "history.csv", now_ms)
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])


def _history(path: Path, now_ms: int) -> list:
    import pandas as pd
    from mlflow.entities import Metric

    if not path.is_file():
        return []
    history = pd.read_csv(path)
    columns = [name for name in history.select_dtypes("number").columns if name != "epoch"]
    return [
        Metric(name, float(row[name]), now_ms, int(row["epoch"]))
        for _, row in history.iterrows()
        for name in columns
        if math.isfinite(row[name])
    ]


def _log_model(run_id: str, folder: Path) -> str:
    """Logs a model folder so that MLflow can serve it; returns the id of the logged model."""
    import cv2
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    import openmed

    outputs = [("label", DataType.string), ("probability", DataType.double), ("threshold", DataType.double)]
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs]),
    )
    blank = cv2.imencode(".png", np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))[1].tobytes()
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"model": folder.resolve().as_uri()},
            code_paths=[str(Path(openmed.__file__).parent)],
            # A local build such as 2.11.0+cpu is not a version that an index knows.
            pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in _SERVED_WITH],
            signature=signature,
            input_example=pd.DataFrame({"image": [blank]}),
        )
    return logged.model_id


def _check_stored(client: "MlflowClient", model_id: str, candidate: _Candidate) -> None:
    """Refuses a model that was stored in part: MLflow itself would register it as ready."""
    status = str(client.get_logged_model(model_id).status)
    if status != "READY":
        raise IntegrityError(
            f"the store holds {candidate.architecture} as {status}, not READY: register it again"
        )
    with _stored_model(client, model_id, candidate.architecture) as folder:
        _check_hashes(folder, candidate.weights_sha256, candidate.spec_sha256, candidate.architecture)


def _make_version(client: "MlflowClient", model_id: str, run_id: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(MODEL_NAME)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        MODEL_NAME, f"models:/{model_id}", run_id, tags=tags, model_id=model_id, await_creation_for=60
    )
    return str(made.version)


# --- reading ----------------------------------------------------------------------------------------------


def load(address: str | Path) -> "BaseModel":
    """Loads a model, ready to predict on the CPU.

    Args:
        address: A model folder, `models:/openmed-cxr@champion` or `models:/openmed-cxr/7`.

    Raises:
        BadInput: There is no such folder, version or alias.
        IntegrityError: The stored model is not the one that was registered.
    """
    from openmed.models.checkpoint import SPEC_FILE, load_model

    if not str(address).startswith("models:"):
        if not (Path(address) / SPEC_FILE).is_file():
            raise BadInput(
                f"{address} is no model folder: name one with a {SPEC_FILE}, or models:/{MODEL_NAME}@champion"
            )
        return load_model(Path(address))
    with _store() as client:
        version = _get(client, _resolve(client, str(address)))
        with _stored_model(client, version.tags["model_id"], f"version {version.version}") as folder:
            _check_version(folder, version)
            return load_model(folder)


def verify(version: str) -> "ModelSpec":
    """Checks that the stored model of a version is the one that was registered; returns its description.

    Raises:
        BadInput: There is no such version.
        IntegrityError: Weights or description were changed or are missing.
    """
    from openmed.models.checkpoint import read_spec

    with _store() as client:
        found = _get(client, version)
        with _stored_model(client, found.tags["model_id"], f"version {version}") as folder:
            _check_version(folder, found)
            return read_spec(folder)[0]


def artifact(version: str, path: str) -> Path:
    """Returns a file logged with a version, as a path on this machine that is only to be read.

    Raises:
        BadInput: There is no such version, or no such file was logged with it.
        IntegrityError: The file is not the one that was logged.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    with _store() as client:
        found = _get(client, version)
        expected = json.loads(found.tags.get("evidence", "{}")).get(path)
        if expected is None:
            raise BadInput(f"version {version} of {MODEL_NAME} has no {path} among its evidence")
        # What lies in a local store is used in place; anything else is fetched into the state folder.
        root = client.get_run(found.run_id).info.artifact_uri
        target = None if _is_local(root) else str(project.home() / "downloads" / str(version))
        try:
            file = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{root}/{path}", dst_path=target))
            digest = sha256_file(file)
        except (OSError, MlflowException) as error:
            kind = type(error).__name__
            raise IntegrityError(
                f"{path} of version {version} cannot be fetched ({kind}): restore it, or register it again"
            ) from error
    if digest != expected:
        raise IntegrityError(f"{path} of version {version} was changed: restore it, or register it again")
    return file


def get_version(version: str) -> dict[str, Any]:
    """Describes one version as `list_versions` does, with all its tags under `tags`."""
    with _store() as client:
        return _described(_get(client, version), aliases())


def list_versions() -> list[dict[str, Any]]:
    """Describes all versions, the newest first.

    Returns:
        For each: version, architecture, verdict, aliases, created (ISO 8601, UTC), auc, sensitivity and
        specificity on test films (None if unknown), decision, approved_by, approved_at, run_key,
        revision, data_md5, run_id and tags.
    """
    with _store() as client:
        named = aliases()
        found = [_described(version, named) for version in _search(client, f"name = '{MODEL_NAME}'")]
    return sorted(found, key=lambda version: int(version["version"]), reverse=True)


def aliases() -> dict[str, str]:
    """Returns alias -> version; empty when nothing has been registered."""
    from mlflow.exceptions import MlflowException

    with _store() as client:
        try:
            found = client.get_registered_model(MODEL_NAME).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
    return {alias: str(version) for alias, version in found.items()}


def champion() -> str | None:
    """Returns the version that is live, None when there is none."""
    return aliases().get(CHAMPION)


def report_address(version: str) -> str | None:
    """Returns where the report of a version can be opened: a path here, or a page of the MLflow server."""
    with _store() as client:
        found = _get(client, version)
        if not found.tags.get("report"):
            return None
        run = client.get_run(found.run_id).info
    if _is_local(run.artifact_uri):
        return str(artifact(version, "report.html"))
    server = _without_password(project.tracking_uri()).rstrip("/")
    return f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/report.html"


# --- deciding ---------------------------------------------------------------------------------------------


def move_champion(version: str, *, expected: str | None, previous: str | None) -> None:
    """Makes a version the champion, if the champion is still the one that the decision was about.

    MLflow lets the last writer win, so the change is made under a lock and read again. Over a tracking
    server the lock holds among the processes that share one state folder; run promotions on one host.

    Args:
        version: The new champion.
        expected: The champion that the decision was about; None for none.
        previous: The version to roll back to from now on; None for none.

    Raises:
        BadInput: There is no such version, or the champion is another one by now.
        IntegrityError: Another writer moved the champion at the same moment.
    """
    with _locked("champion"), _store() as client:
        _get(client, version)
        now = champion()
        if now != expected:
            raise BadInput(
                f"the champion is {_spoken(now)} by now, not {_spoken(expected)}: compare {version} again"
            )
        if previous is not None:
            client.set_registered_model_alias(MODEL_NAME, PREVIOUS, previous)
        elif PREVIOUS in aliases():
            client.delete_registered_model_alias(MODEL_NAME, PREVIOUS)
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
        now = champion()
        if now != version:
            raise IntegrityError(
                f"the champion became {_spoken(now)} while version {version} was promoted: decide again"
            )


def drop_alias(alias: str, *, version: str) -> None:
    """Removes an alias if it points to `version`."""
    with _locked("champion"), _store() as client:
        if aliases().get(alias) == version:
            client.delete_registered_model_alias(MODEL_NAME, alias)


def set_tags(version: str, tags: Mapping[str, str]) -> None:
    """Sets tags of a version, in order."""
    with _store() as client:
        _get(client, version)
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)


def keep_record(version: str, name: str, record: Mapping[str, Any]) -> None:
    """Stores a decision beside the evidence of a version, as decisions/<name>.json."""
    with _store() as client:
        client.log_dict(_get(client, version).run_id, dict(record), f"decisions/{name}.json")


# --- inside -----------------------------------------------------------------------------------------------


@contextmanager
def _locked(what: str) -> Iterator[None]:
    """Lets one process or thread of this state folder do `what` at a time; a killed holder lets go."""
    folder = project.home()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{what}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _store() -> Iterator["MlflowClient"]:
    """Gives a client of the store and turns MLflow's errors into one sentence."""
    project.environment()
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = project.tracking_uri()
    try:
        yield _client(mlflow, uri)
    except MlflowException as error:
        first = str(error).strip().splitlines()[0].replace(uri, _without_password(uri))[:300]
        raise ResourceError(
            f"the model registry at {_without_password(uri)} cannot be used ({first}): "
            "check that it runs and MLFLOW_TRACKING_URI"
        ) from error


def _client(mlflow: Any, uri: str) -> "MlflowClient":
    named = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # MLflow writes the address into the environment, where it would outlive a change of the state folder.
    if named is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    # The first use of a fresh SQLite file builds its tables, which breaks when two processes do it at once.
    with _locked("store"):
        client = mlflow.MlflowClient(uri, uri)
        if client.get_experiment_by_name(EXPERIMENT) is None:
            local = uri.startswith("sqlite:")
            client.create_experiment(EXPERIMENT, (project.home() / "mlartifacts").as_uri() if local else None)
    return client


def _is_local(uri: str) -> bool:
    return uri.startswith(("file:", "/"))


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _search(client: "MlflowClient", query: str) -> Iterator["ModelVersion"]:
    token = None
    while True:
        page = client.search_model_versions(query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _get(client: "MlflowClient", version: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    if str(version).isdigit():
        try:
            return client.get_model_version(MODEL_NAME, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    known = sorted((int(found.version) for found in _search(client, f"name = '{MODEL_NAME}'")), reverse=True)
    remedy = f"choose one of {', '.join(map(str, known[:10]))}" if known else "register a retraining first"
    raise BadInput(f"{MODEL_NAME} has no version {version}: {remedy}")


def _resolve(client: "MlflowClient", address: str) -> str:
    match = re.fullmatch(rf"models:/{MODEL_NAME}(?:@([\w-]+)|/(\d+))", address)
    if match is None:
        raise BadInput(
            f"{address} is no model address: use models:/{MODEL_NAME}@champion or models:/{MODEL_NAME}/1"
        )
    alias, version = match.groups()
    if version is not None:
        return version
    known = aliases()
    if alias not in known:
        remedy = (
            f"choose one of {', '.join(sorted(known))}" if known else "register and promote a model first"
        )
        raise BadInput(f"{MODEL_NAME} has no {alias}: {remedy}")
    return known[alias]


@contextmanager
def _stored_model(client: "MlflowClient", model_id: str, what: str) -> Iterator[Path]:
    """Fetches a stored model folder for as long as the block lasts."""
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = f"{client.get_logged_model(model_id).artifact_location}/artifacts/model"
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        except (OSError, MlflowException) as error:
            kind = type(error).__name__
            raise IntegrityError(
                f"the stored model of {what} cannot be fetched ({kind}): restore it"
            ) from error
        yield found


def _check_version(folder: Path, version: "ModelVersion") -> None:
    tags, what = version.tags, f"version {version.version}"
    _check_hashes(folder, tags.get("weights_sha256"), tags.get("spec_sha256"), what)


def _check_hashes(folder: Path, weights_sha256: str | None, spec_sha256: str | None, what: str) -> None:
    from openmed.models.checkpoint import SPEC_FILE, WEIGHTS_FILE

    for name, expected in ((WEIGHTS_FILE, weights_sha256), (SPEC_FILE, spec_sha256)):
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise IntegrityError(
                f"{name} of {what} in the store is not what was registered: restore it, or retrain"
            )


def _described(version: "ModelVersion", named: Mapping[str, str]) -> dict[str, Any]:
    tags = dict(version.tags)
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds")
    kept = (
        "architecture",
        "verdict",
        "decision",
        "approved_by",
        "approved_at",
        "run_key",
        "revision",
        "data_md5",
    )
    return {
        "version": str(version.version),
        "aliases": sorted(alias for alias, target in named.items() if target == str(version.version)),
        "created": created,
        "run_id": version.run_id,
        "tags": tags,
        **{key: tags.get(key) for key in kept},
        **{key: _number(tags.get(key)) for key in _JUDGED},
    }


def _number(text: str | None) -> float | None:
    return None if text in (None, "None", "") else float(text)


def _spoken(version: str | None) -> str:
    return "none" if version is None else f"version {version}"


def _set_run_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {} if content is None else {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        raise BadInput(
            f"{path} is missing or is not YAML: run the pipeline in this workspace first"
        ) from None


def _read_table(path: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path, columns=columns)
    except (OSError, ValueError, KeyError):
        raise BadInput(f"{path} is missing or unreadable: run the pipeline in this workspace first") from None


def _write_table(path: Path, table: "pd.DataFrame") -> None:
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
