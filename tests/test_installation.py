"""The wheel in an empty environment: the library runs the notebook, the command names the extra it needs."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT
from tests.test_notebook import NOTEBOOK

UV = Path(sys.executable).with_name("uv")
APPLICATION = ("airflow", "dvc", "great_expectations", "mlflow", "pydantic_settings", "typer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("openmed_cxr-*.whl")
    return file


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    """The `bin` of an environment that holds the wheel and what it requires, and no extra."""
    if not UV.exists():
        pytest.skip("uv is not beside this Python; `make test` brings it")
    environment = tmp_path_factory.mktemp("library") / "env"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install = [UV, "pip", "install", "--quiet", "--offline", "--python", environment / "bin/python"]
    done = subprocess.run(
        [*install, "--constraints", ROOT / "requirements.lock", wheel], capture_output=True, text=True
    )
    if "network was disabled" in done.stderr.lower():
        pytest.skip("the packages of the lock are not in uv's cache on this machine")
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def run(library, folder, *command):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"MPLBACKEND": "agg"}
    command = [library / command[0], *command[1:]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_the_library_brings_nothing_of_the_application(library, tmp_path):
    code = f"""
import importlib.util, openmed
print(openmed.__file__)
print([name for name in {APPLICATION} if importlib.util.find_spec(name)])
"""
    done = run(library, tmp_path, "python", "-c", code)
    file, found = done.stdout.splitlines()
    assert Path(file).is_relative_to(library.parent)
    assert found == "[]"


@pytest.mark.slow
def test_the_notebook_and_every_module_need_the_library_alone(library, tmp_path):
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    modules = """
import importlib, openmed, pkgutil
names = [module.name for module in pkgutil.walk_packages(openmed.__path__, "openmed.")]
for name in names:
    importlib.import_module(name)
print(len(plt.get_fignums()), "figures,", len(names), "modules")
"""
    (tmp_path / "notebook.py").write_text("\n".join([*cells, modules]))
    done = run(library, tmp_path, "python", "notebook.py")
    assert done.returncode == 0, done.stderr
    assert "sensitivity" in done.stdout
    modules = len(list((ROOT / "openmed").rglob("*.py"))) - 1
    assert done.stdout.endswith(f"2 figures, {modules} modules\n")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("registry", "list")])
def test_the_command_names_the_extra_that_it_needs(library, tmp_path, arguments):
    done = run(library, tmp_path, "openmed", *arguments)
    assert done.returncode == 4 and not done.stdout
    assert done.stderr.count("\n") == 1 and "openmed-cxr[pipeline]" in done.stderr


def test_the_wheel_brings_types_templates_and_expectations(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"openmed/py.typed", "pipeline/py.typed", "pipeline/report/templates/report.html"} <= names
    assert {name.split("/")[0] for name in names if not name.startswith("openmed_cxr-")} == {
        "openmed",
        "pipeline",
    }


@pytest.mark.parametrize("folder", ["openmed", "pipeline", "dags"])
def test_what_is_imported_is_required(folder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [] if folder == "openmed" else project["optional-dependencies"]["pipeline"]
    required = {_normal(re.match(r"[\w-]+", each).group()) for each in [*project["dependencies"], *extra]}
    ours = {"openmed", "pipeline"}
    if folder == "dags":
        ours |= {file.stem for file in (ROOT / "dags").glob("*.py")}
    imported = set().union(*map(_imported, (ROOT / folder).rglob("*.py"))) - sys.stdlib_module_names - ours
    assert imported
    provided = packages_distributions()
    assert {name for name in imported if not required & set(map(_normal, provided[name]))} == set()


def _imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def _normal(distribution):
    return distribution.lower().replace("_", "-")
