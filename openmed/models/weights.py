"""Where a training starts from: ImageNet weights, a champion, nothing, or a local file. Never a fallback."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_file
from openmed.fitted.spec import ModelSpec
from openmed.models.networks import timm
from openmed.models.vault import CHAMPION_WEIGHTS, UNKNOWN_LICENCE, VaultEntry, read_vault

T = TypeVar("T")

_ALTERNATIVES = "set `weights` to the path of a local safetensors file, or to `none` to train from scratch"
_HUB_FILE = "model.safetensors"
# Batch norm's step counter: older files lack it, and nothing is computed from it here.
_MAY_BE_MISSING = "num_batches_tracked"


@dataclass(frozen=True)
class StartingWeights:
    """Origin of the weights before training.

    Attributes:
        kind: imagenet, champion, none or file.
        source: Address of the hub's repository, the version of the registry, or the file's name.
        revision: Commit of the hub's repository.
        sha256: Hash of the file.
        path: The file on this machine; None when training starts from scratch.
        spec: Description of a champion, whose whole state is taken over; else None.
    """

    kind: str
    source: str | None = None
    revision: str | None = None
    sha256: str | None = None
    path: Path | None = None
    spec: ModelSpec | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the origin without the path, which means nothing elsewhere."""
        names = ("kind", "source", "revision", "sha256")
        return {name: getattr(self, name) for name in names}

    def check_architecture(self, architecture: str) -> None:
        """Refuses the weights of a champion of another architecture, with BadInput."""
        if self.spec is not None and self.spec.architecture != architecture:
            raise BadInput(
                f"{self.source} is a {self.spec.architecture}: {architecture} cannot start from it, "
                f"so set its `weights` to something else than {self.kind}"
            )

    def check_fits(self, network: nn.Module) -> None:
        """Refuses a file that left a part of the backbone at its random start, with BadInput."""
        if self.path is None:
            return
        held, head = tensor_names(self.path), _head_of(network)
        missing = [
            name
            for name in network.state_dict()
            if name not in held and name not in head and not name.endswith(_MAY_BE_MISSING)
        ]
        if missing:
            raise BadInput(
                f"{self.source} does not fit the network: {len(missing)} tensors are missing, "
                f"the first is {missing[0]}"
            )

    def continue_from(self, network: nn.Module, class_names: tuple[str, ...]) -> None:
        """Loads a champion's whole state, if it is one; its head stays out where its classes were others.

        BadInput where the champion is another network.
        """
        if self.path is None or self.spec is None:
            return
        state, own = load_file(self.path), network.state_dict()
        if self.spec.class_names != tuple(class_names):
            state |= {name: own[name] for name in _head_of(network)}
        try:
            network.load_state_dict(state)
        except RuntimeError:
            raise BadInput(
                f"{self.source} does not fit the network that is asked for: it is {self.spec.timm_name} "
                f"at {self.spec.image_size_px} px with {self.spec.model_options or 'no options'}"
            ) from None


@dataclass(frozen=True)
class HubWeights:
    """ImageNet weights in this machine's hub cache: repository, its commit, hash and place of the file."""

    source: str
    revision: str
    sha256: str
    path: Path


def find_weights(
    weights: str, timm_name: str, sha256: str | None = None, *, vault: Path | None = None
) -> StartingWeights:
    """Finds the file to start from.

    ImageNet weights come from the vault if it holds them, else from this machine's hub cache, else from the
    hub. The bytes and the record of their origin are the same whichever way they came.

    `weights` is "imagenet", "champion", "none" or the path of a safetensors file. `sha256`, the hash that the
    file must have, is required for what comes from a vault, whose content may change from version to version:
    the settings alone then say where a training started. The vault's folder need not exist.

    Raises:
        BadInput: No such file, no ImageNet weights for this network, no champion in the vault, or
            weights from the vault without `sha256`.
        ResourceError: The ImageNet weights cannot be fetched.
        IntegrityError: The file is damaged or has another hash.
    """
    if weights == "none":
        return StartingWeights("none")
    if vault is not None and weights in ("imagenet", CHAMPION_WEIGHTS):
        key = timm_name if weights == "imagenet" else CHAMPION_WEIGHTS
        if entry := read_vault(vault).get(key):
            return _from_vault(entry, vault, sha256)
    if weights == CHAMPION_WEIGHTS:
        raise BadInput(
            "`weights: champion` starts from the weights vault, which holds no champion: "
            "put it there with `openmed weights pull --champion`"
        )
    if weights == "imagenet":
        start = StartingWeights("imagenet", **vars(fetch_imagenet(timm_name)))
    else:
        start = _local_file(weights)
    if sha256 is not None and start.sha256 != sha256:
        raise IntegrityError(f"{start.source} has sha256 {start.sha256}, but the settings ask for {sha256}")
    return start


