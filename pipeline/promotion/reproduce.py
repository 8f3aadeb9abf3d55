"""Runs the retraining of a version again, from what was recorded of it, and compares.

Hides the workspace it runs in: the recorded commit with the recorded settings and data, every stage run anew.
"""

import subprocess
import sys
from math import isnan
from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_file
from openmed.metrics.intervals import COMPARED
from pipeline import registry
from pipeline.evaluation.metrics_file import Metrics
from pipeline.tools.dvc_lock import read_pointer
from pipeline.tools.git import environment
from pipeline.versioning import workspace

SAME_BITS, SAME_METRICS, DIFFERENT = "same bits", "same metrics", "different"
# What another processor or version of a library may change in a metric (0 to 1) of the same training.
METRIC_TOLERANCE = 0.02
_STDERR = 2


def reproduce(project: Path, home: Path, version: str) -> dict[str, Any]:
    """Trains a version again and says whether bits or metrics agree.

    The project holds the recorded commit and its data; the workspace, `home/runs/reproduce-<version>`, is
    removed afterwards.

    Returns:
        version, agreement (same bits, same metrics or different), weights_sha256 and metrics, each with
        recorded and found.

    Raises:
        BadInput: There is no such version, or its commit is not here.
        IntegrityError: Its evidence was changed, or commit and data do not belong together.
        ResourceError: Its data is neither in the cache nor on a remote.
    """
    registry.check(version)
    tags = registry.get_version(version).tags
    folder = workspace.create(project, tags["revision"], f"reproduce-{version}", home)
    try:
        _prepare(folder, version, tags)
        _run(folder, f"evaluate@{tags['architecture']}")
        return _compared(folder / "artifacts" / "evaluate" / tags["architecture"], version, tags)
    finally:
        workspace.remove(project, folder)


def _prepare(folder: Path, version: str, tags: dict[str, str]) -> None:
    data = read_pointer(folder / workspace.DATA_FILE)["outs"][0]["md5"]
    if data != tags["data_md5"]:
        raise IntegrityError(
            f"commit {tags['revision']} holds other data than version {version} was trained on: it cannot be "
            "trained again from there"
        )
    # A run may have set values that are in no commit.
    recorded = registry.artifact(version, "params.yaml")
    (folder / "params.yaml").write_bytes(recorded.read_bytes())


def _run(folder: Path, stage: str) -> None:
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", stage]
    # The workspace has a state of its own: measurements of films from earlier runs are not taken over.
    own = {**environment(), "OPENMED_HOME": str(folder / ".openmed"), "OPENMED_PROJECT": str(folder)}
    # What the stages say goes to stderr: stdout is for the result alone.
    done = subprocess.run(command, cwd=folder, env=own, stdout=_STDERR, check=False)
    if done.returncode:
        raise BadInput(f"the pipeline did not run to its end again: stage {stage} is above")


def _compared(folder: Path, version: str, tags: dict[str, str]) -> dict[str, Any]:
    rerun = _values(folder / "metrics.json")
    recorded = _values(registry.artifact(version, "metrics.json"))
    weights = sha256_file(folder / "model" / "weights.safetensors")
    if weights == tags["weights_sha256"]:
        agreement = SAME_BITS
    elif rerun.keys() == recorded.keys() and all(_near(rerun[name], recorded[name]) for name in recorded):
        agreement = SAME_METRICS
    else:
        agreement = DIFFERENT
    return {
        "version": version,
        "agreement": agreement,
        "weights_sha256": {"recorded": tags["weights_sha256"], "found": weights},
        "metrics": {name: {"recorded": recorded[name], "found": rerun.get(name)} for name in recorded},
    }


def _values(path: Path) -> dict[str, float | None]:
    """What is compared of each finding, with its name where there are several."""
    findings = Metrics.read(path).findings
    values = {
        name if len(findings) == 1 else f"{finding}: {name}": getattr(measured.test, name).value
        for finding, measured in findings.items()
        for name in COMPARED
    }
    return {name: None if isnan(value) else value for name, value in values.items()}


def _near(rerun: float | None, recorded: float | None) -> bool:
    if rerun is None or recorded is None:
        return rerun is recorded
    return abs(rerun - recorded) <= METRIC_TOLERANCE
