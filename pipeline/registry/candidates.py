"""Registering the models of a retraining, once each, however often it is tried.

Hides the MLflow runs that stand for a retraining and its candidates, the order of the steps, and what a
killed try leaves behind.
"""

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import BadInput
from openmed.files import hashes_below, sha256_file
from pipeline import ledger
from pipeline.evaluation.judgement import METHODS
from pipeline.registry.evidence import log_numbers, stage_candidate, stage_parent
from pipeline.registry.models import check_stored
from pipeline.registry.profiles import profile_digest
from pipeline.registry.retraining import Candidate, Retraining, check_committed
from pipeline.registry.scoring import Scored, Unscored, earlier, score_earlier
from pipeline.registry.serving_format import log_model
from pipeline.registry.verification import registration
from pipeline.settings.people import logins
from pipeline.settings.plain_text import one_line
from pipeline.settings.project import locked
from pipeline.tracking.store import CHALLENGER, EXPERIMENT, MODEL_NAME, connect, search
from pipeline.tracking.versions import TAGGED_METRICS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Registered:
    """What became of one retraining.

    Attributes:
        version, architecture, verdict: Of the challenger, the last by the gates of its evaluation.
        versions: Architecture -> version.
        order: The versions as they are to be judged until one passes, the challenger first.
        run_id: The MLflow run that stands for the retraining.
    """

    version: str
    architecture: str
    verdict: str
    versions: dict[str, str]
    order: list[str]
    run_id: str


def register_candidates(
    workspace: Path, *, run_key: str, revision: str, started_by: str | None = None
) -> Registered:
    """Registers the models of one retraining, each as a version of `openmed-cxr`.

    The current champion, and the version that was approved first, are scored on the same test films, while
    they are at hand, so that they can be compared later. The candidate that does best at the worst simulated
    site, on validation films, becomes the challenger; test films choose nothing. Calling again with the same
    `run_key`, after a kill too, adds only what is missing: a version is made last, when everything it stands
    for is stored and checked.

    The workspace is a checkout in which the pipeline has run, with the change plan and the settings (all but
    the seed) of its commit. The run key names the retraining, such as the id of the scheduled run; the
    revision is the git commit that it ran at, in full. Without `started_by` no person started it; with it the
    login that this process runs under is registered too.

    Raises:
        BadInput: An artefact is missing, plan or settings were edited since the commit, or the run key
            belongs to another revision.
        IntegrityError: A stored model is not the one that was evaluated.
    """
    if not re.fullmatch(r"[^'\"`\\\s]{1,250}", run_key) or not run_key.isprintable():
        raise BadInput(f"the run key {run_key!r} holds quotes or spaces, or is too long: choose another")
    started_by = one_line(started_by or "", "the name of who started it")
    done = Retraining.read(Path(workspace))
    check_committed(done.workspace, revision)
    with locked("register"), connect(adds_files=True) as client:
        parent = _parent_run(client, done, run_key, revision, started_by)
        versions, added = _versions(client, parent, done)
        ranked = done.ranked
        best = ranked[0]
        # A finished retraining is left alone: a decision made since then is not undone by a retry.
        if added or parent.info.status != "FINISHED":
            client.set_registered_model_alias(MODEL_NAME, CHALLENGER, versions[best.architecture])
            client.set_terminated(parent.info.run_id)
    order = [versions[candidate.architecture] for candidate in ranked]
    return Registered(order[0], best.architecture, best.verdict, versions, order, parent.info.run_id)


