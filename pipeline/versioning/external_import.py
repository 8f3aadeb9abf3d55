"""Adding an external set: films from elsewhere are imported once and put under DVC."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openmed.errors import BadInput
from openmed.intake.external_set import SET_NAME, import_set, read_set
from pipeline.settings.params import Params
from pipeline.tools.dvc_lock import describe
from pipeline.tools.git import dvc, push
from pipeline.versioning.data_versions import count_unusable
from pipeline.versioning.external_sets import EXTERNAL, pointer_of
from pipeline.versioning.site import pseudonyms


def add_set(
    root: Path,
    home: Path,
    name: str,
    source: Path,
    params: Params,
    say: Callable[[str], None],
    *,
    aliases: dict[str, str],
    second_label: str | None,
    patients_from: str = "auto",
) -> dict[str, Any]:
    """Puts films from elsewhere under DVC as an external set; for the options see `import_set`.

    Returns:
        name; what `import_set` found (films, patients, classes, views, second_labels, skipped, unmatched,
        recognised, withheld); unusable (films that will not be scored); pushed.

    Raises:
        BadInput: The name is taken or is no name, or the source cannot be used.
        ResourceError: DVC refuses, or the remote does not answer.
    """
    if not re.fullmatch(SET_NAME, name):
        raise BadInput(f"{name!r} cannot name a set: up to 32 lower-case letters, digits and dashes can")
    folder = root / EXTERNAL / name
    pointer = pointer_of(folder)
    if pointer.exists() or folder.exists():
        raise BadInput(f"the external set {name} exists: a set never changes, so choose another name")
    summary = import_set(
        source,
        folder,
        class_names=params.task.classes,
        pseudonyms=pseudonyms(home),
        aliases=aliases,
        second_label=second_label,
        patients_from=patients_from,
    )
    for sentence in summary.recognised.sentences():
        say(sentence)
    about = summary.to_json() | {"unusable": _unusable(folder, home, params)}
    dvc(root, "add", folder.relative_to(root).as_posix())
    described = ("films", "patients", "classes", "views", "second_labels")
    describe(pointer, {key: about[key] for key in described})
    pushed = push(root, pointer.relative_to(root).as_posix(), "the films", say)
    return {"name": name, **about, "pushed": pushed}


def _unusable(folder: Path, home: Path, params: Params) -> int:
    """Measures the films and counts the unusable ones; a set without a usable film is taken away again."""
    films = read_set(folder, params.task.classes)
    bad = count_unusable(folder, films, home, params)
    if bad == len(films):
        shutil.rmtree(folder)
        raise BadInput(f"none of the {bad} films of the set is usable: nothing was added")
    return bad
