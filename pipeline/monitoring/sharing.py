"""What the hosts of a project share of scores, labels, answers and watches, by its default DVC remote.

Each host alone writes below its place `live/WRITER` there, so that two at once lose nothing, and keeps copies
of what the others wrote in `shared/WRITER` of its state folder, laid out as a state folder is. Whoever reads,
reads all of these `roots`. Without a default remote there is one.
"""

import logging
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import (
    link_or_copy,
    read_json,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)
from openmed.oversight.answer_log import answer_journal
from pipeline.settings.project import locked, project_root

if TYPE_CHECKING:
    from pipeline.versioning.objects import Store

WATCH_PAGE = "watch/watch.html"
_LIVE, _COPIES = "live", "shared"
# Answers go their own way: the file of the day grows.
_SHARED = ("scores/**/*.parquet", "scores/**/looks.json", "watch/watch.*")
# A host that publishes anew deletes what the bundle before held, maybe while it is fetched.
_TRIES = 3

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def roots(home: Path) -> list[Path]:
    """Returns the state folder and, laid out as it is, the copies of what other hosts wrote."""
    copies = (Path(home) / _COPIES).glob("[0-9a-f]*")
    return [Path(home), *sorted(folder for folder in copies if folder.is_dir())]


def writer(root: Path) -> str:
    """Returns the name that a root's host writes under; empty where it wrote nothing for others yet."""
    if root.parent.name == _COPIES and root.with_name(f"{root.name}.json").exists():
        return root.name
    file = root / "writer"
    return file.read_text(encoding="ascii").strip() if file.exists() else ""


def log_name(root: Path) -> str:
    """Returns what the record of decisions tells the log of a root by; nobody is to read a path from it."""
    if root.parent.name == _COPIES and (index := root.with_name(f"{root.name}.json")).exists():
        return read_json(index)["log"]
    return sha256_bytes(f"{platform.node()}:{Path(root).resolve()}".encode())[:16]


def sharing(
    *, needed: bool = True
) -> Callable[[Callable[Concatenate[Path, _Given], _Result]], Callable[Concatenate[Path, _Given], _Result]]:
    """Has a function of a state folder begin with what other hosts wrote, and end with them having its own.

    Where that is not `needed`, an outage is a warning, and what was written is sent by the next command.
    Where it is, ResourceError ends the function, maybe after it has written.
    """

    def decorate(
        function: Callable[Concatenate[Path, _Given], _Result],
    ) -> Callable[Concatenate[Path, _Given], _Result]:
        @wraps(function)
        def call(home: Path, *args: _Given.args, **options: _Given.kwargs) -> _Result:
            with _outage_told(needed, "what other hosts wrote since is not seen"):
                pull(home)
            result = function(home, *args, **options)
            with _outage_told(needed, "what was written is sent to other hosts by the next command"):
                push(home)
            return result

        return call

    return decorate


@contextmanager
def _outage_told(needed: bool, consequence: str) -> Iterator[None]:
    try:
        yield
    except ResourceError as error:
        if needed:
            raise
        logging.getLogger(__name__).warning("%s: %s", consequence, error)


def pull(home: Path) -> None:
    """Copies what other hosts wrote since the last time.

    Raises:
        IntegrityError: It was not written with this site's secret, or changed since.
        ResourceError: The storage does not answer.
    """
    if shared := _store():
        with locked("shared"):
            _copy_all(shared, Path(home))


def push(home: Path) -> None:
    """Publishes what this host wrote; ResourceError where the storage does not answer."""
    if shared := _store():
        with locked("shared"):
            _publish(shared, Path(home))


def _copy_all(shared: "Store", home: Path) -> None:
    writers = {name.split("/")[1] for name in shared.names(_LIVE)} - {_own_writer(home)}
    for name in sorted(writers):
        _copy(shared, home, name)
    _show_newest_page(home)


