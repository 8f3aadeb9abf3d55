"""What the documentation names exists, its pages build without a broken link, and they fetch nothing."""

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

NEIGHBOURS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docker/README.md")
PAGES = [*(ROOT / name for name in NEIGHBOURS), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("openmed", "pipeline", "dags", "tests", "docs", "docker", "benchmarks", "notebooks", "sample")


def _named(page: Path) -> set[str]:
    """The paths and dotted names between backticks that begin with a folder of the project."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text())
    words = {word for code in re.findall(r"`([^`]+)`", text) for word in code.split()}
    return {word for word in words if re.match(rf"({'|'.join(FOLDERS)})[/.]\w", word)}


def _exists(name: str) -> bool:
    if "/" in name:
        return bool(list(ROOT.glob(name.rstrip("/"))))
    try:
        pkgutil.resolve_name(name.removesuffix("()"))
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page):
    assert {name for name in _named(page) if not _exists(name)} == set()


def test_a_name_that_does_not_exist_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`openmed/films/images.py` `openmed.films.images.read_film` `openmed/data.py` `openmed.films.gone`"
    )
    assert {name for name in _named(page) if not _exists(name)} == {"openmed/data.py", "openmed.films.gone"}


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_fetch_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "films.html", "contributing.html", "api/openmed.films.html"} <= pages.keys()
    assert "openmed.fitted.operating_point.choose_threshold" in pages["api/openmed.fitted.html"]
    for name, page in pages.items():
        fetched = re.findall(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"?(https?:)?//", page)
        assert not fetched, name


def test_before_a_commit_runs_what_continuous_integration_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [(hook["entry"], hook["language"]) for hook in repo["hooks"]] == [("make lint", "system")]
    command = [sys.executable, "-m", "pre_commit", "validate-config", ROOT / ".pre-commit-config.yaml"]
    subprocess.run(command, check=True, capture_output=True)
