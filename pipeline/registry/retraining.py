"""What one retraining left behind in its workspace.

Hides the layout of the artefacts, their agreement with each other, and who the patients are.
"""

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json, read_table, sha256_bytes, sha256_file
from pipeline.evaluation.judgement import set_digest
from pipeline.evaluation.metrics_file import Metrics
from pipeline.settings.plan import PLAN_FILE, flat, load_plan
from pipeline.settings.yaml_file import parse_yaml, read_mapping
from pipeline.tools.dvc_lock import check_outputs, read_pointer
from pipeline.tools.git import committed, git

if TYPE_CHECKING:
    import pandas as pd

# Shorter identifiers are found in any text; they can name nobody.
_SHORTEST_IDENTIFIER = 5
EXTERNAL_METRICS, EXTERNAL_PREDICTIONS = "external.json", "external_predictions.parquet"
_FIRST = "run the pipeline in this workspace first"
# Of the outputs of stages.
_READ = (
    *(f"artifacts/{stage}/*" for stage in ("validate", "split", "evaluate", "external", "explain")),
    *(f"artifacts/train/*/{name}" for name in ("history.csv", "summary.json")),
)
_SHOWN = (
    *("artifacts/validate/manifest.parquet", "artifacts/split/split.parquet"),
    "artifacts/external/*/predictions.parquet",
)
# Whoever starts a retraining may choose its seed.
_CHOSEN = {"run.seed"}


@dataclass(frozen=True)
class Candidate:
    """One trained and evaluated model of a workspace."""

    architecture: str
    folder: Path
    metrics: Metrics
    verdict: str
    weights_sha256: str
    spec_sha256: str

    @classmethod
    def read(cls, workspace: Path, architecture: str, lock: Mapping[str, Any]) -> "Candidate":
        """Reads what `evaluate` and `external` left for one architecture; refuses what they did not write."""
        from openmed.inference.checkpoint import SPEC_FILE, WEIGHTS_FILE, read_spec

        for stage in ("evaluate", "external"):
            check_outputs(workspace, lock, f"{stage}@{architecture}")
        folder = workspace / "artifacts" / "evaluate" / architecture
        metrics, gates = Metrics.read(folder / "metrics.json"), read_json(folder / "gates.json")
        spec, expected = read_spec(folder / "model")
        weights = sha256_file(folder / "model" / WEIGHTS_FILE)
        if not weights == expected == metrics.model["weights_sha256"]:
            raise IntegrityError(
                f"{folder} was evaluated with other weights than it holds: run evaluate again"
            )
        points = {name: each.threshold for name, each in metrics.findings.items()}
        if spec.threshold is None or {spec.positive: spec.threshold, **spec.further_thresholds} != points:
            raise IntegrityError(
                f"{folder} was evaluated at another threshold than its model has: run it again"
            )
        digest = sha256_file(folder / "model" / SPEC_FILE)
        return cls(architecture, folder, metrics, gates["verdict"], weights, digest)

    @property
    def external(self) -> Path:
        """Where `external` left its predictions and metrics."""
        return self.folder.parents[1] / "external" / self.architecture

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are ordered by, the highest first; test films have no part in it.

        On validation films: the mean of the worst sensitivity and the worst specificity over the simulated
        sites, then the AUC; of several findings that which does worst. What could not be computed is never
        best.
        """
        shares, aucs = [], []
        for measured in self.metrics.findings.values():
            worst = measured.sites["validation"].worst
            own = [_known(worst[name].value) for name in ("sensitivity", "specificity")]
            shares.append(sum(own) / len(own))
            aucs.append(_known(measured.validation.auc))
        return min(shares), min(aucs)


@dataclass(frozen=True)
class Retraining:
    """What a workspace holds when the pipeline has run in it."""

    workspace: Path
    params: dict[str, Any]
    data_md5: str
    films: "pd.DataFrame"
    """id, patient, label, split, path (below data/), sha256 of every film in a split."""
    candidates: dict[str, Candidate]
    external: "pd.DataFrame"
    """set, id, path (below external/), sha256, patient and label of every film of an external set."""

    @classmethod
    def read(cls, workspace: Path) -> "Retraining":
        """Reads a workspace; BadInput or IntegrityError when something is missing or does not agree."""
        params, names = _settings(workspace)
        data_md5 = read_pointer(workspace / "data.dvc")["outs"][0]["md5"]
        lock = read_mapping(workspace / "dvc.lock", missing=_FIRST)
        for stage in ("validate", "split"):
            check_outputs(workspace, lock, stage)
        load_plan(workspace / PLAN_FILE)
        candidates = {name: Candidate.read(workspace, name, lock) for name in names}
        return cls(workspace, params, data_md5, films_of(workspace), candidates, external_films_of(workspace))

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates, the one that becomes the challenger first."""
        return sorted(self.candidates.values(), key=lambda candidate: candidate.rank, reverse=True)

    @property
    def test_sha256(self) -> str:
        """Names the set of test films by their content."""
        return sha256_bytes("".join(sorted(self.films.loc[self.films["split"] == "test", "sha256"])).encode())

    @property
    def external_sha256(self) -> dict[str, str]:
        """Names each external set by the content of its films."""
        return {str(name): set_digest(films) for name, films in self.external.groupby("set")}

    def pseudonyms(self) -> dict[str, str]:
        """Patient -> number by the patient's first film id: stable, and not to be guessed backwards."""
        return _numbered(self.films, "p")

    def external_pseudonyms(self) -> dict[str, str]:
        """The same for the patients of external sets."""
        return _numbered(self.external, "e")

    def names_a_patient(self, text: str) -> bool:
        """Tells whether an identifier of a patient stands in a text or page, embedded images aside.

        Letters may be large or small, and written as HTML or JSON write them.
        """
        text = html.unescape(re.sub(r"data:[\w/+.-]+;base64,[\w+/=]+", "", text)).casefold()
        names = {str(name) for films in (self.films, self.external) for name in films["patient"].unique()}
        known = {form.casefold() for name in names for form in (name, json.dumps(name)[1:-1])}
        return any(
            re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text)
            for name in known
            if len(name) >= _SHORTEST_IDENTIFIER and name in text
        )


