"""The data folder as a whole: replaced in one move, and kept out of the sample's remote."""

import csv
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from openmed.archives import place_of
from openmed.dataset.manifest import FILMS_FILE
from openmed.errors import BadInput
from openmed.files import write_text
from pipeline.tools.dvc_lock import read_pointer


@contextmanager
def new_folder(target: Path, *, replace: bool, kept: Iterable[Path] = ()) -> Iterator[Path]:
    """Gives a folder to fill that becomes `target` when the block ends well.

    Only a data folder is ever replaced: one whose films.csv names every other file in it.

    With `replace` it may hold films already; what is in `kept` (inputs, project, state) must outlive that.

    Raises:
        BadInput: `target` holds something and may not be replaced, or is a link.
    """
    if target.is_symlink():
        raise BadInput(f"{target} is a link: name the folder that it leads to")
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not replace:
            raise BadInput(
                f"{target} is not empty: choose another folder, or say --replace where it is offered"
            )
        _check_replaceable(target, kept)
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


def _check_replaceable(target: Path, kept: Iterable[Path]) -> None:
    for path in map(Path, (*kept, Path.cwd(), Path.home())):
        if path.resolve().is_relative_to(target):
            raise BadInput(f"{path} lies in {target}, which would be replaced: choose another folder")
    listed = _listed(target)
    if listed is None:
        raise BadInput(
            f"{target} is no data folder with a {FILMS_FILE}, so nothing replaces it: move it away"
        )
    files = {Path(folder, name) for folder, _, names in os.walk(target) for name in names}
    # Their names are not told: they may be patients'.
    if others := len({path.relative_to(target).as_posix() for path in files} - listed):
        raise BadInput(
            f"{target} holds {others} file(s) that its {FILMS_FILE} does not name, so nothing replaces it: "
            "move them away"
        )


def _listed(folder: Path) -> set[str] | None:
    """The files that a data folder says it has; None where it is no data folder."""
    try:
        with (folder / FILMS_FILE).open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                return None
            return {FILMS_FILE, *(place_of(row["path"]).file for row in rows)}
    except (OSError, ValueError, csv.Error):
        return None


def own_remote(root: Path) -> None:
    """Takes the sample's remote off data.dvc, so that a push never puts your films beside the sample."""
    pointer = root / "data.dvc"
    if not pointer.is_file():
        return
    content = read_pointer(pointer)
    if any(out.pop("remote", None) for out in content["outs"]):
        write_text(pointer, yaml.safe_dump(content, sort_keys=False))
