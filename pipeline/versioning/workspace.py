"""One scheduled run, one workspace on each of its hosts: a git worktree that shares the host's DVC cache.

A run never touches a person's working copy nor another run. Making a workspace costs no copy of
the code history and, where the file system allows links, no copy of the data. Beside it lies its record,
`runs/<name>.json`: what it was made of, and whether it is whole.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from openmed.errors import BadInput, OpenMedError, ResourceError
from openmed.files import atomic_path, read_json, write_json
from pipeline.settings.project import checkpoint_folder
from pipeline.settings.yaml_file import set_values
from pipeline.tools.git import check_commit, git, git_folder, holds, obtain, own_worktree_setting
from pipeline.versioning.external_sets import pointers

DATA_FILE = "data.dvc"
WEIGHTS_POINTER = "weights.dvc"
# Sections of DVC's settings of which there may be several.
_NAMED = ("remote", "machine", "db")
_FULL_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def create(
    repo: Path,
    revision: str,
    run_id: str,
    home: Path,
    *,
    seed: int | None = None,
    newer: Sequence[str] = (),
    bare: bool = False,
) -> Path:
    """Makes the workspace of a run, or finds it again and makes whole what is missing of it.

    The commit that `revision` (a commit, tag or branch) means is written down the first time, so that a
    retried task works on the same commit although `HEAD` has moved on. A commit that this checkout lacks is
    fetched from its remotes. A workspace that is there already is kept with everything the run has made in
    it. It shares the DVC cache and the remotes of `repo`. The last of the newer commits, of data made
    on another host, that the revision does not hold takes its place. A bare workspace is
    without films and weights, and not whole.

    Returns:
        `path_of` the run, with the data, the weights vault and the external sets of that revision, and
        `run.seed` of params.yaml overridden by the seed, where there is one.

    Raises:
        BadInput: The revision does not exist, holds no DVC project, or the run began on another.
        ResourceError: The data is neither in the cache nor on the remote, a remote does not answer, or the
            disk is full.
    """
    repo, path = Path(repo).resolve(), path_of(run_id, home)
    with locked(path):
        commit = _pinned_commit(repo, revision, path, run_id, newer)
        _write_record(path, whole=False)
        with _in_turn(path.parents[1] / "worktrees.lock"):
            _check_out(repo, path, commit)
        for needed in (".dvc", "dvc.yaml", DATA_FILE):
            if not (path / needed).exists():
                raise BadInput(f"revision {revision} holds no {needed}; commit it or choose another revision")
        remote = _share_cache(repo, path)
        more = [WEIGHTS_POINTER] if (path / WEIGHTS_POINTER).exists() else []
        if not bare:
            obtain(path, DATA_FILE, *more, *(str(pointer.relative_to(path)) for pointer in pointers(path)))
        if _record(path).get("seed", seed) != seed:
            _git(path, "checkout", "--quiet", "--", "params.yaml")  # of an earlier run with this id
        if seed is not None:
            set_params(path, {"run.seed": seed})
        _write_record(path, whole=not bare, remote=remote, seed=seed)
    return path


def find(
    repo: Path,
    commit: str,
    run_id: str,
    home: Path,
    *,
    seed: int | None = None,
    any_seed: bool = False,
    bare: bool = False,
) -> Path:
    """Returns the workspace of a run on this host, which `create` makes where it is missing or not whole.

    The commit, in full, and the seed are those that the run began with, maybe on another host. A bare one
    will do where that is said.
    """
    repo, path = Path(repo).resolve(), path_of(run_id, home)
    record = _record(path)
    same = record.get("commit") == commit and (any_seed or record.get("seed", seed) == seed)
    if (record.get("whole") or (bare and "remote" in record)) and same and _is_at(repo, path, commit):
        os.utime(_record_of(path))  # its age is that of its last use; `touch` would make it anew
        return path
    return create(repo, commit, run_id, home, seed=seed, bare=bare)


def is_whole(path: Path) -> bool:
    """Tells whether the films and weights of a workspace are there, as `create` wrote it down."""
    return bool(_record(path).get("whole"))


def default_remote(path: Path) -> str | None:
    """Returns the DVC remote that the hosts of a run have in common, as `create` wrote it down."""
    return _record(path).get("remote")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one task of this host at a time change what a workspace holds; a killed one lets go."""
    with _in_turn(path.with_name(f"{path.name}.lock")):
        yield


