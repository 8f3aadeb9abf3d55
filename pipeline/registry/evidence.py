"""What is kept about a model beside its weights: files and numbers.

Hides what is logged under which name, and that nothing of it names a patient: films go by the hash of
their content, patients by a number that means nothing outside one retraining.
"""

import math
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import hashes_below, read_json, read_table, sha256_file
from pipeline.registry.profiles import stage_profile
from pipeline.registry.retraining import EXTERNAL_METRICS, EXTERNAL_PREDICTIONS, Candidate, Retraining
from pipeline.settings.plan import PLAN_FILE, flat

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from pipeline.registry.scoring import Scored, Unscored

_METRICS_PER_CALL = 1000
# MLflow takes 250 signs, which must hold the name of a metric or setting too.
_LONGEST_NAME = 100
# What the names of other numbers begin with.
_LOGGED = ("test", "train", "validation", "best_validation")


def stage_parent(done: Retraining, folder: Path) -> list[str]:
    """Copies what all candidates share; returns the files left out because they name a patient."""
    artifacts = done.workspace / "artifacts"
    texts = {
        "params.yaml": done.workspace / "params.yaml",
        "dvc.lock": done.workspace / "dvc.lock",
        "validate/summary.json": artifacts / "validate" / "summary.json",
        "validate/expectations.html": artifacts / "validate" / "expectations.html",
    }
    drift, manifest = artifacts / "drift", artifacts / "validate" / "manifest.parquet"
    compared = read_json(drift / "drift.json") if (drift / "drift.json").is_file() else None
    # A page about another version of the data may lie there; what was compared is said by its hash.
    if compared is not None and compared["manifest_sha256"] == sha256_file(manifest):
        texts |= {f"drift/{name}": drift / name for name in ("drift.json", "drift.html")}
    withheld = _copy_texts(done, texts, folder)
    (folder / "split").mkdir()
    split = done.films[["id", "patient", "label", "split"]]
    _pseudonymous(split, done.pseudonyms()).to_parquet(folder / "split" / "split.parquet", index=False)
    return withheld + stage_profile(done, folder)


def stage_candidate(
    done: Retraining, candidate: Candidate, against: "Mapping[str, Scored | Unscored]", folder: Path
) -> tuple[dict[str, str], list[str]]:
    """Copies the evidence on one candidate into a folder.

    Returns:
        The SHA-256 of each file in it, and the names of files left out because they name a patient.
    """
    from openmed.inference.control import CONTROL_FILE

    name, artifacts = candidate.architecture, done.workspace / "artifacts"
    explain = artifacts / "explain" / name
    texts = {
        path.name: path for path in sorted(candidate.folder.iterdir()) if path.suffix in (".json", ".csv")
    }
    texts |= {path.name: path for path in (explain / "explain.json", explain / "report.html")}
    texts |= {"history.csv": artifacts / "train" / name / "history.csv"}
    texts |= {"training_summary.json": artifacts / "train" / name / "summary.json"}
    texts |= {"params.yaml": done.workspace / "params.yaml", PLAN_FILE: done.workspace / PLAN_FILE}
    texts |= {EXTERNAL_METRICS: candidate.external / "metrics.json"}
    withheld = _copy_texts(done, texts, folder)
    if bad := {"metrics.json", "gates.json", EXTERNAL_METRICS, "params.yaml", PLAN_FILE} & set(withheld):
        raise BadInput(f"{' and '.join(sorted(bad))} of {name} names a patient: it cannot be registered")
    for image in sorted((explain / "examples").glob("*.jpg")):
        (folder / "examples").mkdir(exist_ok=True)
        (folder / "examples" / image.name).write_bytes(image.read_bytes())
    shutil.copyfile(candidate.folder / CONTROL_FILE, folder / CONTROL_FILE)
    predictions = read_table(candidate.folder / "predictions.parquet")
    _pseudonymous(predictions, done.pseudonyms()).to_parquet(folder / "predictions.parquet", index=False)
    elsewhere = read_table(candidate.external / "predictions.parquet").drop(columns="path")
    elsewhere = _pseudonymous(elsewhere, done.external_pseudonyms())
    elsewhere.to_parquet(folder / EXTERNAL_PREDICTIONS, index=False)
    # Validation and calibration films have shaped the model too: they count as seen.
    seen = done.films[done.films["split"].isin(["train", "validation", "calibration"])]
    seen = seen[["sha256", "split"]].reset_index(drop=True)
    seen.to_parquet(folder / "training_films.parquet", index=False)
    for name, earlier in against.items():
        earlier.save(folder, name)
    return hashes_below(folder), withheld


