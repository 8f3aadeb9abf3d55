"""The external sets of a checkout: each pinned by a .dvc file.

Hides where a set lies, what pins it, and how a set that was changed or is not here is told from a good one.
"""

from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from pipeline.tools.dvc_lock import dvc_md5, read_pointer

EXTERNAL = Path("external")


def pointer_of(folder: Path) -> Path:
    """Returns the .dvc file of a set."""
    return folder.with_name(f"{folder.name}.dvc")


def pointers(root: Path) -> list[Path]:
    """Returns the .dvc files of all sets below a checkout, by name."""
    return sorted((root / EXTERNAL).glob("*.dvc"))


def external_sets(root: Path) -> dict[str, Path]:
    """Returns name -> folder of every set of a checkout, after a check against what pins it.

    Raises:
        BadInput: A set is not here, or nothing pins it.
        IntegrityError: A set is not the one that was added.
    """
    sets = {pointer.stem: pointer.with_suffix("") for pointer in pointers(root)}
    for folder in (root / EXTERNAL).glob("[!.]*"):
        if folder.is_dir() and folder.name not in sets:
            raise BadInput(f"{folder} has no {pointer_of(folder).name}: use `openmed external add`")
    for folder in sets.values():
        if not folder.is_dir():
            raise BadInput(f"{folder} is not here: get it with `dvc pull {pointer_of(folder)}`")
        pinned = read_pointer(pointer_of(folder))["outs"][0]["md5"]
        if dvc_md5(folder) != pinned:
            raise IntegrityError(
                f"{folder} is not the set that was added: get it back with "
                f"`dvc checkout --force {pointer_of(folder)}`"
            )
    return sets


def described_sets(root: Path) -> list[dict[str, Any]]:
    """Returns name, md5 and, as far as they were written down, the counts of every set."""
    sets = []
    for pointer in pointers(root):
        content = read_pointer(pointer)
        sets.append({"name": pointer.stem, "md5": content["outs"][0]["md5"], **content.get("meta", {})})
    return sets
