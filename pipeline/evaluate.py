"""Calibrates on calibration films, chooses the operating point there, freezes both, judges the test films.

Map and threshold share the calibration films. For two classes every parametric map is strictly rising, so
the films flagged at a sensitivity are the same whichever was fitted: sharing costs nothing, and halving the
films would make both less certain. With more classes a map may reorder films; what is reported is measured
on test films, which shaped neither.
"""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from openmed.data.cache import FilmCache
from openmed.errors import BadInput
from openmed.files import atomic_path, read_json, sha256_file, write_json
from openmed.metrics.abstention import Abstention, check_abstention, fit_abstention
from openmed.metrics.calibration import Calibration, fit_calibration, prior_correction, softmax
from openmed.metrics.calibration_error import calibration_summary
from openmed.metrics.classification import (
    confusion,
    precision_recall_points,
    reliability_points,
    roc_curve_points,
    specificity,
)
from openmed.metrics.gates import Gate, to_json
from openmed.metrics.intervals import Interval
from openmed.metrics.operating_point import choose_threshold
from openmed.metrics.prevalence import PREVALENCES, at_prevalence
from openmed.models.base import BaseModel
from openmed.models.checkpoint import WEIGHTS_FILE, load_model, read_spec, write_spec, write_statistics
from openmed.models.control import CONTROL_FILE, write_control
from openmed.models.export import finish_export
from openmed.models.feature_statistics import FeatureStatistics
from openmed.models.session import load_predictor
from openmed.models.spec import ModelSpec
from pipeline.device import pick_device, use_device
from pipeline.judgement import judge_test_films, measure, operating_threshold, patient_numbers
from pipeline.novelty import choose_limit, learn_training_films, logits_and_distances, novelty_check
from pipeline.params import Params
from pipeline.rules import Rules
from pipeline.stage import CACHE, MANIFEST, SPLIT, folder
from pipeline.stress import at_sites, chosen_films, hidden

RESAMPLED = folder("resample") / "summary.json"
_SPLITS = ("validation", "calibration", "test")


def run(params: Params, architecture: str) -> None:
    """Predicts the films outside training and writes metrics, curves, gates and the finished model."""
    use_device(params)
    source = folder("train", architecture) / "model"
    model, split = load_model(source).to(pick_device(params.run.device)), pd.read_parquet(SPLIT)
    if params.evaluate.unlike_share is not None:
        model.statistics = learn_training_films(model, split, params.run.seed)
    films, logits = film_logits(model, split)
    calibration = calibrate(params, model.spec, films, logits)
    spec = model.spec.with_calibration(calibration)
    predictions = with_probabilities(films, logits, spec)
    parts = {name: predictions[predictions["split"] == name] for name in _SPLITS}
    rules = Rules.of(params.model_dump(), "params.yaml")
    threshold = operating_threshold(predictions, spec.positive_index, rules)
    spec = spec.with_threshold(threshold).with_abstention(abstention(params, spec, parts["calibration"]))
    spec = replace(spec, min_side_px=params.validate_.min_side_px)
    if model.statistics is not None:
        share = params.evaluate.unlike_share
        spec = spec.with_novelty(choose_limit(predictions, share, model.statistics))
    intervals, verdict, gates = judge_test_films(predictions, spec.positive_index, threshold, rules)
    target, before_and_after = folder("evaluate", architecture), reliability(parts["test"], spec)
    with atomic_path(target / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary)
    write_json(target / "gates.json", to_json(verdict, gates))
    content = _metrics(rules, spec, threshold, parts, intervals, source) | {"reliability": before_and_after}
    _write_curves(target, parts["test"], spec)
    finish_model(source, target / "model", spec, model.statistics)
    telling = films_near(predictions, spec.image_size_px, threshold)
    print(f"evaluate {architecture}: {finish_export(target / 'model', telling)}")
    predictor = load_predictor(target / "model", pick_device(params.run.device))
    write_control(target / CONTROL_FILE, predictor, telling)
    content["stress"], content["sites"] = {}, {}
    for name in ("validation", "test"):
        films = chosen_films(parts[name], rules.seed)
        pixels = pixels_of(films, spec.image_size_px)
        content["sites"][name] = at_sites(predictor.predict, films, pixels, spec, rules)
        # The pixels of the test films are at hand.
        if name == "test":
            content["stress"] = hidden(predictor.predict, films, pixels, spec, rules)
    write_json(target / "metrics.json", content)
    said = _summary(verdict, gates, spec, before_and_after, content["calibration"])
    print(f"evaluate {architecture}: {said}")


