"""A model on disk: `weights.safetensors` and `model.json`, and nothing that can run code."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, read_json, sha256_file, write_json
from openmed.models.base import BaseModel
from openmed.models.factory import build_empty
from openmed.models.spec import ModelSpec

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "model.json"


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
    write_spec(folder, model.spec, digest)
    return digest


def write_spec(folder: Path, spec: ModelSpec, weights_sha256: str) -> None:
    """Writes the description beside the weights."""
    write_json(Path(folder) / SPEC_FILE, {"spec": spec.to_json(), "weights_sha256": weights_sha256})


def read_spec(folder: Path) -> tuple[ModelSpec, str]:
    """Reads a model folder's description and the hash its weights must have.

    Raises:
        BadInput: The folder is not a model folder.
    """
    content = read_json(Path(folder) / SPEC_FILE)
    if not isinstance(content, dict) or set(content) != {"spec", "weights_sha256"}:
        raise BadInput(f"{folder} is not a model folder: {SPEC_FILE} lacks a spec and weights_sha256")
    return ModelSpec.from_json(content["spec"]), content["weights_sha256"]


def load_model(folder: Path) -> BaseModel:
    """Loads a model folder for prediction, on the CPU, in evaluation mode.

    Raises:
        BadInput: The folder is not a model folder.
        IntegrityError: The weights are not those that the description names.
    """
    folder = Path(folder)
    spec, expected = read_spec(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise BadInput(f"{folder} holds no {WEIGHTS_FILE}")
    if sha256_file(weights) != expected:
        raise IntegrityError(f"{weights} was changed: its hash is not the one in {SPEC_FILE}")
    model = build_empty(spec)
    try:
        model.network.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError):
        raise IntegrityError(f"{weights} does not fit the model that {SPEC_FILE} describes") from None
    return model.eval()
