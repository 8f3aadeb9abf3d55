"""A finished model, or several, on films of any origin: predict, choose a threshold, evaluate, explain."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmed.concurrency import ordered_map
from openmed.errors import BadInput
from openmed.explain.heatmap import explain
from openmed.explain.overlay import encode_jpeg, overlay
from openmed.files import check_not_input, sha256_bytes, write_bytes
from openmed.films.budgets import read_film_file
from openmed.films.images import check_usable, read_film, resize_film, usable_squares
from openmed.fitted.operating_point import choose_threshold
from openmed.fitted.spec import ModelSpec
from openmed.inference.answers import FilmAnswer, answer, film_answers
from openmed.inference.checkpoint import read_spec
from openmed.inference.ensemble import Ensemble
from openmed.inference.referral import REASONS, Referral
from openmed.inference.session import count_called, runtime
from openmed.intake.identity import Recognised
from openmed.intake.sources import LabelledFilm, list_source
from openmed.metrics.classification import Counts, confusion
from openmed.metrics.intervals import Interval, metric_intervals
from openmed.models.base import BaseModel
from openmed.oversight.answer_log import AnswerLog, answer_journal, login
from pipeline.registry import answering, load_predictor
from pipeline.settings.project import state_folder
from pipeline.tools.device import pick_device
from pipeline.tools.terminal import progress

_BATCH_FILMS = 32


class Assembled(Ensemble):
    """Models that answer together, and what they are called in the log of answers.

    Attributes:
        name: The versions that they are, by number, with what makes their answer another one than their own;
            None where none of them is a registered version, and nothing is logged.
    """

    name: str | None = None


def assemble(addresses: Sequence[str], *, threshold: float | None = None, views: bool = False) -> Assembled:
    """Loads one or more models in the fastest way for this machine, as `load_predictor` and `Ensemble` do."""
    device = pick_device("auto")
    members = [answering(address) for address in addresses]
    ensemble = Assembled(
        [load_predictor(member, device) for member in members], threshold=threshold, views=views
    )
    ensemble.name = _name(members, threshold, views)
    return ensemble


def _name(members: Sequence[str], threshold: float | None, views: bool) -> str | None:
    if not any(member.startswith("models:") for member in members):
        return None
    # The path of a folder may name somebody.
    names = [
        member if member.startswith("models:") else f"weights {read_spec(Path(member))[1][:16]}"
        for member in members
    ]
    altered = (" with views" if views else "") + ("" if threshold is None else f" at {threshold:g}")
    return " + ".join(names) + altered


def predict_films(ensemble: Assembled, paths: Sequence[Path]) -> Iterator[FilmAnswer]:
    """Predicts film files in order, a batch at a time; answers of registered versions are logged first.

    Raises:
        BadInput: A file is not a usable film, or a mean over models or views has no threshold.
        IntegrityError: A model answers with something that is no number.
        ResourceError: The log of answers cannot be written: the answers are not given.
    """
    if ensemble.is_mean:
        _frozen_threshold(ensemble)
    log = None if ensemble.name is None else _log_of(ensemble.name)
    for part in _batches(paths):
        films = list(ordered_map(lambda path: _hashed_squares(path, ensemble), part))
        squares = _by_size(ensemble, [each for _, each in films])
        answers = film_answers(ensemble, answer(ensemble, squares))
        if log is not None:
            log.keep([digest for digest, _ in films], answers)
        yield from answers


def _log_of(model: str) -> AnswerLog:
    return AnswerLog(answer_journal(state_folder()), model, "predict", login())


def _hashed_squares(path: Path, ensemble: Ensemble) -> tuple[str, list[np.ndarray]]:
    try:
        content = read_film_file(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    squares = usable_squares(content, ensemble.sizes_px, str(path), min_side_px=ensemble.min_side_px)
    return sha256_bytes(content), squares


@dataclass(frozen=True)
class FindingResult:
    """What films show of one finding against all other classes.

    Attributes:
        threshold: From which probability on a film is flagged (0..1).
        intervals: auc, sensitivity, specificity and accuracy, with limits that know of patients.
        counts: At the threshold.
    """

    threshold: float
    intervals: Mapping[str, Interval]
    counts: Counts

    def to_json(self) -> dict[str, Any]:
        """Returns each metric, threshold, intervals (low and high of each) and counts (tp, fp, tn, fn)."""
        shown = {name: interval.to_json() for name, interval in self.intervals.items()}
        return {
            **{name: item["value"] for name, item in shown.items()},
            "threshold": self.threshold,
            "intervals": {name: [item["low"], item["high"]] for name, item in shown.items()},
            "counts": {name: int(value) for name, value in vars(self.counts).items()},
        }


@dataclass(frozen=True)
class SourceResult:
    """How models do on a source of labelled films.

    Attributes:
        n: Films judged.
        patients: How many they are of.
        unusable: Films that the validate stage would quarantine.
        findings: finding -> what films show of it, the first first.
        confusion: Class that films have -> class that they are called -> films.
        referred: Reason -> films referred; None when the models refer none.
        runtime: What computed the probabilities of each model.
        recognised: What names the patients, and how surely.
    """

    n: int
    patients: int
    unusable: int
    findings: Mapping[str, FindingResult]
    confusion: Mapping[str, Mapping[str, int]]
    referred: Mapping[str, int] | None
    runtime: list[str]
    recognised: Recognised

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values, those of the first finding beside them."""
        first, *further = [(name, each.to_json()) for name, each in self.findings.items()]
        content = {**vars(self), "findings": dict(further), "recognised": self.recognised.to_json()}
        counted = {name: content.pop(name) for name in ("n", "patients", "unusable")}
        return counted | first[1] | content


