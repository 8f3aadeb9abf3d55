"""What the tasks of a run hand each other through the DVC remote, whatever host each runs on.

A task hands on its entry of dvc.lock, which names its outputs by their hashes. Hides how entries come into
the workspace of another host while DVC itself writes there, and which outputs are whole on this host: those
are neither fetched again nor looked at. Without a default remote there is one host and its cache.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import IntegrityError, OpenMedError, ResourceError
from openmed.files import read_json, write_json, write_text
from pipeline.settings.yaml_file import read_mapping
from pipeline.tools.dvc_lock import check_agreement, outputs, read_md5, read_pointer
from pipeline.tools.git import DVC, disk_is_full, last_error, not_obtained, run
from pipeline.versioning.workspace import DATA_FILE, default_remote, locked

if TYPE_CHECKING:
    from dvc.repo import Repo

Entries = Mapping[str, Mapping[str, Any]]
"""Stage -> what DVC wrote down of it in dvc.lock."""
Dvc = Callable[..., tuple[int, str]]
"""Runs DVC in a workspace with some arguments; returns its exit code and what it printed."""

_WHOLE = Path(".dvc", "tmp", "openmed-whole.json")
_UNSENT = Path(".dvc", "tmp", "openmed-unsent")


def run_dvc(workspace: Path, *arguments: str) -> tuple[int, str]:
    """Runs DVC to its end, waiting for its lock."""
    done = run(workspace, *DVC, "--wait-for-lock", *arguments)
    return done.returncode, done.stdout + done.stderr


def receive(workspace: Path, entries: Entries, wanted: Callable[[str], bool], *, dvc: Dvc = run_dvc) -> None:
    """Takes over what other tasks handed on, and lays out those of their outputs whose paths are wanted.

    Raises:
        IntegrityError: Some of these stages read another output than that of the others here, or the remote
            holds a damaged one.
        ResourceError: An output is neither in the cache nor on the remote, the remote does not answer, or
            the disk is full.
    """
    check_agreement(entries)
    with locked(workspace):
        _merge(workspace, entries)
        whole = _whole(workspace)
        lacking = {
            path: md5
            for stage in entries
            for path, md5 in outputs({"stages": entries}, stage).items()
            if wanted(path) and not (whole.get(path) == md5 and (workspace / path).exists())
        }
        if not lacking:
            return
        where = "pull" if default_remote(workspace) else "checkout"
        code, output = dvc(workspace, where, "--force", *lacking)
        if code and _is_damaged(workspace, lacking.values()):
            raise IntegrityError(
                f"the DVC remote holds a damaged copy of {' or '.join(lacking)}: delete it there, and run "
                "the stage that wrote it again"
            )
        if code:
            raise not_obtained(output, list(lacking))
        write_json(workspace / _WHOLE, whole | lacking)


def begin(workspace: Path, outs: Iterable[str]) -> None:
    """Notes that a stage is about to write its outputs: from now on they may be there in part."""
    with locked(workspace):
        whole = _whole(workspace)
        write_json(workspace / _WHOLE, {path: whole[path] for path in whole.keys() - set(outs)})


def is_unsent(workspace: Path, stage: str) -> bool:
    """Tells whether a stage has run to its end here and what it wrote could not be pushed."""
    return (workspace / _UNSENT / stage).exists()


def hand_on(workspace: Path, stage: str, read: Entries, *, dvc: Dvc = run_dvc) -> Mapping[str, Any]:
    """Pushes what a stage wrote to the default remote, where there is one, and returns its entry.

    Args:
        workspace: Where it ran.
        stage: Its name.
        read: The entries of the stages whose outputs it read.
        dvc: Runs DVC.

    Raises:
        IntegrityError: It read something else than those stages wrote.
        ResourceError: The remote does not answer.
    """
    entry = _lock(workspace)["stages"][stage]
    check_agreement({**read, stage: entry})
    remote, unsent = default_remote(workspace), workspace / _UNSENT / stage
    if remote:
        unsent.parent.mkdir(exist_ok=True)
        unsent.touch()
    with locked(workspace):
        write_json(workspace / _WHOLE, _whole(workspace) | outputs({"stages": {stage: entry}}, stage))
    if remote:
        code, output = dvc(workspace, "push", stage)
        if code:
            full = "its disk or that of this host is full" if disk_is_full(output) else last_error(output)
            raise ResourceError(f"what {stage} wrote could not be pushed to the DVC remote {remote}: {full}")
        unsent.unlink()
    return entry


def name_data(workspace: Path, names: Iterable[str], folder: Path) -> None:
    """Gives some files of the data, whose workspace may be bare, their names in another folder.

    Only these are fetched, into the cache; the names are links into it. A file that the data version does not
    hold is passed over. DVC's own commands are of no use for a part of a folder: where they fail they delete
    what is there of it, and they take what one call has fetched for all there is.

    Raises:
        ResourceError: A file is neither in the cache nor whole on the remote, or the remote does not answer.
    """
    from dvc.repo import Repo

    listing = read_pointer(workspace / DATA_FILE)["outs"][0]["md5"]
    with Repo(str(workspace)) as repo:
        _cache(repo, [listing])
        cached = repo.cache.local.oid_to_path
        listed = {each["relpath"]: each["md5"] for each in json.loads(Path(cached(listing)).read_bytes())}
        wanted = {name: listed[name] for name in names if name in listed}
        _cache(repo, wanted.values())
        for name, md5 in wanted.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(cached(md5))


def _cache(repo: "Repo", hashes: Iterable[str]) -> None:
    """Fetches objects that the cache lacks or holds damaged."""
    from dvc_data.hashfile.hash_info import HashInfo

    lacking = [md5 for md5 in hashes if not _is_cached(repo, md5)]
    if not lacking:
        return
    said = ""
    try:
        repo.cloud.pull([HashInfo("md5", md5) for md5 in lacking])
    except Exception as error:  # the driver of each kind of storage has errors of its own
        said = f" ({' '.join(str(error).split())[:200]})"
    if not all(_is_cached(repo, md5) for md5 in lacking):
        raise ResourceError(
            f"{len(lacking)} file(s) of the data are neither in the DVC cache nor whole on a remote{said}; "
            "run 'dvc push' where they are, or check that the remote answers"
        )


def _is_cached(repo: "Repo", md5: str) -> bool:
    from dvc_objects.errors import ObjectFormatError

    try:
        repo.cache.local.check(md5)  # which deletes a damaged one
    except (FileNotFoundError, ObjectFormatError):
        return False
    return True


def show(project: Path, workspace: Path, page: Path, say: Callable[[str], None]) -> None:
    """Puts a page of a run on the default remote, where there is one, and tells where people find it.

    It lies with the states of the run's trainings, `openmed/states/RUN`, and goes when they go: when the run
    is registered, or is old. An outage ends nothing; `say` gets one sentence in any case.
    """
    from pipeline.versioning.objects import store

    if default_remote(workspace) is None or not page.is_file():
        return
    name = f"states/{workspace.name}/{page.name}"
    try:
        if shared := store(project):
            shared.put(name, page)
            say(f"the page is openmed/{name} on {shared.remote}")
    except OpenMedError as error:
        say(f"the page stays on this host: {error}")


def _is_damaged(workspace: Path, hashes: Iterable[str]) -> bool:
    """Tells whether what the remote has is not what its name says; not so where it does not answer."""
    from dvc.repo import Repo

    with Repo(str(workspace)) as repo:
        here = repo.cache.local
        wanted = {md5 for md5 in hashes if not here.exists(md5)}
        for folder in (md5 for md5 in hashes if md5.endswith(".dir") and here.exists(md5)):
            listed = json.loads(Path(here.oid_to_path(folder)).read_bytes())
            wanted |= {each["md5"] for each in listed if not here.exists(each["md5"])}
        with suppress(Exception):  # the driver of each kind of storage has errors of its own
            there = repo.cloud.get_remote_odb()
            for md5 in sorted(wanted):
                if there.exists(md5):
                    with there.fs.open(there.oid_to_path(md5), "rb") as stream:
                        if read_md5(stream) != md5.removesuffix(".dir"):
                            return True
    return False


def _whole(workspace: Path) -> dict[str, str]:
    """Output -> its hash, of those that were written or fetched to their end on this host."""
    file = workspace / _WHOLE
    return read_json(file) if file.exists() else {}


def _lock(workspace: Path) -> dict[str, Any]:
    file = workspace / "dvc.lock"
    lock = read_mapping(file) if file.exists() else {}
    return {"schema": "2.0", "stages": {}} | lock


def _merge(workspace: Path, entries: Entries) -> None:
    """Writes entries into dvc.lock where it has others, under the lock under which DVC writes it."""
    if not _news(workspace, entries):
        return
    from dvc.lock import Lock
    from dvc.utils.serialize import dumps_yaml

    file = workspace / ".dvc" / "tmp" / "lock"
    file.parent.mkdir(exist_ok=True)
    with Lock(str(file), wait=True):
        lock = _lock(workspace)
        lock["stages"] |= _news(workspace, entries)
        # Another writer leaves hashes such as 08 or 1e5 without the quotes that DVC's reader needs.
        write_text(workspace / "dvc.lock", dumps_yaml(lock))


def _news(workspace: Path, entries: Entries) -> dict[str, Any]:
    known = _lock(workspace)["stages"]
    return {name: dict(entry) for name, entry in entries.items() if _text(known.get(name)) != _text(entry)}


def _text(entry: Any) -> str:
    """Returns an entry as an XCom has it, to compare."""
    return json.dumps(entry, sort_keys=True, default=str)
