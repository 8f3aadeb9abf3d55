"""What was recomputed, held against what was recorded: the first difference is refused, and named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from pipeline.settings.yaml_file import read_yaml
from pipeline.tracking.store import MODEL_NAME


def same(found: Mapping[str, Any], recorded: Mapping[str, Any], what: str) -> None:
    """Refuses the first key whose two values differ; %s in `what` stands for the key."""
    for key in sorted(found.keys() | recorded.keys()):
        if found.get(key) != recorded.get(key):
            raise IntegrityError(
                f"{what.replace('%s', key)} is not what was recorded: restore the registry from its backup"
            )


def close(found: Any, stored_: Any, what: str) -> None:
    """Compares JSON content, numbers to 1e-9: another processor may round the last digit otherwise."""
    if isinstance(found, Mapping) and isinstance(stored_, Mapping) and found.keys() == stored_.keys():
        for key in found:
            close(found[key], stored_[key], what)
    elif isinstance(found, list) and isinstance(stored_, list) and len(found) == len(stored_):
        for one, other in zip(found, stored_, strict=True):
            close(one, other, what)
    elif isinstance(found, float) and isinstance(stored_, int | float):
        if abs(found - stored_) > 1e-9:
            raise IntegrityError(f"{what} says {stored_}, but its predictions give {found}")
    elif found != stored_:
        raise IntegrityError(f"{what} says {stored_}, but its predictions give {found}")


def names_version(path: Path, version: str) -> bool:
    """Tells whether MLflow's own file beside a loaded model names this version and says nothing else."""
    try:
        said = read_yaml(path)
    except BadInput:
        return False
    # Asked for an alias, MLflow writes the version as a number.
    return said in ({"model_name": MODEL_NAME, "model_version": each} for each in (version, int(version)))
