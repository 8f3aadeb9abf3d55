"""The git branch that holds the record of decisions: one commit an entry, written without a checkout.

Hides where the branch is, and how two who write at once are told apart: a commit goes on top of the one its
writer has read, or nowhere. On one machine git itself sees to that, between machines the remote does, which
takes no push that is not on top of what it has.
"""

import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from openmed.errors import BadInput, IntegrityError, ResourceError
from pipeline.settings.project import home, project_root, state_folder
from pipeline.settings.variables import variables
from pipeline.tools.git import environment, git, git_folder
from pipeline.tools.processes import descendants, kill

BRANCH = "openmed-record"
_REF = f"refs/heads/{BRANCH}"
# The last entry that the remote was seen to have, so that one which lacks it later is noticed.
_SEEN = "refs/openmed/record-at-remote"
# Of the same entries every host makes the same commits.
_NOBODY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "OpenMed"), ("EMAIL", "openmed@localhost"))
}
# What git says is read here, in English.
_UNATTENDED = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
# Settings of whoever runs this change nothing; and a power cut leaves no branch that points to an empty file.
_SETTINGS = (
    *("-c", "i18n.commitEncoding=UTF-8", "-c", "i18n.logOutputEncoding=UTF-8"),
    *("-c", "core.fsync=all", "-c", "core.filesRefLockTimeout=10000"),
)
_ASK_REMOTE = ("ls-remote", "fetch", "push")
# A decision asks the remote some times, so whoever waits for one that hangs outlasts it.
_REMOTE_ANSWERS_WITHIN_S, _REMOTE_LOCKED_S, _DECIDED_WITHIN_S = 60.0, 10.0, 300.0


class RecordMoved(ResourceError):
    """Somebody else added an entry since the record was read: read it again and decide again."""


def texts() -> tuple[str | None, list[str]]:
    """Reads the branch, from the remote first where one is set.

    Returns:
        The commit of the last entry, None where there is no branch, and the text of each, the first first.

    Raises:
        IntegrityError: The branch is not a chain of entries, or was rewritten on one side.
        ResourceError: The remote does not answer.
    """
    folder = _folder()
    if not folder.exists():
        return None, []
    _fetch(folder)
    log = ("log", "--reverse", "--no-show-signature", "--no-color", "-z", "--format=%H %P%n%B", _REF, "--")
    if (tip := _tip(folder)) is None:
        _refuse_unfetched(folder)
        return None, []
    found, previous = [], ""
    for commit in _git(folder, *log).rstrip("\0").split("\0"):
        header, _, message = commit.partition("\n")
        own, _, parent = header.partition(" ")
        if parent != previous:
            raise IntegrityError(f"the branch {BRANCH} is no chain of entries: restore it from its backup")
        if not previous and (folder / "shallow").exists() and own in (folder / "shallow").read_text():
            raise ResourceError(f"{name()} is cut off, as this clone is shallow: `git fetch --unshallow`")
        previous = own
        found.append(message.partition("\n\n")[2].rstrip("\n"))
    return tip, found


def add(text: str, subject: str, at: str, parent: str | None) -> str:
    """Puts an entry on top of the commit `parent`, here and on the remote; returns its commit.

    Args:
        text: The entry; one line.
        subject: What a person reads in `git log`; one line.
        at: When, ISO 8601.
        parent: The commit of the entry before it, None for the first.

    Raises:
        RecordMoved: Another entry is on top of `parent` already. Nothing was written.
        ResourceError: The remote does not answer, or the repository cannot be written.
    """
    folder = _made()
    when = {f"GIT_{role}_DATE": at for role in ("AUTHOR", "COMMITTER")}
    tree = _git(folder, "hash-object", "-t", "tree", "-w", os.devnull)
    signed = ["-S"] if _setting(folder, "commit.gpgsign") == "true" else []
    above = ["-p", parent] if parent else []
    message = f"{subject}\n\n{text}\n"
    commit = _git(folder, "commit-tree", *signed, *above, "-F", "-", tree, text=message, **when)
    _push(folder, commit)
    try:
        _move(folder, subject, commit, parent)
    except ResourceError:
        if _tip(folder) in (parent, None):
            raise
        # What came over the remote at the same time may have brought this entry too.
        if not (variables().record_remote and _contains(folder, commit)):
            raise RecordMoved("the record was added to by somebody else: try again") from None
    return commit


