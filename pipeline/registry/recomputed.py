"""What was judged of a version, computed anew from the stored prediction of each film.

Hides how it is held against what was recorded: the first difference is refused, and named.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.errors import IntegrityError
from openmed.files import read_json, read_table
from openmed.gates.gate import gates_to_json
from pipeline.evaluation.judgement import (
    METHODS,
    called_films,
    describe_external,
    judge_findings,
    unlike_limit,
    with_thresholds,
)
from pipeline.evaluation.metrics_file import Metrics
from pipeline.evaluation.rules import Rules
from pipeline.registry.evidence import EXTERNAL_METRICS, EXTERNAL_PREDICTIONS
from pipeline.registry.models import check_model
from pipeline.settings.yaml_file import read_yaml
from pipeline.tracking.versions import artifact

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from openmed.fitted.spec import ModelSpec


def same(now: Mapping[str, Any], recorded: Mapping[str, Any], what: str) -> None:
    """Refuses the first key whose two values differ; %s in `what` stands for the key."""
    for key in sorted(now.keys() | recorded.keys()):
        if now.get(key) != recorded.get(key):
            raise IntegrityError(
                f"{what.replace('%s', key)} is not what was recorded: restore the registry from its backup"
            )


def close(now: Any, recorded: Any, what: str) -> None:
    """Compares JSON content, numbers to 1e-9: another processor may round the last digit otherwise."""
    if isinstance(now, Mapping) and isinstance(recorded, Mapping) and now.keys() == recorded.keys():
        for key in now:
            close(now[key], recorded[key], what)
    elif isinstance(now, list) and isinstance(recorded, list) and len(now) == len(recorded):
        for one, other in zip(now, recorded, strict=True):
            close(one, other, what)
    elif isinstance(now, float) and isinstance(recorded, int | float):
        if abs(now - recorded) > 1e-9:
            raise IntegrityError(f"{what} says {recorded}, but its predictions give {now}")
    elif now != recorded:
        raise IntegrityError(f"{what} says {recorded}, but its predictions give {now}")


def check_verdict(version: "ModelVersion", folder: Path) -> None:
    """Computes threshold, metrics and gates anew from the predictions among the evidence in a folder."""
    what, spec = f"version {version.version}", check_model(str(version.version))
    predictions, params = read_table(folder / "predictions.parquet"), read_yaml(folder / "params.yaml")
    metrics, gates = Metrics.read(folder / "metrics.json"), read_json(folder / "gates.json")
    _check_scores(predictions, spec, what)
    rules = Rules.of_each(params, f"params.yaml of {what}")
    _check_fitted(predictions, spec, rules, metrics, what)
    intervals, judged = judge_findings(predictions, spec, rules)
    if version.tags.get("judged_by") != METHODS:
        # Limits of before were computed otherwise; what was measured is the same.
        values = {name: each.to_json()["value"] for name, each in intervals[spec.positive].items()}
        test = metrics.findings[spec.positive].test
        shown = {name: getattr(test, name).to_json()["value"] for name in values}
        close(values, shown, f"metrics.json of {what}")
        return
    shown = gates_to_json(judged)
    close(json.loads(json.dumps(shown)), gates, f"gates.json of {what}")
    for name, own in intervals.items():
        for key, each in own.items():
            recorded = getattr(metrics.findings[name].test, key)
            close(each.to_json(), recorded.to_json(), f"metrics.json of {what}")
    if metrics.confusion is not None:  # versions of before have none
        films, confidence = predictions[predictions["split"] == "test"], rules[spec.positive].confidence
        confusion, rightly = called_films(films, spec, confidence)
        close(confusion, metrics.confusion, f"metrics.json of {what}")
        share = metrics.called_rightly and metrics.called_rightly.to_json()
        close(rightly.to_json(), share, f"metrics.json of {what}")
    if (verdict := shown["verdict"]) != version.tags["verdict"]:
        raise IntegrityError(f"the verdict on {what} is {verdict}, not {version.tags['verdict']}")


def _check_scores(films: "pd.DataFrame", spec: "ModelSpec", what: str) -> None:
    scores = spec.probabilities(films[[f"logit_{name}" for name in spec.class_names]].to_numpy())
    if not np.allclose(scores[:, spec.positive_index], films["score"], atol=1e-6, rtol=0):
        raise IntegrityError(f"the scores of {what} are not those of its logits and its calibration")


def _check_fitted(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: Mapping[str, Rules], metrics: Metrics, what: str
) -> None:
    """Chooses thresholds and the limit of novelty again from the calibration films."""
    if tuple(rules) != spec.findings:
        findings = ", ".join(rules)
        raise IntegrityError(f"params.yaml of {what} looks for {findings}, but its model does not")
    again = with_thresholds(predictions, spec, rules)
    for name, each in metrics.findings.items():
        frozen, chosen = (of.of_finding(name).threshold for of in (spec, again))
        if not chosen == frozen == each.threshold:
            raise IntegrityError(
                f"the threshold of {what} is {frozen}, but its calibration films give {chosen}"
            )
    if spec.novelty is not None:
        limit = {"limit": unlike_limit(predictions, spec.novelty.share)[0]}
        close(limit, {"limit": spec.novelty.limit}, f"the limit of novelty of {what}")


def check_external(version: "ModelVersion") -> None:
    """Computes anew what is said of films from elsewhere."""
    # Versions of before there were external sets have none.
    if EXTERNAL_METRICS not in json.loads(version.tags["evidence"]):
        return
    what, spec = f"version {version.version}", check_model(str(version.version))
    names = (EXTERNAL_METRICS, EXTERNAL_PREDICTIONS, "params.yaml")
    metrics, predictions, params = (artifact(str(version.version), name) for name in names)
    films, sets = read_table(predictions), read_json(metrics)["sets"]
    if films.empty and not sets:
        return
    _check_scores(films, spec, f"{what} on external sets")
    again = describe_external(films, spec, Rules.of(read_yaml(params), f"params.yaml of {what}"))
    shown = {
        name: {key: value for key, value in one.items() if key != "unusable"} for name, one in sets.items()
    }
    if version.tags.get("judged_by") == METHODS:
        close(again, shown, f"{EXTERNAL_METRICS} of {what}")
    digests = {name: one["sha256"] for name, one in again.items()}
    same(digests, json.loads(version.tags["external_sha256"]), f"external set %s of {what}")
