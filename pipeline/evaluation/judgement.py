"""How a model is judged on its predictions, by the evaluate stage and by whoever checks it later."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.files import sha256_bytes
from openmed.fitted.novelty import conformal_limit
from openmed.fitted.operating_point import choose_threshold, controlled_threshold, spared_threshold
from openmed.gates.gate import Gate, judge
from openmed.metrics.clustered import clustered_share
from openmed.metrics.intervals import Interval, judged_intervals, metric_intervals
from pipeline.evaluation.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from openmed.fitted.spec import ModelSpec


METHODS = "2"
"""Names how intervals are computed, as versions carry it; those without it were judged by resampling."""


def operating_threshold(predictions: "pd.DataFrame", positive_index: int, rules: Rules) -> float:
    """Chooses the threshold of a finding on the calibration films of a table of predictions.

    Raises:
        BadInput: No film there has the finding, or too few patients for the confidence that is asked.
    """
    films = predictions[predictions["split"] == "calibration"]
    promised = _promised_threshold(films, positive_index, rules)
    if rules.target_specificity is None:
        return promised
    # NaN, where every film has the finding, leaves the first.
    return min(
        promised, spared_threshold(films["label"] == positive_index, films["score"], rules.target_specificity)
    )


def _promised_threshold(films: "pd.DataFrame", positive_index: int, rules: Rules) -> float:
    """The highest threshold that keeps the promised sensitivity on calibration films."""
    labels, target = films["label"] == positive_index, rules.target_sensitivity
    if rules.threshold_confidence is None:
        return choose_threshold(labels, films["score"], target)
    patients = patient_numbers(films)
    return controlled_threshold(
        labels, films["score"], patients, target, rules.threshold_confidence, of=rules.threshold_of
    ).threshold


def unlike_limit(predictions: "pd.DataFrame", share: float) -> tuple[float, int]:
    """Chooses, on calibration films, the distance from which a film is unlike; and counts their patients."""
    films = predictions[predictions["split"] == "calibration"]
    return conformal_limit(films["distance"], patient_numbers(films), share)


def at_threshold(films: "pd.DataFrame", spec: "ModelSpec", confidence: float) -> dict[str, Interval]:
    """What a gate may judge of films at the frozen threshold; see `intervals.judged_intervals`."""
    has, patients = films["label"] == spec.positive_index, patient_numbers(films)
    return judged_intervals(has, films["score"], patients, spec.operating_point, confidence)


def with_thresholds(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: "Mapping[str, Rules]"
) -> "ModelSpec":
    """Chooses the threshold of each finding on the calibration films and freezes all of them in.

    Predictions have one row a film: split, label, patient, and a logit_<CLASS> for each class.

    Raises:
        BadInput: As `operating_threshold`.
    """
    points = {
        name: operating_threshold(scored_for(predictions, spec, name), spec.class_names.index(name), own)
        for name, own in rules.items()
    }
    return spec.with_threshold(points.pop(spec.positive), points)


def scored_for(films: "pd.DataFrame", spec: "ModelSpec", finding: str) -> "pd.DataFrame":
    """Returns films with the probability of a finding as their score, from their logits."""
    if finding == spec.positive or films.empty:
        return films
    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy(np.float64)
    return films.assign(score=spec.probabilities(logits)[:, spec.class_names.index(finding)])


def judge_findings(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: "Mapping[str, Rules]"
) -> tuple[dict[str, dict[str, Interval]], list[Gate]]:
    """Measures the test films for each finding and holds them to its floors: intervals of each, all gates."""
    intervals, gates = {}, []
    for name in spec.findings:
        own, films = spec.of_finding(name), scored_for(predictions, spec, name)
        point, settings = own.operating_point, rules[name]
        intervals[name], of_one = judge_test_films(films, own.positive_index, point, settings)
        gates += [named_gate(spec, name, gate) for gate in of_one]
    return intervals, gates


def named_gate(spec: "ModelSpec", finding: str, gate: Gate) -> Gate:
    """Returns a gate that says of which finding it is, where several are looked for."""
    if len(spec.findings) == 1 or gate.finding is not None:
        return gate
    name, reason = (f"{finding}: {text}" for text in (gate.name, gate.reason))
    return replace(gate, finding=finding, name=name, reason=reason)


def called_films(
    films: "pd.DataFrame", spec: "ModelSpec", confidence: float
) -> tuple[dict[str, dict[str, int]], Interval]:
    """Counts films by the class that they have and are called, and gives the share that is called rightly."""
    from openmed.inference.session import called_classes, count_called

    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy(np.float64)
    labels, probabilities = films["label"].to_numpy(), spec.probabilities(logits)
    rightly = called_classes(spec, probabilities, spec.threshold) == labels
    confusion = count_called(spec, labels, probabilities, spec.threshold)
    return confusion, clustered_share(rightly, patient_numbers(films), confidence)


def judge_test_films(
    predictions: "pd.DataFrame", positive_index: int, threshold: float, rules: Rules
) -> tuple[dict[str, Interval], list[Gate]]:
    """Measures the test films of a table of predictions and holds them against the floors."""
    test = predictions[predictions["split"] == "test"]
    has, patients = test["label"] == positive_index, patient_numbers(test)
    intervals = metric_intervals(has, test["score"], patients, threshold, **rules.resampling)
    return intervals, judge(intervals, rules.floors)[1]


def patient_numbers(films: "pd.DataFrame") -> "pd.Series":
    """Tells patients apart by their first film, so that no result depends on what a patient is called.

    A seed then draws the same resamples from the films as from their evidence, which names no patient.
    """
    return films.groupby("patient")["id"].transform("min").astype(str)


def describe_external(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: Rules
) -> dict[str, dict[str, Any]]:
    """Measures each external set of a table of predictions; see `external_validation.describe_set`.

    Returns:
        name of the set -> what it shows of the first finding, with `sha256`, which names its films and labels
        by their content; `unlike`, the share of films referred as unlike those that the model learnt from,
        where it tells; and `findings`, the same of each further finding, where there are some.
    """
    sets = {}
    for name, films in predictions.groupby("set", sort=True):
        shown = {each: _describe_set(films, spec, each, rules) for each in spec.findings}
        content = sets[str(name)] = {"sha256": set_digest(films), **shown.pop(spec.positive)}
        if shown:
            content["findings"] = shown
        # Models of before have no limit, and evidence of before no distances.
        if spec.novelty is not None and "distance" in films:
            unlike = spec.novelty.unlike(films["distance"])
            content["unlike"] = clustered_share(unlike, patient_numbers(films), rules.confidence).to_json()
    return sets


def _describe_set(
    films: "pd.DataFrame", spec: "ModelSpec", finding: str, rules: Rules
) -> dict[str, dict[str, Any]]:
    from openmed.gates.external_validation import describe_set

    own = spec.of_finding(finding)
    films = scored_for(films, spec, finding).assign(patient=patient_numbers(films))
    return describe_set(films, own.class_names, own.positive_index, own.operating_point, **rules.resampling)


def set_digest(films: "pd.DataFrame") -> str:
    """Names a set of films by their content and labels, whatever it is called."""
    return sha256_bytes("".join(sorted(films["sha256"] + films["label"].astype(str))).encode())
