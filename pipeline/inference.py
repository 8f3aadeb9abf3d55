"""A finished model, or several, on films of any origin: predict, choose a threshold, evaluate, explain."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmed.concurrency import ordered_map
from openmed.errors import BadInput
from openmed.explain.heatmap import explain
from openmed.explain.overlay import encode_jpeg, overlay
from openmed.files import check_not_input, write_bytes
from openmed.films.images import check_usable, read_film, read_squares, resize_film, usable_squares
from openmed.fitted.operating_point import choose_threshold
from openmed.fitted.spec import ModelSpec
from openmed.inference.answers import answer, to_rows
from openmed.inference.ensemble import Ensemble
from openmed.inference.referral import REASONS, Referral
from openmed.inference.session import count_called, runtime
from openmed.intake.identity import Recognised
from openmed.intake.sources import LabelledFilm, list_source
from openmed.metrics.classification import confusion
from openmed.metrics.intervals import metric_intervals
from openmed.models.base import BaseModel
from pipeline.registry import load_predictor
from pipeline.tools.device import pick_device
from pipeline.tools.terminal import progress

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


def predict_films(
    ensemble: Ensemble, paths: Sequence[Path], address: str, warning: str | None = None
) -> Iterator[dict[str, Any]]:
    """Predicts film files in order, a batch at a time.

    Yields:
        path, what `openmed.inference.answers.to_rows` says of a film, model (the address) and warning.

    Raises:
        BadInput: A file is not a usable film, or a mean over models or views has no threshold.
        IntegrityError: A model answers with something that is no number.
    """
    _threshold(ensemble, needed=ensemble.is_mean)
    for part in _batches(paths):
        films = list(
            ordered_map(lambda path: read_squares(path, ensemble.sizes_px, ensemble.min_side_px), part)
        )
        rows = to_rows(ensemble, answer(ensemble, _by_size(ensemble, films)))
        for path, row in zip(part, rows, strict=True):
            yield {"path": str(path), **row, "model": address, "warning": warning}


def evaluate_source(
    ensemble: Ensemble,
    source: Path,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    patients_from: str = "auto",
) -> dict[str, Any]:
    """Judges one or more models at a frozen threshold on a folder or zip of class folders.

    Args:
        ensemble: The models.
        source: Folder, zip or CSV list of labelled films.
        replicates: Of the bootstrap.
        confidence: Of the intervals.
        seed: Of the bootstrap.
        patients_from: One of `openmed.intake.identity.PATIENTS_FROM`.

    Returns:
        n, patients, unusable (films that the validate stage would quarantine); of the first finding auc,
        sensitivity, specificity, accuracy, threshold, intervals (low and high of each, that know of patients)
        and counts (tp, fp, tn, fn); findings (the same of each further one); confusion (class that films have
        -> class that they are called -> films); referred (reason -> number of the n films, None when the
        models refer none), runtime (what computed the probabilities of each model), recognised (what names
        the patients, and how surely; see `openmed.intake.identity.Recognised`).

    Raises:
        BadInput: The source has no class folders or no usable film, it has to be asked who its patients are,
            or there is no threshold.
    """
    spec, threshold = ensemble.spec, _threshold(ensemble, needed=True)
    settings = {"replicates": replicates, "confidence": confidence, "seed": seed}
    films = _score_source(ensemble, source, patients_from)
    points = {spec.positive: threshold, **spec.further_thresholds}
    found = {name: _measured(films, spec, name, point, settings) for name, point in points.items()}
    return {
        "n": len(films.labels),
        "patients": len(set(films.patients)),
        "unusable": films.unusable,
        **found.pop(spec.positive),
        "findings": found,
        "confusion": count_called(spec, films.labels, films.probabilities, threshold),
        "referred": _by_reason(films.referred),
        "runtime": [runtime(member) for member in ensemble.members],
        "recognised": films.recognised.to_json(),
    }


def _measured(
    films: "_Scored", spec: ModelSpec, finding: str, threshold: float, settings: dict[str, Any]
) -> dict[str, Any]:
    """What films show of one finding against all other classes."""
    has, scores = films.of(spec, finding)
    intervals = metric_intervals(has, scores, films.patients, threshold, **settings)
    shown = {name: intervals[name].to_json() for name in _REPORTED}
    counts = confusion(has, scores >= threshold)
    return {
        **{name: item["value"] for name, item in shown.items()},
        "threshold": threshold,
        "intervals": {name: [item["low"], item["high"]] for name, item in shown.items()},
        "counts": {name: int(value) for name, value in vars(counts).items()},
    }


def threshold_on(ensemble: Ensemble, source: Path, target_sensitivity: float) -> dict[str, Any]:
    """Chooses the operating threshold of one or more models on films that are kept for that.

    Returns:
        threshold (0..1), target_sensitivity, n, unusable.

    Raises:
        BadInput: As `evaluate_source`, or no film has the finding.
    """
    films = _score_source(ensemble, source, "film")
    threshold = choose_threshold(*films.of(ensemble.spec, ensemble.spec.positive), target_sensitivity)
    return {
        "threshold": threshold,
        "target_sensitivity": target_sensitivity,
        "n": len(films.labels),
        "unusable": films.unusable,
    }


def explain_film(model: BaseModel, path: Path, out: Path, finding: str | None = None) -> list[Path]:
    """Writes the film's heat map for a finding, one JPEG for each method of the architecture.

    Args:
        model: The model to explain.
        path: A film file.
        out: The picture to write; further methods get their name before the suffix.
        finding: The class that the map speaks for; None is the first finding.

    Returns:
        The written files, the primary method first.

    Raises:
        BadInput: `out` is no .jpg name or is the film, the model does not know the finding, or the film
            cannot be used.
    """
    if out.suffix.lower() not in (".jpg", ".jpeg"):
        raise BadInput(f"{out} is not a .jpg file name: heat maps are written as JPEG")
    shown = finding or model.spec.positive
    if shown not in model.spec.class_names:
        raise BadInput(f"the model knows {', '.join(model.spec.class_names)}, not {shown}")
    check_not_input([out], [path])
    film = read_film(path)
    check_usable(film, str(path), model.spec.min_side_px)
    square = resize_film(film, model.spec.image_size_px)
    maps = explain(model, square[None], model.spec.class_names.index(shown))
    written = [out if k == 0 else out.with_stem(f"{out.stem}-{method}") for k, method in enumerate(maps)]
    check_not_input(written, [path])
    for target, heat in zip(written, maps.values(), strict=True):
        write_bytes(target, encode_jpeg(overlay(film, heat[0])))
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


@dataclass(frozen=True)
class _Scored:
    """The usable films of a source, in their order, and how many are not usable."""

    labels: np.ndarray
    patients: list[str]
    probabilities: np.ndarray
    referred: list[Referral]
    unusable: int
    recognised: Recognised

    def of(self, spec: ModelSpec, finding: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels (1 for a finding) and its probabilities."""
        index = spec.class_names.index(finding)
        return (self.labels == index).astype(int), self.probabilities[:, index].astype(np.float64)


def _score_source(ensemble: Ensemble, source: Path, patients_from: str) -> _Scored:
    spec = ensemble.spec
    listing = list_source(source, spec.class_names, patients_from=patients_from)
    films = listing.films
    labels, patients, parts, referred = [], [], [], []
    with progress(len(films), "evaluate") as tick:
        for part in _batches(films):
            decoded = zip(part, _decoded(part, ensemble), strict=True)
            usable = [(film, squares) for film, squares in decoded if squares is not None]
            if usable:
                squares = [squares for _, squares in usable]
                found = answer(ensemble, _by_size(ensemble, squares))
                parts.append(found.probabilities)
                referred += found.referred
                labels += [spec.class_names.index(film.label) for film, _ in usable]
                patients += [film.patient for film, _ in usable]
            for _ in part:
                tick()
    if not labels:
        raise BadInput(f"none of the {len(films)} films in {source} can be used")
    unusable = len(films) - len(labels)
    every = np.concatenate(parts)
    return _Scored(np.array(labels), patients, every, referred, unusable, listing.recognised)


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
