"""Chooses the operating point on calibration films, freezes it, and judges the test films with it."""

import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd

from openmed.data.cache import FilmCache
from openmed.files import atomic_path, sha256_file, write_json
from openmed.metrics.classification import (
    confusion,
    precision_recall_points,
    reliability_points,
    roc_curve_points,
)
from openmed.metrics.gates import judge, to_json
from openmed.metrics.intervals import Interval, bootstrap
from openmed.metrics.operating_point import choose_threshold
from openmed.models.base import BaseModel
from openmed.models.checkpoint import WEIGHTS_FILE, load_model, read_spec, write_spec
from openmed.models.export import finish_export
from openmed.models.spec import ModelSpec
from pipeline.device import pick_device, use_device
from pipeline.params import Params
from pipeline.stage import CACHE, MANIFEST, SPLIT, folder, main

_SPLITS = ("validation", "calibration", "test")


def run(params: Params, architecture: str) -> None:
    """Predicts the films outside training and writes metrics, curves, gates and the finished model."""
    use_device(params)
    source = folder("train", architecture) / "model"
    model = load_model(source).to(pick_device(params.run.device))
    predictions = predict_split(model, pd.read_parquet(SPLIT))
    parts = {name: predictions[predictions["split"] == name] for name in _SPLITS}
    positive = model.spec.positive_index
    calibration = parts["calibration"]
    threshold = choose_threshold(
        calibration["label"] == positive, calibration["score"], params.evaluate.target_sensitivity
    )
    intervals = film_intervals(parts["test"], model.spec, threshold, params)
    verdict, gates = judge(intervals, params.evaluate.floors)
    target = folder("evaluate", architecture)
    with atomic_path(target / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary)
    write_json(target / "gates.json", to_json(verdict, gates))
    write_json(target / "metrics.json", _metrics(params, model.spec, threshold, parts, intervals, source))
    _write_curves(target, parts["test"], positive)
    finish_model(source, target / "model", threshold)
    telling = films_near(predictions, model.spec.image_size_px, threshold)
    print(f"evaluate {architecture}: {finish_export(target / 'model', telling)}")
    print(
        f"evaluate {architecture}: {verdict}; threshold {threshold:.3f}; "
        + ", ".join(
            f"{gate.name} {gate.value:.3f} [{gate.low:.3f}, {gate.high:.3f}] floor {gate.floor:.2f}"
            for gate in gates
        )
    )


def predict_split(model: BaseModel, split: pd.DataFrame) -> pd.DataFrame:
    """Predicts every film of the validation, calibration and test splits.

    Returns:
        Columns id, patient, label, split, score (probability of the finding) and one
        probability_<CLASS> for each class.
    """
    films = split[split["split"].isin(_SPLITS)].reset_index(drop=True)
    cache = FilmCache(CACHE, model.spec.image_size_px)
    rows = cache.rows(films["id"])
    parts = [model.predict(cache.films[rows[start : start + 256]]) for start in range(0, len(rows), 256)]
    probabilities = np.concatenate(parts)
    films["score"] = probabilities[:, model.spec.positive_index]
    for index, name in enumerate(model.spec.class_names):
        films[f"probability_{name}"] = probabilities[:, index]
    return films


def film_intervals(
    films: pd.DataFrame, spec: ModelSpec, threshold: float, params: Params
) -> dict[str, Interval]:
    """Metrics with intervals of the finding against everything else, patients resampled."""
    return bootstrap(
        films["label"] == spec.positive_index,
        films["score"],
        films["patient"],
        threshold,
        replicates=params.evaluate.replicates,
        confidence=params.evaluate.confidence,
        seed=params.run.seed,
    )


def finish_model(source, target, threshold: float) -> None:
    """Copies a trained model with its operating point frozen in."""
    spec, digest = read_spec(source)
    with atomic_path(target / WEIGHTS_FILE) as temporary:
        shutil.copyfile(source / WEIGHTS_FILE, temporary)
    write_spec(target, spec.with_threshold(threshold), digest)


def films_near(predictions: pd.DataFrame, size_px: int, threshold: float, most: int = 64) -> np.ndarray:
    """The films, uint8 (N, S, S), with scores nearest the threshold: an export would flip those first."""
    nearest = (predictions["score"] - threshold).abs().sort_values(kind="stable").index[:most]
    cache = FilmCache(CACHE, size_px)
    return cache.films[cache.rows(predictions.loc[nearest, "id"])]


def _metrics(
    params: Params,
    spec: ModelSpec,
    threshold: float,
    parts: dict[str, pd.DataFrame],
    intervals: dict[str, Interval],
    source,
) -> dict:
    test, calibration, validation = parts["test"], parts["calibration"], parts["validation"]
    counts = _counts(test, spec, threshold)
    calibrated = film_intervals(calibration, spec, threshold, params)
    return {
        "architecture": spec.architecture,
        "positive": spec.positive,
        "threshold": threshold,
        "target_sensitivity": params.evaluate.target_sensitivity,
        "validation": {
            "n": len(validation),
            "auc": film_intervals(validation, spec, threshold, params)["auc"].value,
        },
        "calibration": {
            "n": len(calibration),
            "sensitivity": calibrated["sensitivity"].value,
            "specificity": calibrated["specificity"].value,
        },
        "test": {
            "n": len(test),
            "patients": int(test["patient"].nunique()),
            "positives": counts["tp"] + counts["fn"],
            **counts,
            **{name: interval.to_json() for name, interval in intervals.items()},
        },
        "data": {"manifest_sha256": sha256_file(MANIFEST), "split_sha256": sha256_file(SPLIT)},
        "model": {"weights_sha256": read_spec(source)[1]},
    }


def _counts(films: pd.DataFrame, spec: ModelSpec, threshold: float) -> dict[str, int]:
    counts = confusion(films["label"] == spec.positive_index, films["score"] >= threshold)
    return {name: int(value) for name, value in asdict(counts).items()}


def _write_curves(target, test: pd.DataFrame, positive: int) -> None:
    labels, scores = (test["label"] == positive).to_numpy(int), test["score"].to_numpy()
    curves = {
        "roc": (("fpr", "tpr", "threshold"), roc_curve_points(labels, scores)),
        "precision_recall": (("recall", "precision", "threshold"), precision_recall_points(labels, scores)),
        "reliability": (("predicted", "observed", "films"), reliability_points(labels, scores)),
    }
    for name, (columns, values) in curves.items():
        with atomic_path(target / f"{name}.csv") as temporary:
            pd.DataFrame(dict(zip(columns, values, strict=True))).to_csv(temporary, index=False)


if __name__ == "__main__":
    main(run, per_architecture=True)
