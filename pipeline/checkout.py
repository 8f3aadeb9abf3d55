"""The project's checkout: git and DVC as commands whose failure is one sentence."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from openmed.errors import BadInput, ResourceError


def git(root: Path, *arguments: str) -> str:
    """Runs git in a checkout and returns what it printed.

    Raises:
        BadInput: git refuses.
    """
    return _run(root, BadInput, "git", *arguments)


def dvc(root: Path, *arguments: str) -> str:
    """Runs DVC in a checkout and returns what it printed.

    Raises:
        ResourceError: DVC refuses.
    """
    return _run(root, ResourceError, sys.executable, "-m", "dvc", *arguments)


def push(root: Path, pointer: str, what: str, say: Callable[[str], None]) -> bool:
    """Pushes what a pointer names to the default remote; False where none is set.

    Args:
        root: The checkout.
        pointer: A .dvc file.
        what: What is pushed, for people.
        say: Told what happens.

    Raises:
        ResourceError: The remote does not answer.
    """
    from dvc.config import Config

    remote = Config(dvc_dir=str(root / ".dvc"))["core"].get("remote")
    if not remote:
        say(f"No DVC remote is set: {what} stay on this machine (`dvc remote add --default NAME URL`)")
        return False
    say(f"Pushing to the DVC remote {remote}")
    dvc(root, "push", "--quiet", pointer)
    return True


def _run(root: Path, error: type[BadInput | ResourceError], *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        detail = " ".join((done.stderr.strip() or done.stdout.strip()).split())[:300]
        raise error(f"`{' '.join(command[-3:])}` failed in {root}: {detail}")
    return done.stdout.strip()
