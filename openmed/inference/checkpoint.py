"""A model on disk: weights, description, perhaps export, feature statistics and phantoms to ask it again.

Nothing of it can run code.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, read_json, sha256_bytes, sha256_file, write_bytes, write_json
from openmed.fitted.feature_statistics import STATISTICS_FILE, FeatureStatistics
from openmed.fitted.spec import ModelSpec
from openmed.inference.control import CONTROL_FILE, check_answers
from openmed.models.base import BaseModel
from openmed.models.factory import build_empty

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "model.json"
EXPORT_FILE = "model.onnx"
_FURTHER_HASHES = {"export_sha256", "control_sha256"}


def save_model(folder: Path, model: BaseModel) -> str:
    """Writes a model folder and returns the SHA-256 of its weights.

    The description is written last and holds the hash of the weights, so a folder that was cut
    short is found when it is loaded.
    """
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        state = model.network.state_dict()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    digest = sha256_file(folder / WEIGHTS_FILE)
    if model.spec.novelty is not None:
        if model.statistics is None:
            raise ValueError("the model has a limit of novelty, but no feature statistics")
        write_statistics(folder, model.statistics)
    write_spec(folder, model.spec, digest)
    return digest


def write_spec(
    folder: Path,
    spec: ModelSpec,
    weights_sha256: str,
    export_sha256: str | None = None,
    control_sha256: str | None = None,
) -> None:
    """Writes the description beside the weights; an export or phantoms that it does not name are not used."""
    content = {"spec": spec.to_json(), "weights_sha256": weights_sha256}
    hashes = {"export_sha256": export_sha256, "control_sha256": control_sha256}
    content |= {name: digest for name, digest in hashes.items() if digest is not None}
    write_json(Path(folder) / SPEC_FILE, content)


def write_statistics(folder: Path, statistics: FeatureStatistics) -> str:
    """Writes the feature statistics beside the weights and returns their SHA-256, for the spec's novelty."""
    content = statistics.to_bytes()
    write_bytes(Path(folder) / STATISTICS_FILE, content)
    return sha256_bytes(content)


def read_statistics(folder: Path, spec: ModelSpec) -> FeatureStatistics | None:
    """Reads the feature statistics that a description names, if any; IntegrityError if they are others."""
    if spec.novelty is None:
        return None
    content = _checked(Path(folder) / STATISTICS_FILE, spec.novelty.statistics_sha256)
    return FeatureStatistics.from_bytes(content)


def read_spec(folder: Path) -> tuple[ModelSpec, str]:
    """Reads a model folder's description and its weights' hash; BadInput where it is no such folder."""
    content = _description(folder)
    return ModelSpec.from_json(content["spec"]), content["weights_sha256"]


def export_hash(folder: Path) -> str | None:
    """Reads the hash that the exported graph must have, None when the folder was never exported."""
    return _description(folder).get("export_sha256")


def control_hash(folder: Path) -> str | None:
    """Reads the hash that the folder's phantoms must have, None when it has none."""
    return _description(folder).get("control_sha256")


def read_control(folder: Path) -> bytes | None:
    """Reads a folder's phantoms with the answers on them, if any; IntegrityError where they are others."""
    expected = control_hash(folder)
    return None if expected is None else _checked(Path(folder) / CONTROL_FILE, expected)


def check_weights(folder: Path) -> Path:
    """Holds the weights against the description and returns their path.

    Raises:
        BadInput: The folder is not a model folder.
        IntegrityError: The weights are not those that the description names.
    """
    _, expected = read_spec(folder)
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise BadInput(f"{folder} holds no {WEIGHTS_FILE}")
    if sha256_file(weights) != expected:
        raise IntegrityError(f"{weights} was changed: its hash is not the one in {SPEC_FILE}")
    return weights


def read_export(folder: Path) -> bytes:
    """Reads the exported graph: what is checked is what is returned, whatever happens to the file then.

    BadInput where the folder was never exported, IntegrityError where the graph is missing or another one.
    """
    expected = export_hash(folder)
    if expected is None:
        raise BadInput(f"{folder} was never exported: run the evaluate stage, which does it")
    return _checked(Path(folder) / EXPORT_FILE, expected)


def load_model(folder: Path) -> BaseModel:
    """Loads a model folder for prediction, on the CPU, in evaluation mode.

    Where the folder has phantoms, the model is asked them: so a changed preprocessing is found too.

    Raises:
        BadInput: The folder is not a model folder.
        IntegrityError: The weights or the statistics are not those that the description names, are not
            finite, or the model answers otherwise than when it was finished.
    """
    folder = Path(folder)
    weights = check_weights(folder)
    spec = read_spec(folder)[0]
    model = build_empty(spec)
    model.statistics = read_statistics(folder, spec)
    try:
        model.network.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError):
        raise IntegrityError(f"{weights} does not fit the model that {SPEC_FILE} describes") from None
    _check_finite(weights, model)
    model.eval()
    if (control := read_control(folder)) is not None:
        check_answers(control, model, WEIGHTS_FILE)
    return model


def _checked(path: Path, expected: str) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    if sha256_bytes(content) != expected:
        raise IntegrityError(f"{path} is missing or was changed: its hash is not the one in {SPEC_FILE}")
    return content


def _check_finite(weights: Path, model: BaseModel) -> None:
    for name, tensor in model.network.state_dict().items():
        # A sum is finite only where every number is: it costs a tenth of asking each.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise IntegrityError(
                f"{weights} holds numbers that are not finite, in {name}: train the model again"
            )


def _description(folder: Path) -> dict[str, Any]:
    content = read_json(Path(folder) / SPEC_FILE)
    if not isinstance(content, dict) or set(content) - _FURTHER_HASHES != {"spec", "weights_sha256"}:
        raise BadInput(f"{folder} is not a model folder: {SPEC_FILE} lacks a spec and weights_sha256")
    if not all(isinstance(content[name], str) for name in content if name != "spec"):
        raise BadInput(f"{folder} is not a model folder: a hash in {SPEC_FILE} is no text")
    return content