def is_read(out: str) -> bool:
    """Tells whether the output of a stage, a path in the workspace, is read to register a retraining."""
    return any(fnmatchcase(out, pattern) for pattern in _READ)


def is_shown(out: str) -> bool:
    """Tells whether the output of a stage is read where a version is judged or shown to reviewers."""
    return any(fnmatchcase(out, pattern) for pattern in _SHOWN)


def check_committed(workspace: Path, revision: str) -> None:
    """Refuses a workspace whose change plan or settings are not those of the commit it was made of.

    Raises:
        BadInput: They were edited there, or it stands on another commit.
    """
    commit = git(workspace, "rev-parse", "--verify", "HEAD")
    if commit != revision:
        raise BadInput(f"{workspace} stands on commit {commit}, not on {revision}: retrain from that commit")
    files = (workspace / PLAN_FILE, workspace / "params.yaml")
    if edited := edited_since(workspace, commit, *files, what=str(workspace)):
        raise BadInput(f"{edited}: commit plan and settings, then retrain")


def edited_since(root: Path, commit: str, plan: Path | None, params: Path, *, what: str) -> str | None:
    """Says what of a change plan, if there is one, and of settings is not as a commit has it."""
    if plan is not None and committed(root, commit, PLAN_FILE) != plan.read_text("utf-8").strip():
        return f"{PLAN_FILE} of {what} is not that of commit {commit[:12]}"
    text = committed(root, commit, "params.yaml")
    before = dict(flat(parse_yaml(text, f"params.yaml of commit {commit[:12]}")))
    after = dict(flat(read_mapping(params)))
    for key in sorted((before.keys() | after.keys()) - _CHOSEN):
        if before.get(key) != after.get(key):
            return (
                f"{key} in params.yaml of {what} is {after.get(key, 'not set')}, but "
                f"{before.get(key, 'not set')} in commit {commit[:12]}"
            )
    return None


def _numbered(films: "pd.DataFrame", letter: str) -> dict[str, str]:
    # A hash of the identifier could be undone by trying all identifiers there are.
    first = films.groupby("patient")["id"].min().sort_values()
    return {patient: f"{letter}{number:06d}" for number, patient in enumerate(first.index, start=1)}


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def films_of(workspace: Path) -> "pd.DataFrame":
    """Reads the films of a workspace, as `Retraining.films` has them; BadInput when it has not run there."""
    artifacts = Path(workspace) / "artifacts"
    split = read_table(artifacts / "split" / "split.parquet", ["id", "patient", "label", "split"])
    manifest = read_table(artifacts / "validate" / "manifest.parquet", ["id", "path", "sha256"])
    films = split.merge(manifest, on="id", how="left", validate="one_to_one")
    if films["sha256"].isna().any():
        raise BadInput(f"{artifacts} holds a split of other films than its manifest: run the pipeline again")
    return films


def external_films_of(workspace: Path) -> "pd.DataFrame":
    """Reads the films of the external sets of a workspace, as `Retraining.external` has them."""
    # The films are the same for every architecture.
    first = _settings(Path(workspace))[1][0]
    path = Path(workspace) / "artifacts" / "external" / first / "predictions.parquet"
    return read_table(path, ["set", "id", "path", "sha256", "patient", "label"])


def _settings(workspace: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads params.yaml of a workspace, of whatever version, and the architectures that it names."""
    params = read_mapping(workspace / "params.yaml", missing=_FIRST)
    names = params.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise BadInput(f"params.yaml in {workspace} names no architecture: there is nothing to register")
    return params, names
