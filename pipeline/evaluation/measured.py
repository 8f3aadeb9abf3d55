"""What is measured of one finding, at the frozen threshold, before and after calibration."""

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
from pipeline.evaluation.judgement import at_threshold
from pipeline.evaluation.metrics_file import (
    CalibrationFilms,
    FindingMetrics,
    Reliability,
    TestFilms,
    ValidationFilms,
)
from pipeline.evaluation.rules import Rules

if TYPE_CHECKING:
    import pandas as pd


def measured(
    parts: "Mapping[str, pd.DataFrame]", spec: ModelSpec, rules: Rules, intervals: Mapping[str, Interval]
) -> FindingMetrics:
    """Gathers what is known of a finding that a model is asked for, but for changed films.

    The parts are validation, calibration and test films, with the probability of the finding as score; the
    intervals are those of the test films.
    """
    calibration, validation = parts["calibration"], parts["validation"]
    calibrated, validated = (
        at_threshold(films, spec, rules.confidence) for films in (calibration, validation)
    )
    sensitivity, specificity = intervals["sensitivity"], intervals["specificity"]
    return FindingMetrics(
        spec.positive,
        spec.operating_point,
        rules.target_sensitivity,
        ValidationFilms(len(validation), validated["auc"].value),
        CalibrationFilms(
            len(calibration),
            calibrated["sensitivity"].value,
            calibrated["specificity"].value,
            _specificity_at_target(calibration, spec, rules),
        ),
        _test(parts["test"], spec, intervals),
        {f"{share:.0%}": at_prevalence(sensitivity, specificity, share) for share in PREVALENCES},
        reliability(parts["test"], spec),
    )


def _test(films: "pd.DataFrame", spec: ModelSpec, intervals: Mapping[str, Interval]) -> TestFilms:
    counts = confusion(films["label"] == spec.positive_index, films["score"] >= spec.operating_point)
    patients, positives = int(films["patient"].nunique()), counts.tp + counts.fn
    shown: dict[str, Any] = {**asdict(counts), **intervals}
    return TestFilms(len(films), patients, positives, **shown)


def _specificity_at_target(films: "pd.DataFrame", spec: ModelSpec, rules: Rules) -> float:
    has = films["label"] == spec.positive_index
    return specificity(has, films["score"], choose_threshold(has, films["score"], rules.target_sensitivity))


def reliability(films: "pd.DataFrame", spec: ModelSpec) -> Reliability:
    """Measures of calibration before and after."""
    steps = {
        name: calibration_summary(films["label"], probabilities, spec.positive_index)
        for name, probabilities in _stages(films, spec).items()
    }
    return Reliability(spec.probability_map.method, spec.probability_map.films, **steps)


def _stages(films: "pd.DataFrame", spec: ModelSpec) -> dict[str, np.ndarray]:
    """Probabilities (N, classes) of the same films at each step of the repair."""
    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy()
    return {
        "softmax": softmax(logits),
        "prior_corrected": Calibration.of_prior(spec.probability_map.prior_correction).apply(logits),
        "calibrated": spec.probability_map.apply(logits),
    }


def curves(films: "pd.DataFrame", spec: ModelSpec) -> "dict[str, pd.DataFrame]":
    """The curves of a finding on test films: roc, precision_recall, reliability and reliability_softmax."""
    import pandas as pd

    labels, scores = (films["label"] == spec.positive_index).to_numpy(int), films["score"].to_numpy()
    raw = _stages(films, spec)["softmax"][:, spec.positive_index]
    points = ("predicted", "observed", "films")
    points_of = {
        "roc": (("fpr", "tpr", "threshold"), roc_curve_points(labels, scores)),
        "precision_recall": (("recall", "precision", "threshold"), precision_recall_points(labels, scores)),
        "reliability": (points, reliability_points(labels, scores)),
        "reliability_softmax": (points, reliability_points(labels, raw)),
    }
    return {
        name: pd.DataFrame(dict(zip(columns, values, strict=True)))
        for name, (columns, values) in points_of.items()
    }


def write_curves(target: Path, films: "pd.DataFrame", spec: ModelSpec) -> None:
    """Writes the curves of a finding as CSV files, from which `dvc plots` draws."""
    for name, table in curves(films, spec).items():
        with atomic_path(target / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
