"""What DVC wrote down of finished stages (`dvc.lock`) and of data (`*.dvc`), read without DVC."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import yaml

from openmed.errors import BadInput, IntegrityError
from openmed.files import write_text
from pipeline.settings.yaml_file import read_yaml

_MD5 = partial(hashlib.md5, usedforsecurity=False)


def read_pointer(path: Path) -> dict[str, Any]:
    """Reads a .dvc file, such as data.dvc, as `check_pointer`; BadInput too when it is not there."""
    return check_pointer(read_yaml(path), str(path))


def check_pointer(content: Any, source: str) -> dict[str, Any]:
    """Returns the content of a .dvc file, which `source` names.

    Its `outs` hold one output or more, the first with an `md5`; its `meta` is a mapping.

    Raises:
        BadInput: It is not what DVC writes.
    """
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


def check_agreement(entries: Mapping[str, Any]) -> None:
    """Holds what stages read against what others wrote; stage -> its entry in dvc.lock.

    Raises:
        IntegrityError: A stage read another file or folder than the stage that makes it wrote.
    """
    written = {
        path: (stage, md5) for stage in entries for path, md5 in outputs({"stages": entries}, stage).items()
    }
    for stage, entry in entries.items():
        for dep in entry.get("deps") or []:
            maker, md5 = written.get(dep["path"], (stage, dep.get("md5")))
            if md5 != dep.get("md5"):
                raise IntegrityError(
                    f"{stage} read another {dep['path']} than {maker} wrote: run it and what follows again"
                )


def dvc_md5(path: Path) -> str:
    """Returns the md5 of a file or folder as DVC computes it."""
    if not path.is_dir():
        with path.open("rb") as stream:
            return read_md5(stream)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listed = [{"md5": dvc_md5(file), "relpath": name} for name, file in files]
    return _MD5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def read_md5(stream: BufferedIOBase) -> str:
    """Returns the md5 of what is left in a stream."""
    return hashlib.file_digest(stream, _MD5).hexdigest()
