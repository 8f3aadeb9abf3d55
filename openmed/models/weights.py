"""Where a training starts from: ImageNet weights, nothing, or a local file. Never a fallback."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from torch import nn

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_file

_ALTERNATIVES = "set `weights` to the path of a local safetensors file, or to `none` to train from scratch"
_HUB_FILE = "model.safetensors"
# Batch norm's step counter: older files lack it, and nothing is computed from it here.
_MAY_BE_MISSING = "num_batches_tracked"


@dataclass(frozen=True)
class StartingWeights:
    """Origin of the weights before training.

    Attributes:
        kind: imagenet, none or file.
        source: Address of the hub's repository, or the file's name.
        revision: Commit of the hub's repository.
        sha256: Hash of the file.
        path: The file on this machine; None when training starts from scratch.
    """

    kind: str
    source: str | None = None
    revision: str | None = None
    sha256: str | None = None
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the origin without the path, which means nothing elsewhere."""
        return {
            "kind": self.kind,
            "source": self.source,
            "revision": self.revision,
            "sha256": self.sha256,
        }

    def check_fits(self, network: nn.Module) -> None:
        """Refuses a file that left a part of the backbone at its random start.

        Raises:
            BadInput: A backbone tensor is not in the file.
        """
        held = _tensor_names(self.path)
        head = {id(parameter) for parameter in network.get_classifier().parameters()}
        missing = [
            name
            for name, tensor in network.state_dict(keep_vars=True).items()
            if name not in held and id(tensor) not in head and not name.endswith(_MAY_BE_MISSING)
        ]
        if missing:
            raise BadInput(
                f"{self.source} does not fit the network: {len(missing)} tensors are missing, "
                f"the first is {missing[0]}"
            )


def find_weights(weights: str, timm_name: str, sha256: str | None = None) -> StartingWeights:
    """Finds the file to start from.

    Args:
        weights: "imagenet", "none" or the path of a safetensors file.
        timm_name: The network, for the ImageNet weights.
        sha256: Hash that the file must have.

    Raises:
        BadInput: No such file, or no ImageNet weights for this network.
        ResourceError: The ImageNet weights cannot be fetched.
        IntegrityError: The file has another hash.
    """
    if weights == "none":
        return StartingWeights("none")
    if weights == "imagenet":
        path, source, revision = _from_hub(timm_name)
        kind = "imagenet"
    else:
        path, source, revision, kind = Path(weights), Path(weights).name, None, "file"
        if path.suffix != ".safetensors" or not path.is_file():
            raise BadInput(f"weights {weights!r} is not an existing .safetensors file; {_ALTERNATIVES}")
        _tensor_names(path)
    found = sha256_file(path)
    if sha256 is not None and found != sha256:
        raise IntegrityError(f"{source} has sha256 {found}, but the settings ask for {sha256}")
    return StartingWeights(kind, source, revision, found, path)


def _from_hub(timm_name: str) -> tuple[Path, str, str]:
    try:
        hub_id = timm.get_pretrained_cfg(timm_name, allow_unregistered=False).hf_hub_id
    except RuntimeError:
        hub_id = None
    if not hub_id:
        raise BadInput(f"timm has no ImageNet weights for {timm_name!r}; {_ALTERNATIVES}")
    try:
        path = _cached_or_fetched(hub_id)
    except Exception as error:  # the client lets the errors of its HTTP library through
        raise ResourceError(
            f"the ImageNet weights {hub_id} cannot be fetched ({type(error).__name__}): "
            f"connect this machine, {_ALTERNATIVES}"
        ) from None
    _check_download(path, hub_id)
    # The hub keeps each commit in a folder of its own, which is the revision to record.
    return path, hub_id, path.parent.name


def _cached_or_fetched(hub_id: str) -> Path:
    """The file on this machine: once fetched it stays the same, whatever happens on the hub."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, _HUB_FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        # The download retries for 20 s; a request of our own finds an unreachable hub at once.
        get_hf_file_metadata(hf_hub_url(hub_id, _HUB_FILE), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return Path(hf_hub_download(hub_id, _HUB_FILE))


def _check_download(path: Path, hub_id: str) -> None:
    """Holds a cached file against the hash that the hub announced, the name of the linked blob."""
    announced = path.readlink().name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", announced) and sha256_file(path) != announced:
        raise IntegrityError(
            f"the ImageNet weights {hub_id} on this machine are damaged: delete {path.resolve()}"
        )


def _tensor_names(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as stream:
            return set(stream.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a readable safetensors file: {error}") from None
