"""The state of a training on disk, from which it continues bit for bit.

One safetensors file holds weights, optimiser state and, as JSON metadata, the place in the
schedule; a second one the best weights so far. Random numbers need no state: each step's generator
is seeded from the run's seed and the step's number.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from openmed.files import atomic_path
from openmed.training.position import STATE_FILE, Position


def save_state(
    folder: Path,
    fingerprint: str,
    position: Position,
    network: nn.Module | None,
    optimizer: Optimizer | None,
    average: nn.Module | None = None,
) -> None:
    """Writes the state atomically over the previous one; without a network it is the position alone."""
    tensors: dict[str, Tensor] = {}
    for prefix, weights in (("network", network), ("average", average)):
        if weights is not None:
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in weights.state_dict().items()}
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    metadata = {"fingerprint": fingerprint, "position": json.dumps(asdict(position))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(Path(folder) / STATE_FILE) as temporary:
        save_file(tensors, temporary, metadata)


def load_state(folder: Path, fingerprint: str) -> tuple[Position, dict[str, Tensor]] | None:
    """Reads the state of the same training, or None when there is none.

    A state with another fingerprint belongs to a training with other data or settings and is
    ignored, as is a file that cannot be read.
    """
    try:
        with safe_open(Path(folder) / STATE_FILE, framework="pt") as stream:
            metadata = stream.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return Position(**json.loads(metadata["position"])), tensors


def restore_network(network: nn.Module, tensors: dict[str, Tensor], prefix: str = "network.") -> None:
    """Puts saved weights and buffers back."""
    network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts the saved optimiser state back; the learning rate follows from the step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            like = parameters[int(index)]
            # The fused optimiser walks through the memory, so its state must lie as the weights do.
            same = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            slots.setdefault(int(index), {})[slot] = same
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
