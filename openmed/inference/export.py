"""Exporting a model to ONNX, and the gate that an export must pass before it may stand in for the model."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn

from openmed.errors import IntegrityError
from openmed.files import sha256_bytes, write_bytes
from openmed.films.images import resize_film
from openmed.inference.checkpoint import EXPORT_FILE, load_model, read_spec, write_spec
from openmed.inference.control import (
    CONTROL_FILE,
    DISTANCE_TOLERANCE,
    check_answers,
    largest_difference,
    meaning_of,
)
from openmed.inference.predictor import Predictor
from openmed.inference.session import FEATURES, FILMS, LOGITS, ExportedModel, called_classes
from openmed.models.base import BaseModel, evaluation_mode
from openmed.phantoms.phantom import draw

EXPORT_TOLERANCE = 1e-4
"""Most that a probability may differ between a model and its export."""


class _WithPreprocessing(nn.Module):
    """From uint8 films (N, S, S) to logits (N, classes), with statistics also features (N, D).

    The graph needs no code beside it.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, films: Tensor) -> tuple[Tensor, ...]:
        prepared = self.model.prepare(films)
        if self.model.statistics is None:
            return (self.model(prepared),)
        logits, profiles = self.model.described(prepared)
        return logits, torch.cat(profiles, 1)


def finish_export(folder: Path, films: NDArray[np.uint8]) -> str:
    """Exports the model of a finished folder, if the export decides as the model does; says what was done.

    A model that cannot be exported is no worse for that: it stays, and predicts in PyTorch. The folder has
    its threshold; for the films see `export_onnx`.
    """
    model = load_model(folder)
    try:
        export_onnx(model, folder, films)
    except IntegrityError as error:
        return f"not exported, so predictions stay in PyTorch: {error}"
    return f"exported to {EXPORT_FILE}; the same decisions on {len(films)} films"


def export_onnx(model: BaseModel, folder: Path, films: NDArray[np.uint8]) -> Path:
    """Writes `model.onnx` beside a model's weights, with phantoms that the model answered, and names both.

    The graph takes any number of films, uint8 (N, S, S), prepares them itself and gives logits, and features
    where the model has statistics of them; it holds the weights. The same model gives the same bytes. Nothing
    is written before model and export have decided alike.

    The model is that of the folder, on the CPU. Of the films to compare on, uint8 (N, S, S), N > 0, those
    with scores near the threshold tell most.

    Raises:
        IntegrityError: The model cannot be exported, or the export differs from it.
    """
    graph, control = graph_bytes(model), answered_phantoms(model)
    exported = ExportedModel(model.spec, graph, model.statistics)
    check_parity(model, exported, films)
    check_answers(control, exported, EXPORT_FILE)
    path = Path(folder) / EXPORT_FILE
    write_bytes(path, graph)
    write_bytes(Path(folder) / CONTROL_FILE, control)
    spec, weights_sha256 = read_spec(folder)
    write_spec(folder, spec, weights_sha256, sha256_bytes(graph), sha256_bytes(control))
    return path


def check_parity(model: BaseModel, exported: ExportedModel, films: NDArray[np.uint8]) -> float:
    """Compares a model with its export and returns the largest difference of a probability.

    Raises:
        IntegrityError: A film is called another class, a probability differs by more than 1e-4, or a
            distance from the known films by more than 1e-2.
        ValueError: There are no films.
    """
    if not len(films):
        raise ValueError("an export cannot be compared with its model without films")
    (expected, near), (exported_answers, near_exported) = model.assess(films), exported.assess(films)
    threshold = model.spec.threshold
    called = [called_classes(model.spec, each, threshold) for each in (expected, exported_answers)]
    flips, worst = int((called[0] != called[1]).sum()), float(np.abs(expected - exported_answers).max())
    if flips or not worst <= EXPORT_TOLERANCE:
        raise IntegrityError(
            f"the export of this {model.spec.architecture} decides otherwise on {flips} of {len(films)} "
            f"films and its probabilities differ by up to {worst:.1e} ({EXPORT_TOLERANCE:.0e} is allowed)"
        )
    apart = largest_difference(near, near_exported)
    if not apart <= DISTANCE_TOLERANCE:
        raise IntegrityError(
            f"the export of this {model.spec.architecture} sees films otherwise: distances from those "
            f"that it learnt from differ by up to {apart:.1e} ({DISTANCE_TOLERANCE:.0e} is allowed)"
        )
    return worst


def graph_bytes(model: BaseModel) -> bytes:
    """Traces a model on the CPU into a serialised ONNX graph.

    PyTorch's older exporter does it. The newer one, which is to replace it, gave the same answers but took
    10 to 30 times as long (12 s of CPU time against 1.1 s for InceptionV3, torch 2.15), wanted three more
    packages and wrote stack traces with this machine's paths into the graph. Whichever does it,
    `check_parity` is what an export stands on.

    Raises:
        IntegrityError: PyTorch cannot express the model in ONNX.
    """
    size = model.spec.image_size_px
    films = torch.zeros(1, size, size, dtype=torch.uint8)
    outputs = [LOGITS] if model.statistics is None else [LOGITS, FEATURES]
    written = io.BytesIO()
    try:
        with evaluation_mode(model), warnings.catch_warnings():
            # It is deprecated, and takes the sizes it checks for constants, as they are here.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _WithPreprocessing(model).eval(),
                (films,),
                written,
                input_names=[FILMS],
                output_names=outputs,
                dynamic_axes={name: {0: "n"} for name in (FILMS, *outputs)},
                opset_version=18,
                dynamo=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise IntegrityError(
            f"this {model.spec.architecture} cannot be exported to ONNX ({type(error).__name__})"
        ) from error
    return written.getvalue()


def answered_phantoms(predictor: Predictor) -> bytes:
    """Draws two phantoms and returns them with a model's logits and distances, a safetensors file.

    Logits, not probabilities: however sure a model is of phantoms, its logits tell one from the other. The
    classes and the calibration, which make probabilities of them, are noted beside.
    """
    size = predictor.spec.image_size_px
    drawn = [draw(each, each, pneumonia=bool(each % 2)).film for each in range(2)]
    films = np.stack([resize_film(film, size) for film in drawn])
    logits, distances = predictor.outputs(films)
    # Rounded, so that the last bits of another processor do not make another file.
    content: dict[str, np.ndarray] = {"films": films, "logits": logits.round(4)}
    content["meaning"] = meaning_of(predictor.spec)
    return save(content if distances is None else content | {"distances": distances.round(4)})