def _copy_texts(done: Retraining, texts: Mapping[str, Path], folder: Path) -> list[str]:
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


def log_numbers(client: "MlflowClient", run_id: str, done: Retraining, candidate: Candidate) -> None:
    """Logs the settings, the metrics with their intervals, and the course of the training."""
    from mlflow.entities import Metric, Param

    name, now_ms = candidate.architecture, int(time.time() * 1000)
    client.log_batch(run_id, params=[Param(key, text) for key, text in settings(done.params, name).items()])
    history = done.workspace / "artifacts" / "train" / name / "history.csv"
    measured = numbers(read_json(candidate.folder / "metrics.json"), history)
    metrics = [Metric(key, value, now_ms, step) for key, step, value in measured]
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])


def settings(params: Mapping[str, Any], architecture: str) -> dict[str, str]:
    """Returns the settings that shaped a candidate, flat, as text."""
    sections = {key: params.get(key) for key in ("run", "resample", "evaluate", "promotion")}
    if findings := (sections["evaluate"] or {}).get("findings"):
        named = {plain: findings[name] for name, plain in _plain_names(findings).items()}
        sections["evaluate"] = {**params["evaluate"], "findings": named}
    sections["train"] = (params.get("train") or {}).get(architecture)
    return {key: str(value) for key, value in flat(sections) if value is not None and value != {}}


def numbers(metrics: Mapping[str, Any], history: Path) -> list[tuple[str, int, float]]:
    """Returns name, step and value of everything measured on a candidate and during its training."""
    values = {"best_validation_auc": metrics["validation"]["auc"]} | dict(_measured("test", metrics["test"]))
    further = metrics.get("findings", {})
    for name, plain in _plain_names(further).items():
        values |= dict(_measured(plain, further[name]["test"]))
    return [(key, 0, float(value)) for key, value in values.items() if value is not None] + _course(history)


def _plain_names(findings: Iterable[str]) -> dict[str, str]:
    """Gives further findings names that MLflow takes: short ones of few signs, each another.

    A number tells apart what would be alike otherwise, or be taken for something else that is logged.
    """
    names = {}
    for number, name in enumerate(findings, start=1):
        plain = re.sub(r"^\.|[^\w\-. :]", "_", name)[:_LONGEST_NAME]
        alone = plain == name and name not in _LOGGED and not re.search(r" \d+$", name)
        names[name] = plain if alone else f"{plain} {number}"
    return names


def _measured(prefix: str, test: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for key, value in test.items():
        if isinstance(value, Mapping):
            yield f"{prefix}_{key}", value["value"]
            yield from ((f"{prefix}_{key}_{end}", value[end]) for end in ("low", "high"))
        else:
            yield f"{prefix}_{key}", value


def _course(history: Path) -> list[tuple[str, int, float]]:
    import pandas as pd

    if not history.is_file():
        return []
    epochs = pd.read_csv(history)
    columns = [name for name in epochs.select_dtypes("number").columns if name != "epoch"]
    return [
        (name, int(row["epoch"]), float(row[name]))
        for _, row in epochs.iterrows()
        for name in columns
        if math.isfinite(row[name])
    ]