def _summary(
    verdict: str, gates: list[Gate], spec: ModelSpec, before_and_after: dict, calibration: dict
) -> str:
    raw, final = before_and_after["softmax"], before_and_after["calibrated"]
    measured = ", ".join(
        f"{gate.name} {gate.value:.3f} [{gate.low:.3f}, {gate.high:.3f}] floor {gate.floor:.2f}"
        for gate in gates
    )
    return (
        f"{verdict}; threshold {spec.threshold:.3f}, of which the calibration films have a specificity of "
        f"{calibration['specificity']:.3f} ({calibration['specificity_at_target']:.3f} if only they had to "
        f"reach the target sensitivity); {spec.calibration.method} calibration, "
        f"log loss {raw['log_loss']:.3f} -> {final['log_loss']:.3f}; {measured}"
    )


def film_logits(model: BaseModel, split: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Puts every film of the validation, calibration and test splits through the network.

    Returns:
        The films (id, patient, label, split and, where the model has statistics, distance, that from the
        training films) and their logits, float32 (N, classes).
    """
    films = split[split["split"].isin(_SPLITS)].reset_index(drop=True)
    cache = FilmCache(CACHE, model.spec.image_size_px)
    rows = cache.rows(films["id"])
    batches = (cache.films[rows[start : start + 256]] for start in range(0, len(rows), 256))
    logits, distances = logits_and_distances(model, batches)
    return films if distances is None else films.assign(distance=distances), logits


def calibrate(params: Params, spec: ModelSpec, films: pd.DataFrame, logits: np.ndarray) -> Calibration:
    """Undoes the resampling of the training rows and fits what is left on calibration films.

    Raises:
        BadInput: The films are too few for the method, or the resample stage knew other classes.
    """
    counts = read_json(RESAMPLED)
    try:
        before, after = ([counts[when][name] for name in spec.class_names] for when in ("before", "after"))
    except KeyError:
        raise BadInput(f"{RESAMPLED} is of other classes than the model: run resample again") from None
    own = (films["split"] == "calibration").to_numpy()
    labels = films["label"].to_numpy()[own]
    return fit_calibration(params.evaluate.calibration, logits[own], labels, prior_correction(before, after))


def with_probabilities(films: pd.DataFrame, logits: np.ndarray, spec: ModelSpec) -> pd.DataFrame:
    """Adds score (calibrated probability of the finding), probability_<CLASS> and logit_<CLASS>."""
    probabilities = spec.probabilities(logits)
    columns = {"score": probabilities[:, spec.positive_index]}
    columns |= {f"probability_{name}": probabilities[:, k] for k, name in enumerate(spec.class_names)}
    columns |= {f"logit_{name}": logits[:, k] for k, name in enumerate(spec.class_names)}
    return films.assign(**columns)


def abstention(params: Params, spec: ModelSpec, films: pd.DataFrame) -> Abstention | None:
    """Fits, on calibration films, when a film is referred to a radiologist; None when none shall be.

    Raises:
        BadInput: A class has too few patients among them.
    """
    if params.evaluate.abstention_coverage is None:
        return None
    return fit_abstention(
        films["label"],
        _probabilities(films, spec),
        patient_numbers(films),
        params.evaluate.abstention_coverage,
    )


def abstention_check(rules: Rules, spec: ModelSpec, films: pd.DataFrame) -> dict | None:
    """How often films are referred, and whether the coverage holds; coverage by the name of the class."""
    if spec.abstention is None:
        return None
    found = check_abstention(
        spec.abstention,
        films["label"],
        _probabilities(films, spec),
        patient_numbers(films),
        rules.confidence,
    ).to_json()
    coverage = dict(zip(spec.class_names, found["coverage"], strict=True))
    return found | {"target": spec.abstention.coverage, "coverage": coverage}


def _probabilities(films: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    return films[[f"probability_{name}" for name in spec.class_names]].to_numpy()


def reliability(films: pd.DataFrame, spec: ModelSpec) -> dict:
    """Measures of calibration before and after: plain softmax, prior corrected, calibrated."""
    stages = _stages(films, spec)
    return {
        "method": spec.calibration.method,
        "films": spec.calibration.films,
        **{
            name: calibration_summary(films["label"], probabilities, spec.positive_index)
            for name, probabilities in stages.items()
        },
    }


def _stages(films: pd.DataFrame, spec: ModelSpec) -> dict[str, np.ndarray]:
    """Probabilities (N, classes) of the same films at each step of the repair."""
    logits = films[[f"logit_{name}" for name in spec.class_names]].to_numpy()
    return {
        "softmax": softmax(logits),
        "prior_corrected": Calibration.of_prior(spec.calibration.prior_correction).apply(logits),
        "calibrated": spec.calibration.apply(logits),
    }


def finish_model(source, target, spec: ModelSpec, statistics: FeatureStatistics | None) -> None:
    """Copies a trained model with its calibration, operating point and limit of novelty frozen in."""
    if statistics is not None:
        write_statistics(target, statistics)
    with atomic_path(target / WEIGHTS_FILE) as temporary:
        shutil.copyfile(source / WEIGHTS_FILE, temporary)
    write_spec(target, spec, read_spec(source)[1])


def films_near(predictions: pd.DataFrame, size_px: int, threshold: float, most: int = 64) -> np.ndarray:
    """The films, uint8 (N, S, S), with scores nearest the threshold: an export would flip those first."""
    nearest = (predictions["score"] - threshold).abs().sort_values(kind="stable").index[:most]
    return pixels_of(predictions.loc[nearest], size_px)


def pixels_of(films: pd.DataFrame, size_px: int) -> np.ndarray:
    """The pixels of films from the cache, uint8 (N, S, S)."""
    cache = FilmCache(CACHE, size_px)
    return cache.films[cache.rows(films["id"])]


def _specificity_at_target(films: pd.DataFrame, spec: ModelSpec, rules: Rules) -> float:
    has = films["label"] == spec.positive_index
    return specificity(has, films["score"], choose_threshold(has, films["score"], rules.target_sensitivity))


def _metrics(
    rules: Rules,
    spec: ModelSpec,
    threshold: float,
    parts: dict[str, pd.DataFrame],
    intervals: dict[str, Interval],
    source,
) -> dict:
    test, calibration, validation = parts["test"], parts["calibration"], parts["validation"]
    counts = _counts(test, spec, threshold)
    calibrated = measure(calibration, spec.positive_index, threshold, rules)
    return {
        "architecture": spec.architecture,
        "positive": spec.positive,
        "threshold": threshold,
        "target_sensitivity": rules.target_sensitivity,
        "validation": {
            "n": len(validation),
            "auc": measure(validation, spec.positive_index, threshold, rules)["auc"].value,
        },
        "calibration": {
            "n": len(calibration),
            "sensitivity": calibrated["sensitivity"].value,
            "specificity": calibrated["specificity"].value,
            # What it would be if the target had to be reached on these films alone.
            "specificity_at_target": _specificity_at_target(calibration, spec, rules),
        },
        "test": {
            "n": len(test),
            "patients": int(test["patient"].nunique()),
            "positives": counts["tp"] + counts["fn"],
            **counts,
            **{name: interval.to_json() for name, interval in intervals.items()},
        },
        "prevalence": {
            f"{share:.0%}": at_prevalence(intervals["sensitivity"], intervals["specificity"], share).to_json()
            for share in PREVALENCES
        },
        "abstention": abstention_check(rules, spec, test),
        "novelty": novelty_check(rules, spec, test),
        "data": {"manifest_sha256": sha256_file(MANIFEST), "split_sha256": sha256_file(SPLIT)},
        "model": {"weights_sha256": read_spec(source)[1]},
    }


def _counts(films: pd.DataFrame, spec: ModelSpec, threshold: float) -> dict[str, int]:
    counts = confusion(films["label"] == spec.positive_index, films["score"] >= threshold)
    return {name: int(value) for name, value in asdict(counts).items()}


def _write_curves(target, test: pd.DataFrame, spec: ModelSpec) -> None:
    labels, scores = (test["label"] == spec.positive_index).to_numpy(int), test["score"].to_numpy()
    raw = _stages(test, spec)["softmax"][:, spec.positive_index]
    points = ("predicted", "observed", "films")
    curves = {
        "roc": (("fpr", "tpr", "threshold"), roc_curve_points(labels, scores)),
        "precision_recall": (("recall", "precision", "threshold"), precision_recall_points(labels, scores)),
        "reliability": (points, reliability_points(labels, scores)),
        "reliability_softmax": (points, reliability_points(labels, raw)),
    }
    for name, (columns, values) in curves.items():
        with atomic_path(target / f"{name}.csv") as temporary:
            pd.DataFrame(dict(zip(columns, values, strict=True))).to_csv(temporary, index=False)