def path_of(run_id: str, home: Path) -> Path:
    """Returns the folder a run works in, whether or not it exists."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id)
    if safe != run_id or len(safe) > 200 or re.search(r"^\.|\.(json|lock)$|-[0-9a-f]{16}$", safe):
        # No id, which whoever starts a run may choose, leads to what another has: folder, record or lock.
        safe = f"{safe.lstrip('.')[:200]}-{hashlib.sha256(run_id.encode()).hexdigest()[:16]}"
    if not run_id:
        raise BadInput("a run needs an id that is not empty")
    return Path(home).resolve() / "runs" / safe


def commit_of(workspace: Path) -> str:
    """Returns the full hash of the commit that a checkout stands on."""
    return _git(workspace, "rev-parse", "HEAD")


def remove(repo: Path, path: Path) -> None:
    """Removes a workspace and what its trainings keep to go on from; one that is gone is no error."""
    pattern = checkpoint_folder(Path(path).parents[1], Path(path), "*")
    for state in pattern.parent.glob(pattern.name):
        shutil.rmtree(state, ignore_errors=True)
    # rmtree follows no links, so links into the shared cache lose their name and nothing else.
    shutil.rmtree(path, ignore_errors=True)
    _git(Path(repo), "worktree", "prune")
    if Path(path).exists():
        raise ResourceError(f"workspace {path} could not be removed; check who owns its files")


def retire(repo: Path, path: Path) -> list[Path]:
    """Marks the run of a workspace as complete, removes those completed before it, and returns these.

    The newest complete workspace stays: the gates score a champion that has changed since on the films in it.
    """
    record = _record_of(path)
    if record.exists():
        _write_record(path, complete=True)
    others = (other for other in sorted(record.parent.glob("*.json")) if other != record)
    return _removed(repo, (other for other in others if read_json(other).get("complete")))


def tidy(repo: Path, home: Path, keep_days: float, is_complete: Callable[[str], bool]) -> list[Path]:
    """Removes the workspaces of this host that no run needs any more, and returns these.

    Those are the ones that no task has used for `keep_days` days and the complete ones but the one used last.
    Which run is complete, and not cleared since to go on, says `is_complete`, given its id.
    """
    removed = prune(repo, home, keep_days)
    complete = []
    for record in sorted(_records(home), key=lambda each: each.stat().st_mtime):
        known = read_json(record)
        if record.with_suffix("").exists() and is_complete(known.get("run_id", "")):
            if not known.get("complete"):
                _write_record(record.with_suffix(""), complete=True)
            complete.append(record)
    return removed + _removed(repo, complete[:-1])


def prune(repo: Path, home: Path, keep_days: float) -> list[Path]:
    """Removes the workspaces that no task has used for more than `keep_days` days, and returns these."""
    oldest = time.time() - keep_days * 86_400
    old = [record for record in _records(home) if record.stat().st_mtime < oldest]
    removed = _removed(repo, old)
    for record in old:
        record.unlink()
        record.with_suffix(".lock").unlink(missing_ok=True)
    return removed


def _records(home: Path) -> list[Path]:
    return sorted((Path(home).resolve() / "runs").glob("*.json"))


def _removed(repo: Path, records: Iterable[Path]) -> list[Path]:
    """Removes the workspaces that records stand for, as far as they are there, and returns them."""
    folders = [folder for record in records if (folder := record.with_suffix("")).exists()]
    for folder in folders:
        remove(repo, folder)
    return folders


def set_params(workspace: Path, values: Mapping[str, Any]) -> None:
    """Overrides values of a workspace's params.yaml, as `set_values` does."""
    path = Path(workspace) / "params.yaml"
    if not path.is_file():
        raise BadInput(f"{path} does not exist; the revision must hold params.yaml")
    set_values(path, values)


def link_types() -> list[str]:
    """Returns how DVC may put cached files into a workspace, the best way first.

    Hard links and symbolic links cost no disk, and their files are read-only. The superuser
    writes through that protection, and a write through a link changes the shared cache of every
    run. So as root the files are copied where the file system has no copy on write.
    """
    if os.geteuid() == 0:
        return ["reflink", "copy"]
    return ["reflink", "hardlink", "symlink", "copy"]


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _record(path: Path) -> dict[str, Any]:
    record = _record_of(path)
    return read_json(record) if record.exists() else {}


def _write_record(path: Path, **news: Any) -> None:
    write_json(_record_of(path), _record(path) | news)


def _in_turn(file: Path) -> FileLock:
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