def evaluate_source(
    ensemble: Ensemble,
    source: Path,
    *,
    replicates: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    patients_from: str = "auto",
) -> SourceResult:
    """Judges one or more models at a frozen threshold on a folder, zip or CSV list of labelled films.

    Patients are found as one of `openmed.intake.identity.PATIENTS_FROM` says; the rest settles the bootstrap.

    Raises:
        BadInput: The source has no class folders or no usable film, it has to be asked who its patients are,
            or there is no threshold.
    """
    spec, threshold = ensemble.spec, _frozen_threshold(ensemble)
    settings = {"replicates": replicates, "confidence": confidence, "seed": seed}
    films = _score_source(ensemble, source, patients_from)
    points = {spec.positive: threshold, **spec.further_thresholds}
    return SourceResult(
        n=len(films.labels),
        patients=len(set(films.patients)),
        unusable=films.unusable,
        findings={name: _measured(films, spec, name, point, settings) for name, point in points.items()},
        confusion=count_called(spec, films.labels, films.probabilities, threshold),
        referred=_by_reason(films.referred),
        runtime=[runtime(member) for member in ensemble.members],
        recognised=films.recognised,
    )


def _measured(
    films: "_Scored", spec: ModelSpec, finding: str, threshold: float, settings: dict[str, Any]
) -> FindingResult:
    has, scores = films.of(spec, finding)
    intervals = metric_intervals(has, scores, films.patients, threshold, **settings)
    reported = {name: intervals[name] for name in ("auc", "sensitivity", "specificity", "accuracy")}
    return FindingResult(threshold, reported, confusion(has, scores >= threshold))


@dataclass(frozen=True)
class ChosenThreshold:
    """An operating threshold (0..1), the sensitivity it was chosen for, films used, films unusable."""

    threshold: float
    target_sensitivity: float
    n: int
    unusable: int


def threshold_on(ensemble: Ensemble, source: Path, target_sensitivity: float) -> ChosenThreshold:
    """Chooses the operating threshold of one or more models on films that are kept for that.

    Raises:
        BadInput: As `evaluate_source`, or no film has the finding.
    """
    films = _score_source(ensemble, source, "film")
    threshold = choose_threshold(*films.of(ensemble.spec, ensemble.spec.positive), target_sensitivity)
    return ChosenThreshold(threshold, target_sensitivity, len(films.labels), films.unusable)


def explain_film(model: BaseModel, path: Path, out: Path, finding: str | None = None) -> list[Path]:
    """Writes the film's heat map for a finding (default: the first), one JPEG for each method.

    Further methods get their name before the suffix of `out`.

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


def _frozen_threshold(ensemble: Ensemble) -> float:
    if ensemble.threshold is None and ensemble.is_mean:
        raise BadInput(
            "a mean over models or views has no threshold of its own: choose one with `openmed threshold` "
            "on films kept for that, and give it with --threshold"
        )
    return ensemble.spec.operating_point if ensemble.threshold is None else ensemble.threshold


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
            decoded = zip(part, ordered_map(lambda film: _squares(film, ensemble), part), strict=True)
            usable = [(film, squares) for film, squares in decoded if squares is not None]
            if usable:
                squares = [squares for _, squares in usable]
                answers = answer(ensemble, _by_size(ensemble, squares))
                parts.append(answers.probabilities)
                referred += answers.referred
                labels += [spec.class_names.index(film.label) for film, _ in usable]
                patients += [film.patient for film, _ in usable]
            for _ in part:
                tick()
    if not labels:
        raise BadInput(f"none of the {len(films)} films in {source} can be used")
    scored = np.array(labels), patients, np.concatenate(parts), referred
    return _Scored(*scored, len(films) - len(labels), listing.recognised)


def _batches(items: Sequence) -> Iterator[Sequence]:
    return (items[start : start + _BATCH_FILMS] for start in range(0, len(items), _BATCH_FILMS))


def _by_size(ensemble: Ensemble, films: Sequence[Sequence[np.ndarray]]) -> dict[int, np.ndarray]:
    return dict(zip(ensemble.sizes_px, map(np.stack, zip(*films, strict=True)), strict=True))


def _squares(film: LabelledFilm, ensemble: Ensemble) -> list[np.ndarray] | None:
    data = film.reader()
    try:
        return usable_squares(data, ensemble.sizes_px, "the film", min_side_px=ensemble.min_side_px)
    except BadInput:
        return None