def fetch_imagenet(timm_name: str, revision: str | None = None) -> HubWeights:
    """Finds a network's ImageNet weights in this machine's hub cache, or fetches them there.

    `revision` is the commit of the hub's repository; None takes what is cached, or else the newest.

    Raises:
        BadInput: There are no ImageNet weights for this network.
        ResourceError: They cannot be fetched.
        IntegrityError: The file on this machine is not what the hub announced.
    """
    hub_id = _hub_id(timm_name)
    path = _from_hub(hub_id, lambda: _cached_or_fetched(hub_id, revision))
    digest, announced = sha256_file(path), announced_sha256(path)
    if announced not in (None, digest):
        raise IntegrityError(
            f"the ImageNet weights {hub_id} on this machine are damaged: delete {path.resolve()}"
        )
    # The hub keeps each commit in a folder of its own, which is the revision to record.
    return HubWeights(hub_id, path.parent.name, digest, path)


def announced_sha256(path: Path) -> str | None:
    """The hash that the hub announced for a cached file, the name of the linked blob; None without one."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def fetch_licence(hub_id: str, revision: str) -> str:
    """Asks the hub for the licence that a repository states, else "unknown"; ResourceError without a hub."""
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    card = _from_hub(
        hub_id, lambda: api.model_info(hub_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    ).card_data
    stated = (card.license_name if card.license == "other" else card.license) if card else None
    return stated if isinstance(stated, str) and stated else UNKNOWN_LICENCE


def _from_vault(entry: VaultEntry, vault: Path, sha256: str | None) -> StartingWeights:
    if sha256 is None:
        raise BadInput(
            f"{entry.source} comes from the weights vault, so `weights_sha256` must say which file is meant: "
            f"set it to {entry.sha256}, or let `{entry.remedy}` do so"
        )
    if sha256 != entry.sha256:
        raise IntegrityError(
            f"the weights vault holds {entry.source} with sha256 {entry.sha256}, "
            f"but the settings ask for {sha256}"
        )
    spec = ModelSpec.from_json(entry.spec) if entry.kind == CHAMPION_WEIGHTS else None
    return StartingWeights(entry.kind, entry.source, entry.revision, sha256, entry.path_in(vault), spec)


def _local_file(weights: str) -> StartingWeights:
    path = Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise BadInput(f"weights {weights!r} is not an existing .safetensors file; {_ALTERNATIVES}")
    tensor_names(path)
    return StartingWeights("file", path.name, None, sha256_file(path), path)


def _hub_id(timm_name: str) -> str:
    try:
        hub_id = timm.get_pretrained_cfg(timm_name, allow_unregistered=False).hf_hub_id
    except RuntimeError:
        hub_id = None
    if not hub_id:
        raise BadInput(f"timm has no ImageNet weights for {timm_name!r}; {_ALTERNATIVES}")
    return hub_id


def _from_hub(hub_id: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:  # the client lets the errors of its HTTP library through
        raise ResourceError(
            f"the ImageNet weights {hub_id} cannot be fetched ({type(error).__name__}): "
            f"connect this machine, bring a weights vault that was filled elsewhere, {_ALTERNATIVES}"
        ) from None


def _cached_or_fetched(hub_id: str, revision: str | None) -> Path:
    """The file on this machine: once fetched it stays the same, whatever happens on the hub."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, _HUB_FILE, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        # The download retries for 20 s; a request of our own finds an unreachable hub at once.
        address = hf_hub_url(hub_id, _HUB_FILE, revision=revision)
        get_hf_file_metadata(address, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return Path(hf_hub_download(hub_id, _HUB_FILE, revision=revision))


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file; BadInput where it is none."""
    try:
        with safe_open(path, framework="pt") as stream:
            return set(stream.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a readable safetensors file: {error}") from None


def _head_of(network: nn.Module) -> set[str]:
    """Names of the classifier's tensors in a network's state."""
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    return {name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in head}
