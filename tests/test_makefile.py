"""The Makefile notices that an environment belongs to another folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRESH = "-m venv .venv"
# The tests themselves may be run by make.
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose environment was set up at a given folder, films included."""
    if shutil.which("make") is None:
        pytest.skip("make is not on this machine")

    def make(name: str, at: Path | None = None) -> Path:
        folder = tmp_path / name
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / "data").mkdir()
        for file in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / file, folder)
        (folder / ".venv/bin/python").symlink_to(sys.executable)
        script = f"#!/bin/sh\n'''exec' \"{at or folder}/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n"
        (folder / ".venv/bin/openmed").write_text(script)
        for file in ("data/films.csv", ".venv/.ready"):
            (folder / file).touch()
        return folder

    return make


def plan(folder: Path) -> str:
    command = ["make", "-n", "up"]
    done = subprocess.run(command, cwd=folder, env=OUTSIDE, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("name", ["project", "my films é"])
def test_an_environment_in_its_place_is_used_as_it_is(checkout, name):
    assert plan(checkout(name)).splitlines() == [".venv/bin/openmed up"]


def test_an_environment_that_was_moved_or_copied_is_made_anew(checkout):
    steps = plan(checkout("project", Path("/home/old/project"))).splitlines()
    assert "rm -rf .venv" in steps and any(FRESH in step for step in steps)
    assert steps[-1] == ".venv/bin/openmed up"


def test_a_linked_environment_is_left_to_its_owner(checkout, tmp_path):
    folder = checkout("project", Path("/home/old/project"))
    (folder / ".venv").rename(tmp_path / "shared")
    (folder / ".venv").symlink_to(tmp_path / "shared")
    assert "rm -rf .venv" not in plan(folder)


def test_why_the_sample_cannot_be_pulled_is_shown(checkout):
    folder = checkout("project")
    (folder / "data/films.csv").unlink()
    dvc = folder / ".venv/bin/dvc"
    dvc.write_text(
        "#!/bin/sh\ncase \" $* \" in *--quiet*) ;; *) echo 'ERROR: no such remote' >&2;; esac\nexit 255\n"
    )
    dvc.chmod(0o755)
    command = ["make", "data/films.csv"]
    done = subprocess.run(command, cwd=folder, env=OUTSIDE, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "ERROR: no such remote" in done.stdout
