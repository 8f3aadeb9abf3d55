"""What is measured of one finding: on which films, at the frozen threshold, before and after calibration."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.files import atomic_path
from openmed.fitted.calibration import Calibration, softmax
from openmed.fitted.operating_point import choose_threshold
from openmed.fitted.spec import ModelSpec
from openmed.metrics.calibration_error import calibration_summary
from openmed.metrics.classification import (
    confusion,
    precision_recall_points,
    reliability_points,
    roc_curve_points,
    specificity,
)
from openmed.metrics.clinical_utility import PREVALENCES, at_prevalence
from openmed.metrics.intervals import Interval
from pipeline.evaluation.judgement import measure
from pipeline.evaluation.rules import Rules

if TYPE_CHECKING:
    import pandas as pd


def measured(
    parts: "Mapping[str, pd.DataFrame]", spec: ModelSpec, rules: Rules, intervals: Mapping[str, Interval]
) -> dict[str, Any]:
    """Gathers what is known of a finding against all other classes.

    Args:
        parts: The validation, calibration and test films, with the probability of the finding as score.
        spec: Description of the model, asked for the finding.
        rules: Settings of its judgement.
        intervals: What was measured on the test films.

    Returns:
        positive, threshold, target_sensitivity, validation, calibration, test, prevalence and reliability.
    """
    calibration, validation = parts["calibration"], parts["validation"]
    calibrated = measure(calibration, spec.positive_index, spec.threshold, rules)
    return {
        "positive": spec.positive,
        "threshold": spec.threshold,
        "target_sensitivity": rules.target_sensitivity,
        "validation": {
            "n": len(validation),
            "auc": measure(validation, spec.positive_index, spec.threshold, rules)["auc"].value,
        },
        "calibration": {
            "n": len(calibration),
            "sensitivity": calibrated["sensitivity"].value,
            "specificity": calibrated["specificity"].value,
            # What it would be if the target had to be reached on these films alone.
            "specificity_at_target": _specificity_at_target(calibration, spec, rules),
        },
        "test": _test(parts["test"], spec, intervals),
        "prevalence": {
            f"{share:.0%}": at_prevalence(intervals["sensitivity"], intervals["specificity"], share).to_json()
            for share in PREVALENCES
        },
        "reliability": reliability(parts["test"], spec),
    }


def _test(films: "pd.DataFrame", spec: ModelSpec, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    counts = asdict(confusion(films["label"] == spec.positive_index, films["score"] >= spec.threshold))
    counts = {name: int(value) for name, value in counts.items()}
    return {
        "n": len(films),
        "patients": int(films["patient"].nunique()),
        "positives": counts["tp"] + counts["fn"],
        **counts,
        **{name: interval.to_json() for name, interval in intervals.items()},
    }


def _specificity_at_target(films: "pd.DataFrame", spec: ModelSpec, rules: Rules) -> float:
    has = films["label"] == spec.positive_index
    return specificity(has, films["score"], choose_threshold(has, films["score"], rules.target_sensitivity))


def reliability(films: "pd.DataFrame", spec: ModelSpec) -> dict[str, Any]:
    """Measures of calibration before and after: plain softmax, prior corrected, calibrated."""
    return {
        "method": spec.calibration.method,
        "films": spec.calibration.films,
        **{
            name: calibration_summary(films["label"], probabilities, spec.positive_index)
            for name, probabilities in _stages(films, spec).items()
        },
    }


def _stages(films: "pd.DataFrame", spec: ModelSpec) -> dict[str, np.ndarray]:
    """Probabilities (N, classes) of the same films at each step of the repair."""
    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy()
    return {
        "softmax": softmax(logits),
        "prior_corrected": Calibration.of_prior(spec.calibration.prior_correction).apply(logits),
        "calibrated": spec.calibration.apply(logits),
    }


def curves(films: "pd.DataFrame", spec: ModelSpec) -> "dict[str, pd.DataFrame]":
    """The curves of a finding: roc, precision_recall, reliability and reliability_softmax.

    Args:
        films: The test films, with the probability of the finding as score.
        spec: Description of the model, asked for the finding.
    """
    import pandas as pd

    labels, scores = (films["label"] == spec.positive_index).to_numpy(int), films["score"].to_numpy()
    raw = _stages(films, spec)["softmax"][:, spec.positive_index]
    points = ("predicted", "observed", "films")
    found = {
        "roc": (("fpr", "tpr", "threshold"), roc_curve_points(labels, scores)),
        "precision_recall": (("recall", "precision", "threshold"), precision_recall_points(labels, scores)),
        "reliability": (points, reliability_points(labels, scores)),
        "reliability_softmax": (points, reliability_points(labels, raw)),
    }
    return {
        name: pd.DataFrame(dict(zip(columns, values, strict=True)))
        for name, (columns, values) in found.items()
    }


def write_curves(target: Path, films: "pd.DataFrame", spec: ModelSpec) -> None:
    """Writes the curves of a finding as CSV files, from which `dvc plots` draws."""
    for name, table in curves(films, spec).items():
        with atomic_path(target / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
