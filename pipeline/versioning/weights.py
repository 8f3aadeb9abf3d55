"""Fills the weights vault of the project, makes a version of it, and pins what it holds in the settings.

No stage depends on the vault's folder, which most projects do not have. The settings name each file by its
hash instead, which the library demands for whatever it takes from a vault: settings are a dependency of every
training, so that another file means another training, and a training without the vault costs nothing.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from openmed.models.vault import CHAMPION_WEIGHTS, UNKNOWN_LICENCE, VaultEntry, put_in_vault, read_vault
from pipeline.settings.artifacts import VAULT
from pipeline.settings.params import Params, Train, load_params
from pipeline.settings.yaml_file import set_values
from pipeline.tools.dvc_lock import describe, read_pointer
from pipeline.tools.git import check_branch, dvc, git, obtain, push
from pipeline.versioning.workspace import WEIGHTS_POINTER

Say = Callable[[str], None]


def pull_imagenet(root: Path, params_file: Path, say: Say) -> dict[str, Any]:
    """Puts the ImageNet weights of all architectures into the vault and makes a version of it.

    What is there and intact stays as it is. Every step can be repeated: after a kill, or when the hub or the
    remote could not be reached, the same call does what is still missing.

    The hash of what a training starts from is written into `params_file`, which names the networks.

    Returns:
        fetched (networks), pinned (architectures), revision (None when nothing is new) and pushed.

    Raises:
        BadInput: No checkout with git and DVC, or no ImageNet weights for a network that starts from them.
        ResourceError: The hub or the remote does not answer.
        IntegrityError: A file is not what the hub announced, the vault recorded or the settings ask for.
    """
    params = load_params(params_file)
    clean = _open(root, params_file, say)
    sections = [params.train[name] for name in params.architectures]
    fetched = [section.timm_name for section in sections if _bring(root / VAULT, section, say)]
    return {"fetched": fetched} | _record(root, params_file, "imagenet", clean, say)


def pull_champion(root: Path, params_file: Path, say: Say) -> dict[str, Any]:
    """Puts the registry's champion into the vault in place of the one before; else as `pull_imagenet`.

    Raises:
        BadInput: There is no champion, or an architecture is to start from the champion of another.
        ResourceError: The registry or the remote does not answer.
        IntegrityError: The registry's model is not the one that was registered.
    """
    from pipeline import ledger, registry

    params, number = load_params(params_file), ledger.champion()
    if number is None:
        raise BadInput(f"{registry.MODEL_NAME} has no champion: register and promote a model first")
    clean, source = _open(root, params_file, say), f"{registry.MODEL_NAME} version {number}"
    with registry.stored(number) as folder:
        fetched = _bring_champion(root / VAULT, folder, params, source, say)
    return {"fetched": fetched} | _record(root, params_file, CHAMPION_WEIGHTS, clean, say)


def list_vault(root: Path) -> list[dict[str, Any]]:
    """Describes what the vault holds, hashing every file.

    Returns:
        For each: kind, timm_name, file, source, revision, licence, sha256, bytes, added_at, and state:
        intact, missing or damaged.

    Raises:
        BadInput: There is no vault, or it is not what weights.dvc points to.
    """
    held = read_vault(root / VAULT)
    if absent := _pointed(root).keys() - held.keys():
        raise BadInput(
            f"{root / VAULT} lacks {', '.join(sorted(absent))}: get it with `dvc pull {WEIGHTS_POINTER}`"
        )
    if not held:
        raise BadInput(f"{root} has no weights vault: fill one with `openmed weights pull`")
    return [
        {key: value for key, value in asdict(entry).items() if key != "spec"}
        | {"state": entry.state(root / VAULT)}
        for _, entry in sorted(held.items())
    ]


def _bring(vault: Path, section: Train, say: Say) -> bool:
    """Fetches one network's weights unless they are there; True if it did."""
    name, needed = section.timm_name, section.weights == "imagenet"
    pin = section.weights_sha256 if needed else None
    entry = read_vault(vault).get(name)
    if entry and (state := entry.state(vault)) == "intact":
        _check_hash(name, entry.sha256, pin)
        say(f"{name} is there already")
        return False
    if entry:
        say(f"{vault.name}/{entry.file} is {state}: it is fetched again")
    from openmed.models import weights

    try:
        fetched = weights.fetch_imagenet(name, entry.revision if entry else None)
    except BadInput:
        if needed:
            raise
        say(f"{name} is passed over: timm has no ImageNet weights for it, and its training asks for none")
        return False
    expected = entry.sha256 if entry else weights.announced_sha256(fetched.path)
    if not (expected or pin):
        raise IntegrityError(
            f"the hub announces no sha256 for {fetched.source}: set `weights_sha256` to one that you trust"
        )
    for wanted in (expected, pin):
        _check_hash(name, fetched.sha256, wanted)
    weights.tensor_names(fetched.path)
    entry = entry or VaultEntry(
        kind="imagenet",
        timm_name=name,
        file=f"{name}.safetensors",
        source=fetched.source,
        revision=fetched.revision,
        licence=weights.fetch_licence(fetched.source, fetched.revision),
        sha256=fetched.sha256,
        bytes=fetched.path.stat().st_size,
        added_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    put_in_vault(vault, fetched.path, entry)
    say(f"{name} is in the vault: {entry.source} at {str(entry.revision)[:10]}, licence {entry.licence}")
    if entry.licence == UNKNOWN_LICENCE:
        say(f"ATTENTION: {entry.source} states no licence; find out whether you may use it")
    return True


def _bring_champion(vault: Path, folder: Path, params: Params, source: str, say: Say) -> list[str]:
    """Copies a model folder's weights unless they are there; returns the network if it did."""
    from openmed.inference.checkpoint import WEIGHTS_FILE, read_spec

    spec, sha256 = read_spec(folder)
    _refuse_others(params, spec.architecture, source)
    held = read_vault(vault)
    before = held.get(CHAMPION_WEIGHTS)
    if before and (before.source, before.sha256, before.state(vault)) == (source, sha256, "intact"):
        say(f"{source} is there already")
        return []
    entry = VaultEntry(
        kind=CHAMPION_WEIGHTS,
        timm_name=spec.timm_name,
        file=f"champion-{source.split()[-1]}.safetensors",
        source=source,
        revision=None,
        licence=_licence_of_champion(spec.weights, held),
        sha256=sha256,
        bytes=(folder / WEIGHTS_FILE).stat().st_size,
        added_at=datetime.now(UTC).isoformat(timespec="seconds"),
        spec=spec.to_json(),
    )
    put_in_vault(vault, folder / WEIGHTS_FILE, entry)
    say(f"{source}, a {spec.architecture}, is in the vault: `weights: champion` starts from it")
    return [spec.timm_name]


def _refuse_others(params: Params, architecture: str, source: str) -> None:
    """A state fits its own architecture alone, which is better said before a training starts."""
    asking = [name for name in params.architectures if params.train[name].weights == CHAMPION_WEIGHTS]
    if others := " and ".join(name for name in asking if name != architecture):
        raise BadInput(
            f"the champion, {source}, is a {architecture}: {others} cannot start from it, "
            f"so set `weights` of {others} to something else"
        )


def _licence_of_champion(start: dict[str, Any], held: dict[str, VaultEntry]) -> str:
    """What a champion itself started from decides; of that, only what the vault records is known."""
    if start.get("kind") == "none":
        return "own"
    known = [entry.licence for entry in held.values() if entry.sha256 == start.get("sha256")]
    return known[0] if known else UNKNOWN_LICENCE


def _check_hash(name: str, sha256: str, wanted: str | None) -> None:
    if wanted not in (None, sha256):
        raise IntegrityError(f"the weights of {name} have sha256 {sha256}, but {wanted} is asked for")


def _open(root: Path, params_file: Path, say: Say) -> list[str]:
    """Lays out the vault as committed; returns the files beside it that may be committed along.

    A file that somebody is working on is not committed along.
    """
    if not (root / ".dvc").is_dir():
        raise BadInput(f"{root} is no DVC project: `dvc init` makes it one")
    check_branch(root)
    files = [path.resolve() for path in (root / ".gitignore", params_file)]
    beside = [str(path) for path in files if path.is_relative_to(root.resolve())]
    clean = [path for path in beside if not git(root, "status", "--porcelain", "--", path)]
    if _pointed(root).keys() - read_vault(root / VAULT).keys():
        say(f"Getting what {WEIGHTS_POINTER} points to")
        obtain(root, WEIGHTS_POINTER)
    return clean


def _record(root: Path, params_file: Path, kind: str, clean: list[str], say: Say) -> dict[str, Any]:
    """Adds, pins, pushes and commits what the vault holds now."""
    _add(root, params_file)
    pinned = _pin(root, params_file, kind)
    if pinned:
        say(f"weights_sha256 of {', '.join(pinned)} is set in {params_file.name}")
    if pinned and str(params_file.resolve()) not in clean:
        say(f"Commit {params_file.name}: it has changes of yours, so that it is left to you")
    paths = [WEIGHTS_POINTER, *(path for path in clean if Path(path).exists())]
    done: dict[str, Any] = {"pinned": pinned, "revision": None, "pushed": False}
    if not git(root, "status", "--porcelain", "--", *paths):
        say("Nothing is new: the vault stays as it is")
        return done
    done["pushed"] = push(root, WEIGHTS_POINTER, "the weights", say)
    git(root, "add", "--", *paths)
    git(root, "commit", "--quiet", "--message", f"Keep {kind} weights in the vault", "--", *paths)
    return done | {"revision": git(root, "rev-parse", "HEAD")}


def _add(root: Path, params_file: Path) -> None:
    """Gives the vault to DVC, unless weights.dvc tells of exactly what it holds.

    The origins stand in weights.dvc too, for whoever reads the history without the files. They are written
    after DVC is done, so that a kill in between is made good by the next call.
    """
    held = read_vault(root / VAULT)
    if not held:
        raise BadInput(f"timm has ImageNet weights for no network in {params_file}: there is nothing to keep")
    about = {key: _about(held[key]) for key in sorted(held)}
    if _pointed(root) == about:
        return
    dvc(root, "add", str(VAULT))
    for entry in held.values():
        entry.path_in(root / VAULT)  # DVC may have put a damaged file of its cache in the place of a good one
    describe(root / WEIGHTS_POINTER, {"weights": about})


def _about(entry: VaultEntry) -> dict[str, Any]:
    """What weights.dvc tells of a file. Nothing is null in it: DVC would write that differently."""
    fields = ("source", "revision", "licence", "sha256", "bytes")
    return {field: value for field in fields if (value := getattr(entry, field)) is not None}


def _pointed(root: Path) -> dict[str, Any]:
    """What weights.dvc tells of the files it points to."""
    pointer = root / WEIGHTS_POINTER
    if not pointer.is_file():
        return {}
    described = read_pointer(pointer).get("meta", {}).get("weights", {})
    if not isinstance(described, dict):
        raise BadInput(f"{pointer} does not say which weights it stands for: get it back with git")
    return described


def _pin(root: Path, params_file: Path, kind: str) -> list[str]:
    """Writes the hashes of the files that trainings start from; returns the architectures that changed."""
    params, held = load_params(params_file), read_vault(root / VAULT)
    changed = {}
    for name in params.architectures:
        section = params.train[name]
        entry = held.get(CHAMPION_WEIGHTS if kind == CHAMPION_WEIGHTS else section.timm_name)
        if section.weights == kind and entry and section.weights_sha256 != entry.sha256:
            changed[name] = entry.sha256
    set_values(params_file, {f"train.{name}.weights_sha256": sha256 for name, sha256 in changed.items()})
    return list(changed)