@contextmanager
def exclusive() -> Iterator[None]:
    """Lets one process of this machine decide at a time; a killed holder lets go.

    Raises:
        ResourceError: Another one is at it for minutes, or the file cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = _made()
    try:
        lock = FileLock(folder / f"{BRANCH}.lock").acquire(timeout=_DECIDED_WITHIN_S)
    except Timeout as error:
        raise ResourceError(
            f"another process of this machine has held {error.lock_file} for {_DECIDED_WITHIN_S:g} s: end it "
            "(`fuser` names it) and try again"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"the record of decisions in {folder} cannot be written: {error.strerror or error}"
        ) from None
    with lock:
        yield


def name() -> str:
    """Returns how a sentence names the record: its branch and repository."""
    return f"the branch {BRANCH} of {_folder()}"


def _folder() -> Path:
    """The git folder of the record.

    That of the project; but a state folder outside of it with a store of its own has its own record, which
    moves with it and serves whoever names that store.
    """
    return _git_folder(home(), os.environ.get("MLFLOW_TRACKING_URI", ""), Path.cwd(), variables().project)


@lru_cache(maxsize=16)
def _git_folder(state: Path, tracking: str, _here: Path, _project: Path | None) -> Path:
    own = state / "record.git"
    file = (
        Path(unquote(tracking.partition(":///")[2].partition("?")[0]))
        if tracking.startswith("sqlite")
        else None
    )
    if file and (file.parent / own.name).exists():
        return file.parent / own.name
    try:
        root = project_root()
    except BadInput:
        return own
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return own
    # A git that refuses the project, as one of another owner, must not begin a second record.
    project = git_folder(root)
    if tracking and not (state / "mlflow.db").exists():
        return project
    try:
        there = next(folder for folder in (state, *state.parents) if folder.exists())
        return project if git_folder(there) == project else own
    except BadInput:
        return own


def _made() -> Path:
    folder = _folder()
    if not folder.exists():
        state_folder()
        git(folder.parent, "init", "--quiet", "--bare", str(folder), error=ResourceError)
    return folder


def _tip(folder: Path) -> str | None:
    if (tip := _commit(folder, _REF)) is None and (folder / _REF).exists():
        raise IntegrityError(f"{name()} is damaged: restore it from its remote or backup")
    return tip


def _commit(folder: Path, reference: str) -> str | None:
    done = _run(folder, "rev-parse", "--verify", "--quiet", reference)
    if done.returncode not in (0, 1):
        raise _refused(folder, done)
    return done.stdout.strip() or None


def _refuse_unfetched(folder: Path) -> None:
    """A clone knows the branches of its remote, but has not made them its own."""
    pattern = f"refs/remotes/*/{BRANCH}"
    if known := _git(folder, "for-each-ref", "--count=1", "--format=%(refname:lstrip=2)", pattern):
        raise ResourceError(
            f"the record of decisions is at {known} and not in this clone: `git branch {BRANCH} {known}`, "
            "and set OPENMED_RECORD_REMOTE"
        )


def _contains(folder: Path, commit: str, tip: str = _REF) -> bool:
    return commit in _git(folder, "rev-list", tip).split()


def _move(folder: Path, why: str, commit: str, tip: str | None) -> None:
    # An empty text: the branch must not be there yet.
    _git(folder, "update-ref", "--create-reflog", "-m", why, _REF, commit, tip or "")


def _setting(folder: Path, key: str) -> str:
    try:
        return _git(folder, "config", "--type=bool", key)
    except ResourceError:
        return ""


def _fetch(folder: Path) -> None:
    """Moves the branch to that of the remote, where that one goes on from it."""
    if not (remote := variables().record_remote):
        return
    seen, theirs, ours = _commit(folder, _SEEN), _remote_tip(folder, remote), _tip(folder)
    # Entries that were written before the remote was set are pushed with the next one.
    if theirs and not (ours and _contains(folder, theirs, ours)):
        # Not into the branch: git refuses that where somebody has checked it out.
        _git(folder, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--refmap=", remote, _REF)
        if ours and not _contains(folder, ours, theirs):
            raise IntegrityError(
                f"{name()} and that of the remote say different things: one of them was rewritten; restore it"
            )
        try:
            _move(folder, "fetched", theirs, ours)
        except ResourceError:
            if _tip(folder) == ours:
                raise
            # Another process of this machine has brought entries at the same time.
            return _fetch(folder)
    if ours and seen and seen != theirs and not (theirs and _contains(folder, seen, theirs)):
        raise IntegrityError(
            f"the remote has lost entries of {name()}: its branch was deleted or set back; restore it there, "
            f"or, also at a new remote, push the entries that are here: `git --git-dir={folder} push "
            f"$OPENMED_RECORD_REMOTE {BRANCH}`"
        )
    if theirs and theirs != seen:
        _git(folder, "update-ref", _SEEN, theirs)


def _remote_tip(folder: Path, remote: str) -> str:
    return _git(folder, "ls-remote", remote, _REF).partition("\t")[0]


def _push(folder: Path, commit: str) -> None:
    if not (remote := variables().record_remote):
        return
    until = time.monotonic() + _REMOTE_LOCKED_S
    # A hook of the project is about its code: that of DVC pushes films.
    while (done := _run(folder, "push", "--quiet", "--no-verify", remote, f"{commit}:{_REF}")).returncode:
        if (theirs := _remote_tip(folder, remote)) == commit:
            break  # it has taken it, and its answer got lost
        if theirs and not _contains(folder, theirs, commit):
            raise RecordMoved("the record was added to by another host: try again")
        if not (lock := re.search(r"cannot lock .*?'([^']+\.lock)'", done.stderr)):
            raise _refused(folder, done)
        # Whoever pushes at the same time has the branch locked, before it moves.
        if time.monotonic() > until:
            raise ResourceError(
                f"the record is locked at the remote for {_REMOTE_LOCKED_S:g} s: a git that was killed has "
                f"left {lock[1]} there, to be removed"
            )
        time.sleep(random.uniform(0, 0.2))
    _git(folder, "update-ref", _SEEN, commit)


def _git(folder: Path, *arguments: str, text: str | None = None, **variables: str) -> str:
    done = _run(folder, *arguments, text=text, **variables)
    if done.returncode:
        raise _refused(folder, done)
    return done.stdout.rstrip("\n")


def _run(
    folder: Path, *arguments: str, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = ["git", f"--git-dir={folder}", *_SETTINGS, *arguments]
    within_s = _REMOTE_ANSWERS_WITHIN_S if arguments[0] in _ASK_REMOTE else None
    try:
        process = subprocess.Popen(
            command,
            env=environment() | _NOBODY | _UNATTENDED | variables,
            stdin=None if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except FileNotFoundError:
        raise ResourceError("git was not found on this machine; install it") from None
    with process:
        try:
            output, said = process.communicate(text, within_s)
        except BaseException as error:
            # What git has started, such as ssh, would wait on.
            kill(descendants([process.pid]))
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ResourceError(
                    "the remote of the record of decisions (OPENMED_RECORD_REMOTE) has not answered within "
                    f"{within_s:g} s: try again when it does"
                ) from None
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, said)


def _refused(folder: Path, done: subprocess.CompletedProcess[str]) -> ResourceError:
    if (lock := re.search(r"'([^']+\.lock)': File exists", done.stderr)) and "remote: " not in done.stderr:
        return ResourceError(
            f"{name()} is locked: if no git is at work there, one that was killed has left {lock[1]}, to be "
            "removed"
        )
    detail = " ".join(done.stderr.split())[:300] or f"it ended with {done.returncode}"
    return ResourceError(f"the record of decisions in {folder} cannot be used: {detail}")
