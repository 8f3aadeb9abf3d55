"""A finished model on films of any origin: predict, evaluate, explain."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmed.data.images import decode_squares, read_film, read_square
from openmed.data.manifest import ordered_map
from openmed.data.sources import LabelledFilm, iter_labelled
from openmed.errors import BadInput
from openmed.explain.heatmap import explain
from openmed.explain.overlay import encode_jpeg, overlay
from openmed.files import write_bytes
from openmed.metrics.classification import confusion
from openmed.metrics.intervals import bootstrap
from openmed.models.base import BaseModel
from pipeline.stage import progress

_BATCH_FILMS = 32
_REPORTED = ("auc", "sensitivity", "specificity", "accuracy")


def predict_films(model: BaseModel, paths: Sequence[Path], address: str) -> Iterator[dict[str, Any]]:
    """Predicts film files in order, a batch at a time.

    Yields:
        path, probability (of the finding, 0..1), label, threshold (None before an operating point
        is chosen; the label is then the most probable class), model.

    Raises:
        BadInput: A file is not a usable film.
    """
    for part in _batches(paths):
        films = ordered_map(lambda path: read_square(path, model.spec.image_size_px), part)
        for path, row in zip(part, model.predict(np.stack(list(films))), strict=True):
            yield {
                "path": str(path),
                "probability": float(row[model.spec.positive_index]),
                "label": predicted_label(model, row),
                "threshold": model.spec.threshold,
                "model": address,
            }


def predicted_label(model: BaseModel, probabilities: np.ndarray) -> str:
    """The class a film is called, from its probabilities (classes,).

    With a frozen threshold a film at or above it has the finding; otherwise, and among the other
    classes, the most probable class counts.
    """
    spec = model.spec
    if spec.threshold is None:
        return spec.class_names[int(probabilities.argmax())]
    if probabilities[spec.positive_index] >= spec.threshold:
        return spec.positive
    others = probabilities.copy()
    others[spec.positive_index] = -1
    return spec.class_names[int(others.argmax())]


def evaluate_source(
    model: BaseModel, source: Path, *, replicates: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Judges a model at its frozen threshold on a folder or zip of class folders.

    Returns:
        n, patients, unusable (films that could not be decoded), auc, sensitivity, specificity,
        accuracy, threshold, intervals (low and high of each, whole patients resampled), counts
        (tp, fp, tn, fn).

    Raises:
        BadInput: The source has no class folders or no usable film, or the model no threshold.
    """
    spec = model.spec
    if spec.threshold is None:
        raise BadInput("this model has no frozen threshold yet: use the one that the evaluate stage wrote")
    films = list(iter_labelled(source, spec.class_names))
    labels, patients, scores = [], [], []
    with progress(len(films), "evaluate") as tick:
        for part in _batches(films):
            usable = [
                (film, pixels) for film, pixels in _decoded(part, spec.image_size_px) if pixels is not None
            ]
            if usable:
                probabilities = model.predict(np.stack([pixels for _, pixels in usable]))
                scores += probabilities[:, spec.positive_index].tolist()
                labels += [int(film.label == spec.positive) for film, _ in usable]
                patients += [film.patient for film, _ in usable]
            for _ in part:
                tick()
    if not scores:
        raise BadInput(f"none of the {len(films)} films in {source} can be decoded")
    intervals = bootstrap(
        labels, scores, patients, spec.threshold, replicates=replicates, confidence=confidence, seed=seed
    )
    shown = {name: intervals[name].to_json() for name in _REPORTED}
    counts = confusion(labels, np.asarray(scores) >= spec.threshold)
    return {
        "n": len(scores),
        "patients": len(set(patients)),
        "unusable": len(films) - len(scores),
        **{name: item["value"] for name, item in shown.items()},
        "threshold": spec.threshold,
        "intervals": {name: [item["low"], item["high"]] for name, item in shown.items()},
        "counts": {name: int(value) for name, value in vars(counts).items()},
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
    square = read_square(path, model.spec.image_size_px)
    maps = explain(model, square[None], model.spec.positive_index)
    written = []
    for position, (method, heat) in enumerate(maps.items()):
        target = out if position == 0 else out.with_stem(f"{out.stem}-{method}")
        write_bytes(target, encode_jpeg(overlay(film, heat[0])))
        written.append(target)
    return written


def _batches(items: Sequence) -> Iterator[Sequence]:
    return (items[start : start + _BATCH_FILMS] for start in range(0, len(items), _BATCH_FILMS))


def _decoded(films: Sequence[LabelledFilm], size_px: int) -> Iterator[tuple[LabelledFilm, np.ndarray | None]]:
    def decode(film: LabelledFilm) -> np.ndarray | None:
        data = film.reader()
        try:
            return decode_squares(data, [size_px], "the film")[0]
        except BadInput:
            return None

    return zip(films, ordered_map(decode, films), strict=True)
