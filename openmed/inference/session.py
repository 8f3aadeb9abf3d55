"""Prediction on a CPU through a model's exported graph, and the choice between that and PyTorch."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from openmed.errors import IntegrityError
from openmed.fitted.feature_statistics import FeatureStatistics
from openmed.fitted.spec import ModelSpec
from openmed.inference.checkpoint import (
    EXPORT_FILE,
    SPEC_FILE,
    check_weights,
    control_hash,
    export_hash,
    load_model,
    read_control,
    read_export,
    read_spec,
    read_statistics,
)
from openmed.inference.control import check_answers
from openmed.inference.predictor import Predictor
from openmed.metrics.calibration_error import log_odds
from openmed.models.base import BaseModel, Outputs

FILMS, LOGITS, FEATURES = "films", "logits", "features"
"""Names of the graph's input, uint8 (N, S, S), and outputs, float32 (N, classes) and (N, D). A graph has the
features where its model has statistics of them."""

_FATAL = 4  # its errors are raised as well, so they need not be printed


onnxruntime.disable_telemetry_events()  # its Windows builds report use otherwise
onnxruntime.set_default_logger_severity(_FATAL)  # sessions have a level of their own


class ExportedModel:
    """A model's exported graph under ONNX Runtime; it predicts what the model itself predicts.

    Attributes:
        spec: Preprocessing, labels and threshold, as in the model.
        statistics: Of the films that it learnt from, or None.
    """

    def __init__(self, spec: ModelSpec, graph: bytes, statistics: FeatureStatistics | None = None) -> None:
        """Prepares a graph for this machine's CPU, with as many threads as PyTorch has.

        The graph comes as bytes and so can open no other file: weights outside it are refused. A second try
        after a failure, which ONNX Runtime would announce on the standard output, is turned off.

        Raises:
            IntegrityError: ONNX Runtime cannot use the graph, or it lacks the features.
        """
        self.spec, self.statistics = spec, statistics
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception:  # its ten kinds of error have no base in common
            raise IntegrityError(f"{EXPORT_FILE} does not hold a graph that {SPEC_FILE} describes") from None
        if statistics is not None and FEATURES not in {each.name for each in self._session.get_outputs()}:
            raise IntegrityError(f"{EXPORT_FILE} gives no features, of which {SPEC_FILE} names statistics")
        size = spec.image_size_px
        films = {each.name: (each.type, each.shape[1:]) for each in self._session.get_inputs()}
        if films != {FILMS: ("tensor(uint8)", [size, size])}:
            raise IntegrityError(
                f"{EXPORT_FILE} does not take films of {size} px, of which {SPEC_FILE} speaks"
            )

    def logits(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> NDArray[np.float32]:
        """Logits, float32 (N, classes), of films, uint8 (N, S, S)."""
        return self._run([LOGITS], [len(self.spec.class_names)], films, batch_films)[0]

    def _run(
        self, names: list[str], widths: list[int], films: NDArray[np.uint8], batch_films: int
    ) -> list[np.ndarray]:
        """Outputs of the graph, float32 (N, width) each."""
        films = np.asarray(films)
        size = self.spec.image_size_px
        if films.ndim != 3 or films.shape[1:] != (size, size) or films.dtype != np.uint8:
            raise ValueError(f"films must be uint8 (N, {size}, {size}), not {films.dtype} {films.shape}")
        if not len(films):
            return [np.zeros((0, width), np.float32) for width in widths]
        try:
            parts = [
                self._session.run(names, {FILMS: films[start : start + batch_films]})
                for start in range(0, len(films), batch_films)
            ]
        except Exception as error:  # see above
            kind = type(error).__name__
            raise IntegrityError(f"{EXPORT_FILE} cannot be computed ({kind}): restore the model") from None
        whole = [
            np.concatenate([np.atleast_1d(part) for part in outputs]) for outputs in zip(*parts, strict=True)
        ]
        for name, width, output in zip(names, widths, whole, strict=True):
            if output.shape != (len(films), width) or output.dtype != np.float32:
                raise IntegrityError(
                    f"{EXPORT_FILE} gives {output.dtype} {output.shape} as {name}, not float32 "
                    f"{(len(films), width)}: restore the model"
                )
        return whole

    def predict(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> NDArray[np.float32]:
        """Class probabilities, float32 (N, classes), of films, uint8 (N, S, S), calibrated."""
        return self.spec.probabilities(self.logits(films, batch_films=batch_films))

    def outputs(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> Outputs:
        """Logits, and how far the films lie from the known, float64 (N,), None without statistics."""
        if self.statistics is None:
            return self.logits(films, batch_films=batch_films), None
        widths = [len(self.spec.class_names), self.statistics.width]
        logits, vectors = self._run([LOGITS, FEATURES], widths, films, batch_films)
        return logits, self.statistics.distances(vectors)

    def assess(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> Outputs:
        """Class probabilities as `predict` gives them, and the distances of `outputs`."""
        logits, distances = self.outputs(films, batch_films=batch_films)
        return self.spec.probabilities(logits), distances


def load_exported(folder: Path) -> ExportedModel:
    """Loads a folder's exported graph; the weights beside it are checked too, though not read.

    The graph is asked the phantoms of the folder, whose answers came from the weights.

    Raises:
        BadInput: The folder is not a model folder, or was never exported.
        IntegrityError: Graph, weights or statistics are not those that the description names, or the graph
            answers otherwise.
    """
    check_weights(folder)
    spec = read_spec(folder)[0]
    exported = ExportedModel(spec, read_export(folder), read_statistics(folder, spec))
    if (control := read_control(folder)) is not None:
        check_answers(control, exported, EXPORT_FILE)
    return exported


def load_predictor(folder: Path, device: torch.device | str = "cpu") -> Predictor:
    """Loads a model folder in the fastest way to predict on a device.

    On a CPU that is the exported graph when the folder has one and phantoms to hold it against. On any other
    device, and for a folder that was never exported or in a time before it got phantoms, it is the model in
    PyTorch; explanations need that one in any case.

    Raises:
        BadInput: The folder is not a model folder.
        IntegrityError: A file is not the one that the description names.
    """
    exported = export_hash(folder) is not None and control_hash(folder) is not None
    if torch.device(device).type == "cpu" and exported:
        return load_exported(folder)
    return load_model(folder).to(device)


def runtime(predictor: Predictor) -> str:
    """Says what computes a predictor's probabilities: onnxruntime, or pytorch and the device."""
    return f"pytorch {predictor.device.type}" if isinstance(predictor, BaseModel) else "onnxruntime"


