"""The Makefile notices that an environment belongs to another folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
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
        for file in ("Makefile", "pyproject.toml", "requirements.lock", "distributed-packages.txt"):
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


def test_what_only_several_hosts_need_is_left_out_unless_it_is_asked_for(checkout):
    folder = checkout("project")
    (folder / ".venv/.ready").unlink()
    (installs,) = (line for line in steps_of(folder, "up") if "-r requirements.lock" in line)
    assert "--excludes distributed-packages.txt" in installs
    (folder / ".venv/.ready").touch()
    (adds,) = (line for line in steps_of(folder, "distributed") if "requirements.lock" in line)
    assert "--excludes" not in adds and "--require-hashes" in adds


def steps_of(folder: Path, target: str) -> list[str]:
    command = ["make", "-n", target]
    done = subprocess.run(command, cwd=folder, env=OUTSIDE, capture_output=True, text=True, check=True)
    # A command may go on in the next line.
    return done.stdout.replace("\\\n", "").splitlines()


def test_the_list_of_what_is_left_out_is_what_the_extra_alone_brings():
    """Held against the reasons that the lock itself gives for each package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    default = {
        re.match(r"[\w.-]+", each)[0].lower()
        for each in (*project["dependencies"], *extras["pipeline"], *extras["dev"])
    }
    blocks = re.split(r"^(?=[a-z0-9])", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    reasons: dict[str, set[str]] = {}
    for block in blocks:
        about = block.partition("# via")[2]
        name = re.match(r"[\w.-]+", block)[0]
        reasons.setdefault(name, set()).update(re.findall(r"[a-z0-9][\w.-]*", about.replace("#", "")))
    # An extra of theirs asks for it, which the reasons do not tell: celery[redis].
    reasons["redis"] -= {"celery", "kombu"}
    kept, before = default & reasons.keys(), set()
    while kept != before:
        before = kept
        kept = kept | {name for name, via in reasons.items() if via & kept}
    listed = (ROOT / "distributed-packages.txt").read_text().splitlines()[1:]
    assert listed == sorted(listed) and set(listed) == reasons.keys() - kept


def test_what_only_several_hosts_need_has_no_licence_that_binds_what_it_is_built_into():
    listed = (ROOT / "distributed-packages.txt").read_text().splitlines()[1:]
    installed = {name: metadata.metadata(name) for name in listed if _is_installed(name)}
    if "redis" not in installed:
        pytest.skip("the extra `distributed` is not installed: `make distributed`")
    for name, about in installed.items():
        said = [about.get("License-Expression"), about.get("License"), *about.get_all("Classifier", [])]
        assert any(said), name
        assert not re.search(r"\b[AL]?GPL|General Public", " ".join(filter(None, said))), name


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
