"""Calibrates on calibration films, chooses the operating point there, freezes both, judges the test films.

Map and threshold share the calibration films. For two classes every parametric map is strictly rising, so
the films flagged at a sensitivity are the same whichever was fitted: sharing costs nothing, and halving the
films would make both less certain. With more classes a map may reorder films; what is reported is measured
on test films, which shaped neither.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openmed.cache.film_cache import FilmCache
from openmed.errors import BadInput
from openmed.files import atomic_path, read_json, read_table, sha256_file, write_json
from openmed.fitted.abstention import Abstention, check_abstention, fit_abstention
from openmed.fitted.calibration import Calibration, fit_calibration, prior_correction
from openmed.fitted.feature_statistics import FeatureStatistics
from openmed.fitted.spec import ModelSpec
from openmed.gates.gate import Gate, gates_to_json, worst_verdict
from openmed.inference.checkpoint import WEIGHTS_FILE, load_model, read_spec, write_spec, write_statistics
from openmed.inference.control import CONTROL_FILE, write_control
from openmed.inference.export import finish_export
from openmed.inference.predictor import Predictor
from openmed.inference.session import load_predictor
from openmed.models.base import BaseModel
from openmed.perturbations.hidden_parts import HIDDEN
from openmed.perturbations.simulated_sites import SITES
from pipeline.evaluation.judgement import (
    called_films,
    judge_findings,
    patient_numbers,
    scored_for,
    with_thresholds,
)
from pipeline.evaluation.measured import measured, write_curves
from pipeline.evaluation.metrics_file import Abstained, FindingMetrics, Metrics
from pipeline.evaluation.novelty import (
    choose_limit,
    learn_training_films,
    logits_and_distances,
    novelty_check,
)
from pipeline.evaluation.rules import Rules
from pipeline.evaluation.stress import at_sites, changed_probabilities, chosen_films, hidden
from pipeline.settings.artifacts import CACHE, MANIFEST, SPLIT, SPLIT_COLUMNS, folder
from pipeline.settings.params import Params
from pipeline.tools.device import pick_device, use_device

RESAMPLED = folder("resample") / "summary.json"
_SPLITS = ("validation", "calibration", "test")


def run(params: Params, architecture: str) -> None:
    """Predicts the films outside training and writes metrics, curves, gates and the finished model."""
    use_device(params)
    source, target = folder("train", architecture) / "model", folder("evaluate", architecture)
    model = load_model(source).to(pick_device(params.run.device))
    split = read_table(SPLIT, needed=SPLIT_COLUMNS)
    if params.evaluate.unlike_share is not None:
        model.statistics = learn_training_films(model, split, params.run.seed)
    films, logits = film_logits(model, split)
    spec = model.spec.with_calibration(calibrate(params, model.spec, films, logits))
    predictions = with_probabilities(films, logits, spec)
    rules = Rules.of_each(params.model_dump(), "params.yaml")
    spec = _frozen(params, with_thresholds(predictions, spec, rules), predictions, model.statistics)
    with atomic_path(target / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary)
    finish_model(source, target / "model", spec, model.statistics)
    telling = films_near(predictions, spec)
    print(f"evaluate {architecture}: {finish_export(target / 'model', telling)}")
    predictor = load_predictor(target / "model", pick_device(params.run.device))
    write_control(target / CONTROL_FILE, predictor, telling)
    intervals, gates = judge_findings(predictions, spec, rules)
    write_json(target / "gates.json", gates_to_json(gates))
    parts = {name: predictions[predictions["split"] == name] for name in _SPLITS}
    write_curves(target, parts["test"], spec)
    changed = _changed(predictor, parts, spec, rules)
    findings = {}
    for name, own in rules.items():
        films = {split: scored_for(part, spec, name) for split, part in parts.items()}
        numbers = measured(films, spec.of_finding(name), own, intervals[name])
        findings[name] = replace(numbers, **changed[name])
    metrics = _metrics(rules[spec.positive], spec, parts["test"], source, findings)
    write_json(target / "metrics.json", metrics.to_json())
    verdict = worst_verdict([gate.verdict for gate in gates])
    for name, each in findings.items():
        of_one = [gate for gate in gates if gate.finding in (None, name)]
        print(f"evaluate {architecture}: {_summary(verdict, of_one, each)}")


def _frozen(
    params: Params, spec: ModelSpec, predictions: pd.DataFrame, statistics: FeatureStatistics | None
) -> ModelSpec:
    """Adds what else is chosen on calibration films, and the smallest side that was learnt from."""
    calibration = predictions[predictions["split"] == "calibration"]
    spec = replace(spec, abstention=abstention(params, spec, calibration))
    spec = replace(spec, min_side_px=params.validate_.min_side_px)
    share = params.evaluate.unlike_share
    if statistics is None or share is None:
        return spec
    return replace(spec, novelty=choose_limit(predictions, share, statistics))


def _changed(
    predictor: Predictor, parts: Mapping[str, pd.DataFrame], spec: ModelSpec, rules: Mapping[str, Rules]
) -> dict[str, dict[str, Any]]:
    """What becomes of each finding at simulated sites and where a part of each test film is hidden."""
    changed: dict[str, dict[str, Any]] = {name: {"stress": {}, "sites": {}} for name in rules}
    for split in ("validation", "test"):
        films = chosen_films(parts[split], rules[spec.positive].seed)
        pixels = pixels_of(films, spec.image_size_px)
        sites = changed_probabilities(predictor.predict, pixels, SITES)
        # The pixels of the test films are at hand.
        parted = changed_probabilities(predictor.predict, pixels, HIDDEN) if split == "test" else None
        for name, own in rules.items():
            of_one = scored_for(films, spec, name), spec.of_finding(name), own
            changed[name]["sites"][split] = at_sites(sites, *of_one)
            if parted is not None:
                changed[name]["stress"] = hidden(parted, *of_one)
    return changed


def _summary(verdict: str, gates: list[Gate], measured: FindingMetrics) -> str:
    raw, final = measured.reliability.softmax, measured.reliability.calibrated
    reached = ", ".join(
        f"{gate.name} {gate.value:.3f} [{gate.low:.3f}, {gate.high:.3f}] floor {gate.floor:.2f}"
        for gate in gates
    )
    calibration = measured.calibration
    return (
        f"{verdict}; threshold {measured.threshold:.3f}, of which the calibration films have a specificity "
        f"of {calibration.specificity:.3f} ({calibration.specificity_at_target:.3f} if only they had "
        f"to reach the target sensitivity); {measured.reliability.method} calibration, "
        f"log loss {raw['log_loss']:.3f} -> {final['log_loss']:.3f}; {reached}"
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
    if (coverage := params.evaluate.abstention_coverage) is None:
        return None
    return fit_abstention(films["label"], _probabilities(films, spec), patient_numbers(films), coverage)


def abstention_check(rules: Rules, spec: ModelSpec, films: pd.DataFrame) -> Abstained | None:
    """How often films are referred, and whether the coverage holds."""
    if spec.abstention is None:
        return None
    judged = films["label"], _probabilities(films, spec), patient_numbers(films)
    check = check_abstention(spec.abstention, *judged, rules.confidence)
    coverage = dict(zip(spec.class_names, check.coverage, strict=True))
    return Abstained(coverage, check.referred, check.accuracy_of_decided, spec.abstention.coverage)


def _probabilities(films: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    return films[[f"probability_{name}" for name in spec.class_names]].to_numpy()


def finish_model(source: Path, target: Path, spec: ModelSpec, statistics: FeatureStatistics | None) -> None:
    """Copies a trained model with its calibration, operating point and limit of novelty frozen in."""
    if statistics is not None:
        write_statistics(target, statistics)
    with atomic_path(target / WEIGHTS_FILE) as temporary:
        shutil.copyfile(source / WEIGHTS_FILE, temporary)
    write_spec(target, spec, read_spec(source)[1])


def films_near(predictions: pd.DataFrame, spec: ModelSpec, most: int = 64) -> np.ndarray:
    """The films, uint8 (N, S, S), with scores nearest a threshold: an export would flip those first.

    Where several findings are looked for, each has as many of them.
    """
    chosen = []
    for name in spec.findings:
        apart = scored_for(predictions, spec, name)["score"] - spec.of_finding(name).threshold
        chosen += apart.abs().sort_values(kind="stable").index[: most // len(spec.findings)].tolist()
    return pixels_of(predictions.loc[list(dict.fromkeys(chosen))], spec.image_size_px)


def pixels_of(films: pd.DataFrame, size_px: int) -> np.ndarray:
    """The pixels of films from the cache, uint8 (N, S, S)."""
    cache = FilmCache(CACHE, size_px)
    return cache.films[cache.rows(films["id"])]


def _metrics(
    rules: Rules, spec: ModelSpec, test: pd.DataFrame, source: Path, findings: Mapping[str, FindingMetrics]
) -> Metrics:
    """What is measured of each finding and of the model as a whole, and what it comes from."""
    return Metrics(
        spec.architecture,
        *called_films(test, spec, rules.confidence),
        abstention_check(rules, spec, test),
        novelty_check(rules, spec, test),
        {"manifest_sha256": sha256_file(MANIFEST), "split_sha256": sha256_file(SPLIT)},
        {"weights_sha256": read_spec(source)[1]},
        findings,
    )
