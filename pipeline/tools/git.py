"""The project's checkout: git and DVC as commands whose failure is one sentence."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from openmed.errors import BadInput, OpenMedError, ResourceError

DVC = (sys.executable, "-m", "dvc")
# As the system says it. SQLite, in which DVC keeps what it knows of files, and NumPy have words of their own.
_DISK_FULL = re.compile(
    "|".join(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))
    + r"|database or disk is full|Not enough free space to write|\d+ requested and \d+ written"
)
# What git sets for a hook and what leads to another repository; identity and settings stay.
_OF_A_HOOK = frozenset(
    f"GIT_{name}"
    for name in (
        *("ALTERNATE_OBJECT_DIRECTORIES", "COMMON_DIR", "DIR", "GRAFT_FILE", "IMPLICIT_WORK_TREE"),
        *("INDEX_FILE", "NAMESPACE", "OBJECT_DIRECTORY", "PREFIX", "QUARANTINE_PATH", "SHALLOW_FILE"),
        "WORK_TREE",
    )
)


def environment() -> dict[str, str]:
    """Returns the environment without what would have git talk of itself, or leads to another repository.

    GIT_TRACE and its like do the first, GIT_DIR and its like, which a hook has, the second. The `python` of
    dvc.yaml is the interpreter that runs this.
    """
    kept = (key for key in os.environ if key not in _OF_A_HOOK and not key.startswith("GIT_TRACE"))
    own = {key: os.environ[key] for key in kept}
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    return own | {"PATH": path, "DVC_NO_ANALYTICS": "1"}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder to its end, whatever that is, and keeps what it printed."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def git(root: Path, *arguments: str, error: type[OpenMedError] = BadInput) -> str:
    """Runs git in a checkout and returns what it printed.

    Raises:
        BadInput: git refuses; another error where it is named.
        ResourceError: git is not installed.
    """
    try:
        return _checked(root, error, "git", *arguments)
    except FileNotFoundError:
        raise ResourceError("git was not found on this machine; install it") from None


def dvc(root: Path, *arguments: str) -> str:
    """Runs DVC in a checkout and returns what it printed. With --quiet it would hide its errors too.

    Raises:
        ResourceError: DVC refuses.
    """
    return _checked(root, ResourceError, *DVC, *arguments)


def committed(root: Path, revision: str, path: str) -> str:
    """Returns the text of a file of a checkout as a commit holds it, whatever lies in the checkout by now.

    Raises:
        BadInput: There is no such commit, or the file is not in it.
    """
    # A replacement object (`git replace`) would stand in for what was committed.
    return git(root, "--no-replace-objects", "cat-file", "blob", f"{revision}:./{path}")


def holds(root: Path, revision: str, commit: str) -> bool:
    """Tells whether a commit is in the history of a revision; not so where the checkout lacks one of them."""
    search = ("git", "merge-base", "--is-ancestor", "--end-of-options", commit, revision)
    return run(root, *search).returncode == 0


def check_commit(root: Path) -> None:
    """Raises BadInput where nothing was ever committed in a checkout."""
    if not git(root, "rev-list", "--all", "--max-count=1"):
        raise BadInput(f"{root} has no commit yet: commit the project first")


def check_branch(root: Path) -> None:
    """Makes sure that a commit in a checkout would be kept.

    Raises:
        BadInput: The checkout stands on no branch, or nothing was ever committed in it.
    """
    check_commit(root)
    if git(root, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD":
        raise BadInput(
            f"{root} stands on no branch (detached HEAD), where commits get lost: `git switch -c NAME`"
        )


def git_folder(checkout: Path) -> Path:
    """Returns the folder in which git keeps what all worktrees of a repository share."""
    return (checkout / git(checkout, "rev-parse", "--git-common-dir")).resolve()


def own_worktree_setting(root: Path) -> None:
    """Makes the setting core.worktree, which a submodule has, one of its main checkout alone.

    Git keeps it from other worktrees by itself, the libraries that DVC uses do not. This is the way that
    `git help worktree` tells for it, under CONFIGURATION FILE.
    """
    config = git_folder(root) / "config"
    try:
        worktree = git(root, "config", "--file", str(config), "core.worktree")
    except BadInput:
        return
    git(root, "config", "extensions.worktreeConfig", "true")
    git(root, "config", "--file", f"{config}.worktree", "core.worktree", worktree)
    git(root, "config", "--file", str(config), "--unset", "core.worktree")


def push(root: Path, pointer: str, what: str, say: Callable[[str], None]) -> bool:
    """Pushes what a .dvc file points to, `what` for people, to the default remote; False where none is set.

    Raises:
        ResourceError: The remote does not answer.
    """
    from dvc.config import Config

    remote = Config(dvc_dir=str(root / ".dvc"))["core"].get("remote")
    if not remote:
        say(f"No DVC remote is set: {what} stay on this machine (`dvc remote add --default NAME URL`)")
        return False
    say(f"Pushing to the DVC remote {remote}")
    dvc(root, "push", pointer)
    return True


def obtain(path: Path, *targets: str) -> None:
    """Lays out what .dvc files, or outputs, of a checkout stand for, from the cache or else from the remote.

    Raises:
        ResourceError: It is in neither, the remote does not answer, or the disk is full.
    """
    done = run(path, *DVC, "checkout", *targets)
    if done.returncode and not disk_is_full(done.stderr):
        done = run(path, *DVC, "pull", *targets)
    if done.returncode:
        raise not_obtained(done.stderr, targets)


def not_obtained(output: str, targets: Sequence[str]) -> ResourceError:
    """Returns what to say where DVC could not lay something out, given what it printed."""
    some = " and ".join(targets[:3]) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
    if disk_is_full(output):
        return ResourceError(f"the disk of this host is full: make room for what {some} stand for")
    return ResourceError(
        f"what {some} stand for is neither in the DVC cache nor whole on a remote ({last_error(output)}); "
        "run 'dvc push' where it is, or check that the remote answers"
    )


def disk_is_full(output: str) -> bool:
    """Tells whether a program that failed printed that the disk, or the user's share of it, is full."""
    return _DISK_FULL.search(output) is not None


def last_error(output: str) -> str:
    """Returns the last error of DVC in what it printed."""
    lines = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].removeprefix("ERROR: ") if lines else "it says no more"


def _checked(root: Path, error: type[OpenMedError], *command: str) -> str:
    done = run(root, *command)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        # DVC says more than its errors: progress, hints and where to ask for help.
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines
        detail = " ".join(" ".join(errors).split())[:300] or f"it ended with {done.returncode}"
        raise error(f"`{' '.join(command[-3:])}` failed in {root}: {detail}")
    return done.stdout.strip()
