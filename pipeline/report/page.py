"""Gathers what the stages wrote into one page that a clinician can read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from openmed.cache.film_cache import FilmCache
from openmed.files import read_json, read_table, sha256_file
from openmed.fitted.spec import ModelSpec
from pipeline.evaluation.judgement import scored_for
from pipeline.evaluation.measured import curves
from pipeline.evaluation.metrics_file import FindingMetrics, Metrics
from pipeline.report.charts import (
    confusion_chart,
    history_chart,
    precision_recall_chart,
    reliability_chart,
    roc_chart,
    score_chart,
)
from pipeline.report.render import picture, render, tool_versions
from pipeline.report.site_pictures import site_pictures
from pipeline.settings.artifacts import CACHE, MANIFEST, SPLIT, folder
from pipeline.settings.params import Params

_METRIC_NAMES = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "auc": "Area under the ROC curve",
    "accuracy": "Accuracy",
    "f1": "F1",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "average_precision": "Average precision",
    "brier": "Brier score (0 is best)",
}
_OUTCOMES = {
    "false_negative": "Missed: has the finding, was not flagged",
    "false_positive": "False alarms: no finding, was flagged",
    "true_positive": "Rightly flagged",
    "true_negative": "Rightly passed",
}
_REPAIR_STEPS = {
    "softmax": "as the network gives them",
    "prior_corrected": "resampling undone",
    "calibrated": "calibrated",
}
METHOD_NAMES = {
    "grad_cam": "Grad-CAM",
    "gradient_attention": "gradient-weighted attention",
    "rollout": "attention rollout",
}

# What was done, what must follow, and the numbers that show it. The last is another number or, where that is
# the limit, how to read it.
_MAP_CHECKS = {
    "hottest_part": (
        "The hottest fifth of each film is hidden",
        "Confidence falls, and more than when as much is hidden elsewhere",
        ("map_drop", "random_drop"),
    ),
    "deletion": (
        "More and more of each film is hidden, the hottest places first",
        "Less confidence is left on the way than when other places come first",
        ("deletion_area", "random_deletion_area"),
    ),
    "insertion": (
        "A blurred film is made sharp again bit by bit, the hottest places first",
        "More confidence is there on the way than when other places come first",
        ("insertion_area", "random_insertion_area"),
    ),
    "randomisation": (
        "Models that have learned nothing explain the same films",
        "Their maps look different",
        ("randomised_correlation", "at most"),
    ),
    "repetition": (
        "Each film is explained a second time",
        "The map is the same",
        ("repeat_difference", "at most"),
    ),
    "perturbation": (
        "Each film is moved by one pixel, with noise that no eye can see",
        "The map stays much the same",
        ("perturbed_correlation", "at least"),
    ),
}


def build_report(params: Params, architecture: str, spec: ModelSpec, explanation: dict) -> str:
    """Builds the report of one architecture from the artefacts in the working folder."""
    evaluated, trained = folder("evaluate", architecture), folder("train", architecture)
    metrics = Metrics.read(evaluated / "metrics.json")
    predictions = read_table(evaluated / "predictions.parquet")
    test = predictions[predictions["split"] == "test"]
    return render(
        "report.html",
        spec=spec,
        params=params,
        training=params.train[architecture],
        metrics=metrics,
        gates=read_json(evaluated / "gates.json"),
        findings=[_finding(architecture, spec, name, test, metrics, explanation) for name in spec.findings],
        confusion=confusion_picture(metrics.confusion or {}),
        history=picture(history_chart(pd.read_csv(trained / "history.csv")), "svg+xml"),
        explanation=explanation,
        method_names=METHOD_NAMES,
        data=read_json(folder("validate") / "summary.json"),
        expectations=read_json(folder("validate") / "expectations.json"),
        split=read_json(folder("split") / "summary.json"),
        leakage=read_json(folder("split") / "leakage.json"),
        resampled=read_json(folder("resample") / "summary.json"),
        trained=read_json(trained / "summary.json"),
        hashes={
            "weights": metrics.model["weights_sha256"],
            "manifest": sha256_file(MANIFEST),
            "split": sha256_file(SPLIT),
            "film cache": sha256_file(CACHE / "cache.json"),
            "predictions": sha256_file(evaluated / "predictions.parquet"),
        },
        versions=tool_versions(),
    )


def confusion_picture(confusion: Mapping[str, Mapping[str, int]]) -> str:
    """Draws how many films of each class are called each class; the address holds the picture."""
    counts = np.array([list(row.values()) for row in confusion.values()])
    return picture(confusion_chart(counts, list(confusion)), "svg+xml")


def _finding(
    architecture: str, spec: ModelSpec, name: str, test: pd.DataFrame, metrics: Metrics, explanation: dict
) -> dict[str, Any]:
    """What the report shows of one finding."""
    own, films = spec.of_finding(name), scored_for(test, spec, name)
    measured = metrics.findings[name]
    explained = explanation | explanation.get("findings", {}).get(name, {})
    return {
        "name": name,
        "metrics": measured,
        "metric_rows": [(title, getattr(measured.test, key)) for key, title in _METRIC_NAMES.items()],
        "sites": measured.sites["test"],
        "site_pictures": site_pictures(_a_film_with_the_finding(films, own)),
        "elsewhere": sets_of(read_json(folder("external", architecture) / "metrics.json")["sets"], name),
        "repair": [(title, getattr(measured.reliability, key)) for key, title in _REPAIR_STEPS.items()],
        "charts": _charts(films, own, measured),
        "outcomes": _examples(architecture, explained),
        "faithfulness": explained["faithfulness"],
        "map_checks": {method: _map_checks(explained, method) for method in explained["faithfulness"]},
    }


def sets_of(sets: Mapping[str, Any], finding: str) -> dict[str, Any]:
    """What external sets show of one finding; that of the first stands at the top."""
    return {name: content | content.get("findings", {}).get(finding, {}) for name, content in sets.items()}


def _a_film_with_the_finding(films: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    """The first test film that has it, uint8 (S, S); the same for every network."""
    cache = FilmCache(CACHE, spec.image_size_px)
    having = films.loc[films["label"] == spec.positive_index, "id"]
    return cache.films[cache.rows(having.sort_values().head(1))][0]


def _charts(films: pd.DataFrame, spec: ModelSpec, measured: FindingMetrics) -> dict[str, str]:
    points = curves(films, spec)
    scores = {
        name: films.loc[films["label"] == index, "score"].to_numpy()
        for index, name in enumerate(spec.class_names)
    }
    histogram = score_chart(scores, spec.operating_point, spec.positive)
    reliability = reliability_chart(points["reliability"], points["reliability_softmax"])
    charts = {
        "Receiver operating characteristic": roc_chart(points["roc"], measured.test),
        "Scores of the test films; the line is the threshold": histogram,
        "Precision and recall": precision_recall_chart(points["precision_recall"]),
        "Reliability of the probabilities; larger dots are more films": reliability,
    }
    return {title: picture(svg, "svg+xml") for title, svg in charts.items()}


def _map_checks(explanation: dict, method: str) -> list[dict]:
    """The rows of the table that shows how the maps of a method were checked."""
    check, limits = explanation["faithfulness"][method], explanation["limits"]
    return [
        {
            "done": done,
            "must": must,
            "measured": check[measured],
            "against": check[against] if against in check else limits[measured],
            "bound": "" if against in check else against,
            "passed": name not in check["failed"],
        }
        for name, (done, must, (measured, against)) in _MAP_CHECKS.items()
    ]


def _examples(architecture: str, explanation: dict) -> dict[str, list[dict]]:
    """Example films by outcome, the errors first, with their pictures inside."""
    source = folder("explain", architecture) / "examples"
    grouped: dict[str, list[dict]] = {title: [] for title in _OUTCOMES.values()}
    for example in explanation["examples"]:
        shown = {
            kind: picture((source / name).read_bytes(), "jpeg") for kind, name in example["pictures"].items()
        }
        grouped[_OUTCOMES[example["outcome"]]].append(example | {"pictures": shown})
    return grouped
