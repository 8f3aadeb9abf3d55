"""How a model is judged on its predictions, by the evaluate stage and by whoever checks it later."""

from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.files import sha256_bytes
from openmed.fitted.novelty import conformal_limit
from openmed.fitted.operating_point import choose_threshold, controlled_threshold, spared_threshold
from openmed.gates.gate import Gate, judge, overall
from openmed.metrics.clustered import clustered_share
from openmed.metrics.intervals import Interval, metric_intervals
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
    """Chooses, on the calibration films of a table of predictions, the distance from which a film is unlike.

    Returns:
        The limit and the number of patients.
    """
    films = predictions[predictions["split"] == "calibration"]
    return conformal_limit(films["distance"], patient_numbers(films), share)


def measure(
    films: "pd.DataFrame", positive_index: int, threshold: float, rules: Rules
) -> dict[str, Interval]:
    """Metrics of the finding against everything else, with intervals that know of patients."""
    return metric_intervals(
        films["label"] == positive_index,
        films["score"],
        patient_numbers(films),
        threshold,
        **rules.resampling,
    )


def with_thresholds(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: "Mapping[str, Rules]"
) -> "ModelSpec":
    """Chooses the threshold of each finding on the calibration films and freezes all of them in.

    Args:
        predictions: One row a film: split, label, patient, and a logit_<CLASS> for each class.
        spec: Description of the model.
        rules: Settings of each finding that is looked for, as `Rules.of_each` gives them.

    Raises:
        BadInput: As `operating_threshold`.
    """
    points = {
        name: operating_threshold(asked(predictions, spec, name), spec.class_names.index(name), own)
        for name, own in rules.items()
    }
    return spec.with_threshold(points.pop(spec.positive), points)


def asked(films: "pd.DataFrame", spec: "ModelSpec", finding: str) -> "pd.DataFrame":
    """Returns films with the probability of a finding as their score, from their logits."""
    if finding == spec.positive or films.empty:
        return films
    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy(np.float64)
    return films.assign(score=spec.probabilities(logits)[:, spec.class_names.index(finding)])


def judge_findings(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: "Mapping[str, Rules]"
) -> tuple[dict[str, dict[str, Interval]], dict[str, Any]]:
    """Measures the test films for each finding, against all other classes, and holds them to its floors.

    Returns:
        finding -> intervals, and the content of gates.json.
    """
    intervals, verdicts, shown = {}, [], []
    for name in spec.findings:
        own, films = spec.of_finding(name), asked(predictions, spec, name)
        intervals[name], _, gates = judge_test_films(films, own.positive_index, own.threshold, rules[name])
        verdicts += gates
        shown += [named_gate(spec, name, gate.to_json()) for gate in gates]
    return intervals, {"verdict": overall(verdicts), "gates": shown}


def named_gate(spec: "ModelSpec", finding: str, gate: dict[str, Any]) -> dict[str, Any]:
    """Returns a gate that says of which finding it is, where several are looked for."""
    if len(spec.findings) == 1 or "finding" in gate:
        return gate
    named = {key: f"{finding}: {gate[key]}" for key in ("name", "reason")}
    return {"finding": finding, **gate, **named}


def called_films(films: "pd.DataFrame", spec: "ModelSpec", confidence: float) -> dict[str, Any]:
    """Counts films by the class that they have and the one that they are called at the frozen thresholds.

    Returns:
        confusion: class that films have -> class that they are called -> films; and called_rightly, the share
        that is, with an interval that knows of patients.
    """
    from openmed.inference.session import called_classes, count_called

    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy(np.float64)
    labels, probabilities = films["label"].to_numpy(), spec.probabilities(logits)
    rightly = called_classes(spec, probabilities, spec.threshold) == labels
    return {
        "confusion": count_called(spec, labels, probabilities, spec.threshold),
        "called_rightly": clustered_share(rightly, patient_numbers(films), confidence).to_json(),
    }


def judge_test_films(
    predictions: "pd.DataFrame", positive_index: int, threshold: float, rules: Rules
) -> tuple[dict[str, Interval], str, list[Gate]]:
    """Measures the test films of a table of predictions and holds them against the floors.

    Returns:
        The intervals, the verdict and the gates.
    """
    test = predictions[predictions["split"] == "test"]
    intervals = measure(test, positive_index, threshold, rules)
    return intervals, *judge(intervals, rules.floors)


def patient_numbers(films: "pd.DataFrame") -> "pd.Series":
    """Tells patients apart by their first film, so that no result depends on what a patient is called.

    A seed then draws the same resamples from the films as from their evidence, which names no patient.
    """
    return films.groupby("patient")["id"].transform("min").astype(str)


def describe_external(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: Rules
) -> dict[str, dict[str, Any]]:
    """Measures each external set of a table of predictions; see `external_validation.describe_set`.

    Args:
        predictions: One row a film, with its set.
        spec: Description of the model, with its operating points.
        rules: Settings of the intervals.

    Returns:
        name of the set -> what it shows of the first finding, with `sha256`, which names its films and labels
        by their content; `unlike`, the share of films referred as unlike those that the model learnt from,
        where it tells; and `findings`, the same of each further finding, where there are some.
    """
    found = {}
    for name, films in predictions.groupby("set", sort=True):
        shown = {each: _describe_set(films, spec, each, rules) for each in spec.findings}
        found[str(name)] = {"sha256": set_digest(films), **shown.pop(spec.positive)}
        if shown:
            found[str(name)]["findings"] = shown
        # Models of before have no limit, and evidence of before no distances.
        if spec.novelty is not None and "distance" in films:
            unlike = spec.novelty.unlike(films["distance"])
            share = clustered_share(unlike, patient_numbers(films), rules.confidence)
            found[str(name)]["unlike"] = share.to_json()
    return found


def _describe_set(
    films: "pd.DataFrame", spec: "ModelSpec", finding: str, rules: Rules
) -> dict[str, dict[str, Any]]:
    from openmed.gates.external_validation import describe_set

    own = spec.of_finding(finding)
    films = asked(films, spec, finding).assign(patient=patient_numbers(films))
    return describe_set(films, own.class_names, own.positive_index, own.threshold, **rules.resampling)


def set_digest(films: "pd.DataFrame") -> str:
    """Names a set of films by their content and labels, whatever it is called."""
    return sha256_bytes("".join(sorted(films["sha256"] + films["label"].astype(str))).encode())
