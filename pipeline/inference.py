"""A finished model, or several, on films of any origin: predict, choose a threshold, evaluate, explain."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmed.data.images import check_usable, read_film, read_squares, resize_film, usable_squares
from openmed.data.manifest import ordered_map
from openmed.data.sources import LabelledFilm, iter_labelled
from openmed.errors import BadInput
from openmed.explain.heatmap import explain
from openmed.explain.overlay import encode_jpeg, overlay
from openmed.files import write_bytes
from openmed.metrics.classification import confusion
from openmed.metrics.intervals import metric_intervals
from openmed.metrics.operating_point import choose_threshold
from openmed.models.base import BaseModel
from openmed.models.ensemble import Ensemble
from openmed.models.referral import REASONS, Referral, referrals
from openmed.models.session import called_classes, runtime
from pipeline.device import pick_device
from pipeline.registry import load_predictor
from pipeline.stage import progress

_BATCH_FILMS = 32
_REPORTED = ("auc", "sensitivity", "specificity", "accuracy")


def assemble(addresses: Sequence[str], *, threshold: float | None = None, views: bool = False) -> Ensemble:
    """Loads one or more models in the fastest way for this machine; see `Ensemble` for the options.

    Raises:
        BadInput: There is no such model, the models do not belong together, or the threshold is no
            probability.
        IntegrityError: A stored model is not the one that was written.
    """
    device = pick_device("auto")
    members = [load_predictor(address, device) for address in addresses]
    return Ensemble(members, threshold=threshold, views=views)


def predict_films(ensemble: Ensemble, paths: Sequence[Path], address: str) -> Iterator[dict[str, Any]]:
    """Predicts film files in order, a batch at a time.

    Yields:
        path, probability (of the finding, 0..1), label, threshold (None for a single model before an
        operating point is chosen; the label is then the most probable class), refer (whether a
        radiologist should decide instead; None for a model that refers none), reason (why, in words; None
        where it is not referred), model.

    Raises:
        BadInput: A file is not a usable film, or a mean over models or views has no threshold.
    """
    spec, threshold = ensemble.spec, _threshold(ensemble, needed=ensemble.is_mean)
    for part in _batches(paths):
        films = list(
            ordered_map(lambda path: read_squares(path, ensemble.sizes_px, ensemble.min_side_px), part)
        )
        probabilities, called, referred = _answers(ensemble, films, threshold)
        for path, row, label, referral in zip(part, probabilities, called, referred, strict=True):
            yield {
                "path": str(path),
                "probability": float(row[spec.positive_index]),
                "label": spec.class_names[label],
                "threshold": threshold,
                "refer": referral.refer,
                "reason": referral.reason,
                "model": address,
            }


def _answers(
    ensemble: Ensemble, films: Sequence[Sequence[np.ndarray]], threshold: float | None
) -> tuple[np.ndarray, np.ndarray, list[Referral]]:
    """Probabilities (N, classes), called classes (N,) and referrals of films at the members' sizes."""
    probabilities, unlike = ensemble.assess(_by_size(ensemble, films))
    called = called_classes(ensemble.spec, probabilities, threshold)
    referred = referrals(ensemble.spec, probabilities, called, unlike, is_mean=ensemble.is_mean)
    return probabilities, called, referred


