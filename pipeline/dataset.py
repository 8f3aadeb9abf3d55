"""The data folder as a whole: replaced in one move, and kept out of the sample's remote."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from openmed.errors import BadInput
from openmed.files import write_text


@contextmanager
def new_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """Gives a folder to fill that becomes `target` when the block ends well.

    Raises:
        BadInput: `target` holds something and may not be replaced.
    """
    target = target.absolute()
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not replace:
        raise BadInput(f"{target} is not empty: choose another folder, or say --replace where it is offered")
    mark = secrets.token_hex(4)
    filling, old = (target.with_name(f".{target.name}.{mark}.{what}") for what in ("new", "old"))
    try:
        yield filling
        if target.exists():
            target.rename(old)
        filling.rename(target)
    finally:
        # Between the two renames `old` holds the only copy.
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (filling, old):
            shutil.rmtree(folder, ignore_errors=True)


def own_remote(root: Path) -> None:
    """Takes the sample's remote off data.dvc, so that a push never puts your films beside the sample."""
    pointer = root / "data.dvc"
    if not pointer.is_file():
        return
    content = yaml.safe_load(pointer.read_text(encoding="utf-8"))
    if any(out.pop("remote", None) for out in content["outs"]):
        write_text(pointer, yaml.safe_dump(content, sort_keys=False))