def _pinned_commit(repo: Path, revision: str, path: Path, run_id: str, newer: Sequence[str]) -> str:
    pinned = _record(path)
    # What was never whole has nothing of the run, which may have begun at another HEAD on another host since.
    if pinned and (pinned.get("whole") or not _FULL_COMMIT.fullmatch(revision)):
        # Other tasks of the run name the commit itself.
        if revision not in (pinned["revision"], pinned["commit"]):
            began = f"run {path.name} began here at commit {pinned['commit']} ({pinned['revision']})"
            raise BadInput(f"{began}, not at {revision}; start a new run")
        return pinned["commit"]
    wanted = [revision, *(each for each in newer if not holds(repo, revision, each))][-1]
    commit = _commit(repo, wanted)
    if commit is None and _FULL_COMMIT.fullmatch(wanted):
        commit = _fetched(repo, wanted)
    if commit is None:
        raise BadInput(f"revision '{wanted}' is not in {repo}; fetch it or choose another")
    _write_record(path, run_id=run_id, revision=revision, commit=commit)
    return commit


def _commit(repo: Path, revision: str) -> str | None:
    """Returns the commit that a revision means in a checkout, None where it means none."""
    try:
        return _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except ResourceError as error:
        if not (repo / ".git").exists():
            raise BadInput(f"{repo} is not a git checkout; scheduled runs need one") from None
        if "not found on this machine" in str(error):
            raise
        check_commit(repo)
        return None


def _fetched(repo: Path, commit: str) -> str:
    """Fetches a commit, which a run began with on another host, from the remotes of a checkout."""
    remotes, said = _git(repo, "remote").split(), "it has no remote"
    for remote in remotes:
        # A server may give no commit by its name alone; then all that it has is asked for.
        for wanted in ((commit,), ()):
            try:
                _git(repo, "fetch", "--quiet", remote, *wanted)
            except ResourceError as error:
                said = str(error)
            if found := _commit(repo, commit):
                return found
    raise ResourceError(
        f"commit {commit} of this run is not in {repo} nor on its remotes ({said}): push it, or check them"
    )


def _check_out(repo: Path, path: Path, commit: str) -> None:
    own_worktree_setting(repo)
    _git(repo, "worktree", "prune")
    if _is_at(repo, path, commit):
        return
    shutil.rmtree(path, ignore_errors=True)
    _git(repo, "worktree", "prune")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Twice forced it takes the place of one whose making was cut off.
    _git(repo, "worktree", "add", "--force", "--force", "--quiet", "--detach", str(path), commit)


def _is_at(repo: Path, path: Path, commit: str) -> bool:
    # A worktree has a file named .git; without it git would answer for the main checkout.
    if not (path / ".git").is_file():
        return False
    try:
        # The worktree in a copied state folder still belongs to the original checkout.
        ours = commit_of(path) == commit and git_folder(path) == git_folder(repo)
        # Git locks a worktree while it makes it: after a power cut files may be missing.
        return ours and not Path(_git(path, "rev-parse", "--absolute-git-dir"), "locked").exists()
    except OpenMedError:
        return False


def cache_folder(repo: Path) -> Path:
    """Returns where DVC keeps what the workspaces of a checkout share."""
    from dvc.config import Config

    return Path(Config(dvc_dir=str(repo / ".dvc"))["cache"].get("dir") or repo / ".dvc" / "cache").resolve()


def _share_cache(repo: Path, path: Path) -> str | None:
    """Points the workspace at the cache and the remotes of the main checkout; returns the default remote."""
    from configobj import ConfigObj
    from dvc.config import Config, merge

    main = Config(dvc_dir=str(repo / ".dvc"))
    local = Config(dvc_dir=str(path / ".dvc")).load_one("local")
    # Credentials and remotes that stand in the checkout's local settings are not in git.
    merge(local, main.load_one("local"))
    for name, remote in main["remote"].items():
        # A relative path in .dvc/config would mean another folder from here. Without `verify` DVC takes what
        # a damaged remote gives for what was asked.
        local["remote"].setdefault(name, {}).update(url=remote["url"], verify=True)
    local["cache"]["dir"] = str(cache_folder(repo))
    local["cache"]["type"] = ",".join(link_types())
    sections = {name: values for name, values in local.items() if values and name not in _NAMED}
    for kind in _NAMED:
        sections |= {f'{kind} "{name}"': values for name, values in local[kind].items()}
    # DVC itself writes ASCII alone and fails on a path with an umlaut.
    content = ConfigObj(sections, encoding="utf-8")
    with atomic_path(path / ".dvc" / "config.local") as temporary, temporary.open("wb") as stream:
        temporary.chmod(0o600)
        content.write(stream)
    return (main["core"] | local["core"]).get("remote")


def _git(folder: Path, *arguments: str) -> str:
    return git(folder, *arguments, error=ResourceError)