def called_classes(spec: ModelSpec, probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """The classes that films are called.

    With thresholds a film has a finding whose probability reaches its own; of several that of which the odds
    are the most times those of the threshold. Where no finding is reached, the most probable class that is
    none counts, or the most probable of all where every class is one.

    Of probabilities (N, classes) and the threshold of the first finding (0..1): int (N,), indices of
    `spec.class_names`.
    """
    if threshold is None:
        return probabilities.argmax(1)
    points = {spec.positive: threshold, **spec.further_thresholds}
    findings = np.array([spec.class_names.index(name) for name in points])
    others = np.setdiff1d(np.arange(len(spec.class_names)), findings)
    called = others[probabilities[:, others].argmax(1)] if others.size else probabilities.argmax(1)
    # Not in 32 bits, to which numpy would round a threshold that a person has given.
    scores, limits = probabilities[:, findings].astype(np.float64), np.array(list(points.values()))
    reached = scores >= limits
    clearest = np.where(reached, log_odds(scores, 1e-12) - log_odds(limits, 1e-12), -np.inf).argmax(1)
    return np.where(reached.any(1), findings[clearest], called)


def count_called(
    spec: ModelSpec, labels: np.ndarray, probabilities: np.ndarray, threshold: float | None
) -> dict[str, dict[str, int]]:
    """Counts films by the class that they have, int (N,), and the one that they are called.

    Class that films have -> class that they are called -> films.
    """
    counts = np.zeros((len(spec.class_names),) * 2, int)
    np.add.at(counts, (labels, called_classes(spec, probabilities, threshold)), 1)
    rows = zip(spec.class_names, counts.tolist(), strict=True)
    return {name: dict(zip(spec.class_names, row, strict=True)) for name, row in rows}