def _publish(shared: "Store", home: Path) -> None:
    from pipeline.versioning.objects import Bundle

    with TemporaryDirectory(dir=_made(home / _COPIES), prefix=".sent-") as folder:
        place, snapshot = f"{_LIVE}/{_own_writer(home)}", Path(folder)
        bundle = Bundle(_digests(home, _snapshot(home, snapshot), snapshot), {"log": log_name(home)})
        newest = Bundle.newest(shared, place, home)
        if bundle != newest and (bundle.files or newest):
            bundle.publish(shared, place, home, snapshot)


def _store() -> "Store | None":
    from pipeline.versioning.objects import store

    try:
        project = project_root()
    except BadInput:  # a state folder without a checkout has nothing in common with others
        return None
    return store(project)


def _own_writer(home: Path) -> str:
    # By chance: a host of an earlier one's name with an empty folder must not write over what that one wrote.
    if not writer(home):
        write_text(home / "writer", f"{secrets.token_hex(8)}\n")
    return writer(home)


def _snapshot(home: Path, folder: Path) -> list[str]:
    """Links what is shared into a folder, as it is now, and returns the names."""
    files = [file for pattern in _SHARED for file in home.glob(pattern) if not file.name.startswith(".")]
    for file in files:
        target = folder / file.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, target)
    if (home / "answers").is_dir():
        answer_journal(home).copy_to(folder / "answers")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digests(home: Path, names: list[str], folder: Path) -> dict[str, str]:
    """Returns name -> SHA-256; of files that did not change since the last time without reading them."""
    index = home / _COPIES / "sent.json"
    before = read_json(index) if index.exists() else {}
    known: dict[str, tuple[list[int], str]] = {}
    for name in names:
        state = (folder / name).stat()
        mark, (old, digest) = [state.st_size, state.st_mtime_ns], before.get(name, ([], ""))
        known[name] = mark, digest if mark == old else sha256_file(folder / name)
    write_json(index, known)
    return {name: digest for name, (_, digest) in known.items()}


def _copy(shared: "Store", home: Path, name: str) -> None:
    """Brings the copy of what one other host wrote up to date."""
    from pipeline.versioning.objects import Bundle

    place, copy = f"{_LIVE}/{name}", _made(home / _COPIES) / name
    index = copy.with_name(f"{name}.json")
    for _ in range(_TRIES):
        newest = Bundle.newest(shared, place, home)
        if newest is None:
            return
        if unsafe := [file for file in newest.files if not _is_inside(file)]:
            raise IntegrityError(f"{place} on {shared.remote} holds {unsafe[0]!r}, which no host writes")
        before = read_json(index)["files"] if index.exists() else {}
        wanted = [
            file
            for file, digest in newest.files.items()
            if before.get(file) != digest or not (copy / file).exists()
        ]
        with TemporaryDirectory(dir=home / _COPIES, prefix=".fetched-") as folder:
            if not newest.fetch(shared, place, Path(folder), wanted):
                continue
            # Heads last: a journal may go on after its head, and not end before it.
            for file in sorted(wanted, key=lambda file: file == "answers/head"):
                _made((copy / file).parent)
                (Path(folder) / file).replace(copy / file)
        for file in before.keys() - newest.files.keys():
            (copy / file).unlink(missing_ok=True)
        write_json(index, {"log": newest.about["log"], "files": newest.files})
        return
    raise ResourceError(f"{place} on {shared.remote} is being written all the time: try again")


def _show_newest_page(home: Path) -> None:
    """Puts the page of the latest watch, whichever host made it, where this host shows it."""
    made = [(_watched_at(root), number, root) for number, root in enumerate(roots(home))]
    latest, number, root = max(made, key=lambda each: (each[0], -each[1]))
    if latest and number:
        for name in (WATCH_PAGE, str(PurePosixPath(WATCH_PAGE).with_suffix(".json"))):
            write_bytes(home / name, (root / name).read_bytes())


def _watched_at(root: Path) -> str:
    with suppress(BadInput):
        return read_json((root / WATCH_PAGE).with_suffix(".json")).get("at", "")
    return ""


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts[:1] != (_COPIES,)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