def _parent_run(
    client: "MlflowClient", done: Retraining, run_key: str, revision: str, started_by: str | None
) -> "Run":
    """Finds or makes the run that stands for the retraining, and logs what all candidates share."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.run_key = '{run_key}' and tags.kind = 'retraining'")
    if runs:
        parent = runs[0]
        if (known := parent.data.tags["revision"]) != revision:
            raise BadInput(
                f"run key {run_key} was registered at revision {known}, not {revision}: use a new key"
            )
        if (known := parent.data.tags["started_by"]) != started_by:
            raise BadInput(
                f"run key {run_key} was registered as started by {known or 'nobody'}, not "
                f"{started_by or 'nobody'}: use a new key"
            )
    else:
        tags = {"kind": "retraining", "run_key": run_key, "revision": revision, "data_md5": done.data_md5}
        tags["started_by"] = started_by or ""
        if started_by:
            tags["started_login"] = logins()["system"]
        parent = client.create_run(experiment, run_name=run_key, tags=tags)
    if parent.info.status != "FINISHED":
        with tempfile.TemporaryDirectory() as folder:
            withheld = stage_parent(done, Path(folder))
            client.log_artifacts(parent.info.run_id, folder)
            digest, shared = profile_digest(Path(folder)), json.dumps(hashes_below(Path(folder)))
        tags = {"dvc_lock_sha256": sha256_file(done.workspace / "dvc.lock"), "withheld": ", ".join(withheld)}
        for key, value in (tags | digest | {"evidence": shared}).items():
            client.set_tag(parent.info.run_id, key, value)
    return client.get_run(parent.info.run_id)


def _versions(client: "MlflowClient", parent: "Run", done: Retraining) -> tuple[dict[str, str], bool]:
    """Finds or makes the version of each architecture; tells whether any was made."""
    versions, against = {}, None
    for name, candidate in done.candidates.items():
        version = _existing(client, parent.data.tags["run_key"], candidate)
        if version is None:
            against = against or {
                name: score_earlier(done.workspace, each) for name, each in earlier().items()
            }
            version = _candidate(client, parent, done, candidate, against)
        # Written for a version of an earlier, killed try as well.
        ledger.register(client, version, registration(client, version))
        versions[name] = version
    return versions, against is not None


def _existing(client: "MlflowClient", run_key: str, candidate: Candidate) -> str | None:
    """Finds the version that an earlier try registered for the very same model."""
    wanted = {key: getattr(candidate, key) for key in ("architecture", "weights_sha256", "spec_sha256")}
    versions = search(client, f"name = '{MODEL_NAME}' and tags.run_key = '{run_key}'")
    return next((str(each.version) for each in versions if wanted.items() <= each.tags.items()), None)


def _discard_unfinished(client: "MlflowClient", parent: "Run", architecture: str) -> None:
    """Deletes the child runs of an earlier, killed try that never became a version."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.architecture = '{architecture}'"
    registered = {version.run_id for version in search(client, f"name = '{MODEL_NAME}'")}
    for run in client.search_runs([parent.info.experiment_id], query):
        if run.info.run_id not in registered:
            client.set_terminated(run.info.run_id, "KILLED")
            client.delete_run(run.info.run_id)


def _candidate(
    client: "MlflowClient",
    parent: "Run",
    done: Retraining,
    candidate: Candidate,
    against: Mapping[str, Scored | Unscored],
) -> str:
    """Logs a candidate as a child run, checks what was stored and makes it a version."""
    _discard_unfinished(client, parent, candidate.architecture)
    keys = ("run_key", "revision", "data_md5", "started_by", "started_login")
    shared = {key: parent.data.tags[key] for key in keys if key in parent.data.tags}
    tags = {"mlflow.parentRunId": parent.info.run_id, "architecture": candidate.architecture, **shared}
    run = client.create_run(parent.info.experiment_id, run_name=candidate.architecture, tags=tags)
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as folder:
        evidence, withheld = stage_candidate(done, candidate, against, Path(folder))
        client.log_artifacts(run_id, folder)
    log_numbers(client, run_id, done, candidate)
    model_id = log_model(run_id, candidate.folder / "model")
    files = check_stored(client, model_id, candidate)
    tags = (
        shared
        | _described(candidate)
        | {
            "dvc_lock_sha256": sha256_file(done.workspace / "dvc.lock"),
            "model_id": model_id,
            "test_sha256": done.test_sha256,
            "judged_by": METHODS,
            "external_sha256": json.dumps(done.external_sha256),
            "model_files": json.dumps(files),
            "evidence": json.dumps(evidence),
            "shared_evidence": parent.data.tags["evidence"],
            "withheld": ", ".join(withheld),
            "report": f"{run.info.artifact_uri}/report.html" if "report.html" in evidence else "",
            "champion_version": against["champion"].version or "",
        }
    )
    return _make_version(client, model_id, run_id, tags)


def _described(candidate: Candidate) -> dict[str, str]:
    """Returns what a candidate says of itself, as tags of its version."""
    own = ("architecture", "verdict", "weights_sha256", "spec_sha256")
    measured = next(iter(candidate.metrics.findings.values()))
    auc = measured.validation.auc
    return {
        **{key: getattr(candidate, key) for key in own},
        "threshold": str(measured.threshold),
        "validation_auc": str(None if math.isnan(auc) else auc),
        "validation_rank": str(candidate.rank[0]),
        **{name: str(getattr(measured.test, name).to_json()["value"]) for name in TAGGED_METRICS},
    }


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