def evaluate_source(
    ensemble: Ensemble, source: Path, *, replicates: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Judges one or more models at a frozen threshold on a folder or zip of class folders.

    Returns:
        n, patients, unusable (films that the validate stage would quarantine), auc, sensitivity, specificity,
        accuracy, threshold, intervals (low and high of each, that know of patients), counts (tp, fp, tn, fn),
        referred (reason -> number of the n films, None when the models refer none),
        runtime (what computed the probabilities of each model).

    Raises:
        BadInput: The source has no class folders or no usable film, or there is no threshold.
    """
    threshold = _threshold(ensemble, needed=True)
    labels, patients, scores, unusable, referred = _score_source(ensemble, source)
    intervals = metric_intervals(
        labels, scores, patients, threshold, replicates=replicates, confidence=confidence, seed=seed
    )
    shown = {name: intervals[name].to_json() for name in _REPORTED}
    counts = confusion(labels, np.asarray(scores) >= threshold)
    return {
        "n": len(scores),
        "patients": len(set(patients)),
        "unusable": unusable,
        **{name: item["value"] for name, item in shown.items()},
        "threshold": threshold,
        "intervals": {name: [item["low"], item["high"]] for name, item in shown.items()},
        "counts": {name: int(value) for name, value in vars(counts).items()},
        "referred": _by_reason(referred),
        "runtime": [runtime(member) for member in ensemble.members],
    }


def threshold_on(ensemble: Ensemble, source: Path, target_sensitivity: float) -> dict[str, Any]:
    """Chooses the operating threshold of one or more models on films that are kept for that.

    Returns:
        threshold (0..1), target_sensitivity, n, unusable.

    Raises:
        BadInput: As `evaluate_source`, or no film has the finding.
    """
    labels, _, scores, unusable, _ = _score_source(ensemble, source)
    threshold = choose_threshold(labels, scores, target_sensitivity)
    return {
        "threshold": threshold,
        "target_sensitivity": target_sensitivity,
        "n": len(scores),
        "unusable": unusable,
    }


def explain_film(model: BaseModel, path: Path, out: Path) -> list[Path]:
    """Writes the film's heat map for the finding, one JPEG for each method of the architecture.

    Args:
        model: The model to explain.
        path: A film file.
        out: The picture to write; further methods get their name before the suffix.

    Returns:
        The written files, the primary method first.
    """
    if out.suffix.lower() not in (".jpg", ".jpeg"):
        raise BadInput(f"{out} is not a .jpg file name: heat maps are written as JPEG")
    film = read_film(path)
    check_usable(film, str(path), model.spec.min_side_px)
    square = resize_film(film, model.spec.image_size_px)
    maps = explain(model, square[None], model.spec.positive_index)
    written = []
    for position, (method, heat) in enumerate(maps.items()):
        target = out if position == 0 else out.with_stem(f"{out.stem}-{method}")
        write_bytes(target, encode_jpeg(overlay(film, heat[0])))
        written.append(target)
    return written


def _threshold(ensemble: Ensemble, *, needed: bool) -> float | None:
    if ensemble.threshold is not None or not needed:
        return ensemble.threshold
    if ensemble.is_mean:
        raise BadInput(
            "a mean over models or views has no threshold of its own: choose one with `openmed threshold` "
            "on films kept for that, and give it with --threshold"
        )
    raise BadInput("this model has no frozen threshold yet: use the one that the evaluate stage wrote")


def _by_reason(referred: Sequence[Referral]) -> dict[str, int] | None:
    if all(each.refer is None for each in referred):
        return None
    return {reason: sum(each.reason == reason for each in referred) for reason in REASONS}


def _score_source(
    ensemble: Ensemble, source: Path
) -> tuple[list[int], list[str], list[float], int, list[Referral]]:
    """Labels (1 for the finding), patients, scores of usable films; how many are not; referrals."""
    spec = ensemble.spec
    films = list(iter_labelled(source, spec.class_names))
    labels, patients, scores, referred = [], [], [], []
    with progress(len(films), "evaluate") as tick:
        for part in _batches(films):
            decoded = zip(part, _decoded(part, ensemble), strict=True)
            usable = [(film, squares) for film, squares in decoded if squares is not None]
            if usable:
                squares = [squares for _, squares in usable]
                probabilities, _, found = _answers(ensemble, squares, ensemble.threshold)
                scores += probabilities[:, spec.positive_index].tolist()
                referred += found
                labels += [int(film.label == spec.positive) for film, _ in usable]
                patients += [film.patient for film, _ in usable]
            for _ in part:
                tick()
    if not scores:
        raise BadInput(f"none of the {len(films)} films in {source} can be used")
    return labels, patients, scores, len(films) - len(scores), referred


def _batches(items: Sequence) -> Iterator[Sequence]:
    return (items[start : start + _BATCH_FILMS] for start in range(0, len(items), _BATCH_FILMS))


def _by_size(ensemble: Ensemble, films: Sequence[Sequence[np.ndarray]]) -> dict[int, np.ndarray]:
    return dict(zip(ensemble.sizes_px, map(np.stack, zip(*films, strict=True)), strict=True))


def _decoded(films: Sequence[LabelledFilm], ensemble: Ensemble) -> Iterator[list[np.ndarray] | None]:
    def decode(film: LabelledFilm) -> list[np.ndarray] | None:
        data = film.reader()
        try:
            return usable_squares(data, ensemble.sizes_px, "the film", min_side_px=ensemble.min_side_px)
        except BadInput:
            return None

    return ordered_map(decode, films)
