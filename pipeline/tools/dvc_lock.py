"""What DVC wrote down of finished stages (`dvc.lock`) and of data (`*.dvc`), read without DVC."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from openmed.errors import BadInput, IntegrityError
from openmed.files import write_text
from pipeline.settings.yaml_file import parse_yaml, read_yaml

_CHUNK_BYTES = 1 << 20


def read_pointer(path: Path) -> dict[str, Any]:
    """Reads a .dvc file, such as data.dvc, as `parse_pointer`; BadInput too when it is not there."""
    return _pointer(read_yaml(path), str(path))


def parse_pointer(text: str, source: str) -> dict[str, Any]:
    """Reads the text of a .dvc file.

    Returns:
        Its content. `outs` holds one output or more, the first with an `md5`; `meta` is a mapping.

    Raises:
        BadInput: It is not what DVC writes.
    """
    return _pointer(parse_yaml(text, source), source)


def _pointer(content: Any, source: str) -> dict[str, Any]:
    content = content if isinstance(content, dict) else {}
    outs = content.get("outs")
    whole = isinstance(outs, list) and all(isinstance(out, dict) for out in outs)
    first = outs[0].get("md5") if outs and whole else None
    if not (isinstance(first, str) and isinstance(content.get("meta", {}), dict)):
        raise BadInput(f"{source} is not what DVC writes: get it back with git, or add the data again")
    return content


def describe(pointer: Path, meta: Mapping[str, Any]) -> None:
    """Writes into a .dvc file what a reader of the history wants to know of its data."""
    content = read_pointer(pointer)
    if content.get("meta") != meta:
        write_text(pointer, yaml.safe_dump(content | {"meta": dict(meta)}, sort_keys=False))


def outputs(lock: Mapping[str, Any], stage: str) -> dict[str, str]:
    """Returns the outputs of a stage: path -> md5 as DVC has it, that of a folder ending in `.dir`.

    Raises:
        BadInput: The lock file knows no such stage.
    """
    try:
        return {out["path"]: out["md5"] for out in lock["stages"][stage]["outs"]}
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"dvc.lock knows no outputs of {stage}: run the pipeline to its end") from None


def check_outputs(workspace: Path, lock: Mapping[str, Any], stage: str) -> None:
    """Holds what lies in a workspace against what the stage wrote.

    Raises:
        BadInput: The lock file knows no such stage.
        IntegrityError: An output is missing or was changed since.
    """
    for path, md5 in outputs(lock, stage).items():
        if not (workspace / path).exists() or dvc_md5(workspace / path) != md5:
            raise IntegrityError(f"{path} is not what {stage} wrote: run the pipeline again")


def dvc_md5(path: Path) -> str:
    """Returns the md5 of a file or folder as DVC computes it."""
    if not path.is_dir():
        return _md5(path)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    return folder_md5({name: _md5(file) for name, file in files})


def folder_md5(files: Mapping[str, str]) -> str:
    """Returns DVC's md5 of a folder from the md5 of each file, by its path below the folder."""
    listed = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return (
        hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
