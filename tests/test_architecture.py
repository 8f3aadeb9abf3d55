"""What holds for the repository as a whole: complete graph, no pickle, whole sample."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import cv2
import grimp
import numpy as np
import pytest
import yaml

from openmed.films.images import decode_film, read_film
from openmed.phantoms.phantom import draw, sample_plan
from pipeline.settings import yaml_file
from pipeline.settings.params import load_params
from pipeline.tools import dvc_graph as graph
from tests.conftest import ROOT
from tests.stage_deps import BARE_PACKAGES, LAUNCHER, code_of

STAGES = graph.load_graph(ROOT / "dvc.yaml")
CODE = [path for name in ("openmed", "pipeline", "dags") for path in sorted((ROOT / name).rglob("*.py"))]
# They test many modules at once, or what the tests themselves stand on.
ACROSS = {
    "openmed/test_mutant_process.py",
    "pipeline/test_earlier_state.py",
    "pipeline/test_evening.py",
    "pipeline/test_faults.py",
    "pipeline/test_privacy.py",
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_that_it_runs_and_on_no_other(name):
    needed = code_of(name)
    assert {"openmed/errors.py", "pipeline/settings/artifacts.py"} <= set(needed)
    declared = [dep for dep in STAGES[name].deps if dep.startswith(("openmed", "pipeline"))]
    assert sorted(declared) == needed, "make deps"


_WATCHED = """
import os, sys
root, stage = os.path.join(sys.argv[1], ""), sys.argv[2]
read = set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        read.add(os.path.abspath(arguments[0]))
sys.addaudithook(watch)
sys.path.insert(0, root)
sys.argv = ["pipeline", stage]
from pipeline.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
read |= {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
print(*(name.removeprefix(root) for name in read if name.startswith((root + "openmed/", root + "pipeline/"))))
"""


@pytest.mark.parametrize("name", ["validate", "resample", "triage"])
def test_what_a_stage_loads_and_reads_of_the_code_is_what_it_depends_on(workspace, name):
    command = [sys.executable, "-c", _WATCHED, ROOT, name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = {name for name in done.stdout.splitlines()[-1].split() if not name.endswith(".pyc")}
    used = {path for path in used if (ROOT / path).is_file() and (ROOT / path).stat().st_size}
    assert f"pipeline/stages/{name}.py" in used
    deps = code_of(name)
    undeclared = {path for path in used if not any(f"{path}/".startswith(f"{dep}/") for dep in deps)}
    assert undeclared <= BARE_PACKAGES | LAUNCHER


def test_the_code_that_stages_depend_on_exists():
    deps = {dep for stage in STAGES.values() for dep in stage.deps if dep.startswith(("openmed", "pipeline"))}
    assert deps
    assert not [dep for dep in deps if not (ROOT / dep).exists()]


def test_the_packages_that_no_stage_depends_on_hold_next_to_no_code():
    for name in BARE_PACKAGES:
        for node in ast.parse((ROOT / name).read_text()).body:
            text = ast.unparse(node)
            bare = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert bare or text == "import os" or text.startswith(("os.environ.setdefault(", "__version__"))


def test_nothing_is_pickled():
    refused = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
    calls = {"torch.save", "torch.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"}
    found = []
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names} & refused
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]} & refused
                names |= {f"{node.module}.{alias.name}" for alias in node.names} & calls
            elif isinstance(node, ast.Attribute):
                names = {ast.unparse(node)} & calls | {node.attr} & {"read_pickle", "to_pickle"}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                names = {"np.load"} if "allow_pickle=True" in ast.unparse(node) else set()
            else:
                names = set()
            found += [f"{file.relative_to(ROOT)}: {name}" for name in names]
    assert not found


def test_yaml_is_read_in_one_place_by_the_safe_loader():
    readers = [file.name for file in CODE if re.search(r"yaml\.\w*([Ll]oad|parse)", file.read_text())]
    # The served model stands alone, with a file of MLflow's beside it.
    assert readers == ["serving.py", "yaml_file.py"]
    assert issubclass(yaml_file._Loader, (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def test_every_yaml_file_loads():
    ignored = {".venv", ".git", ".openmed", "artifacts", "data", "sample"}
    files = [
        path
        for path in ROOT.rglob("*")
        if path.suffix in (".yaml", ".yml", ".dvc")
        and path.is_file()
        and not ignored & set(path.relative_to(ROOT).parts)
    ]
    assert {"dvc.yaml", "params.yaml", "data.dvc", "expectations.yaml"} <= {path.name for path in files}
    for path in files:
        # A file may hold several documents, and tags that Compose knows.
        documents = list(yaml.compose_all(path.read_text(), yaml.SafeLoader))
        assert documents and all(isinstance(each, yaml.CollectionNode) for each in documents), path


@cache
def sample_files():
    return {path.parent.name + path.name: path for path in (ROOT / "sample/files/md5").glob("*/*")}


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def listing():
    """Path in the data folder -> md5, as data.dvc points to it."""
    (out,) = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]
    if out.get("remote") != "sample":
        pytest.skip("data.dvc points to films of your own")
    files = json.loads(sample_files()[out["md5"]].read_bytes())
    assert len(files) == out["nfiles"]
    assert sum(sample_files()[entry["md5"]].stat().st_size for entry in files) == out["size"]
    return {entry["relpath"]: entry["md5"] for entry in files}


def test_every_file_of_the_sample_is_what_its_name_says():
    assert sample_files()
    for name, path in sample_files().items():
        assert md5(path.read_bytes()) == name.removesuffix(".dir")


def test_the_sample_holds_exactly_what_data_dvc_points_to(listing):
    assert {name for name in sample_files() if not name.endswith(".dir")} == set(listing.values())
    assert sum(name.endswith(".dir") for name in sample_files()) == 1
    assert set(listing) == {"films.csv", *(film.path for film in sample_plan())}


def test_the_sample_is_what_would_be_drawn_today(listing):
    for film in sample_plan()[::28]:
        drawn = draw(film.patient_seed, film.film_seed, pneumonia=film.pneumonia, size_px=192).film
        drawn = cv2.add(drawn, np.full_like(drawn, film.grey_shift))
        jpeg = cv2.imencode(".jpeg", drawn, (cv2.IMWRITE_JPEG_QUALITY, film.jpeg_quality))[1].tobytes()
        kept = read_film(sample_files()[listing[film.path]]).astype(int)
        assert np.abs(kept - decode_film(jpeg)).mean() < 3, film.path


@pytest.mark.parametrize("name", ["requirements.lock", "docker/requirements.lock", "docker/bootstrap.lock"])
def test_a_lock_file_has_hashes_and_names_no_index(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|^-[if] ", text, re.MULTILINE)
    pins = [line for line in text.replace("\\\n", " ").splitlines() if re.match(r"[A-Za-z0-9]", line)]
    assert pins
    assert not [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin]


def test_the_commands_of_the_readme_are_targets():
    done = subprocess.run(
        ["make", "-n", "demo", "test", "lint", "up"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for part in ("openmed demo", "pytest", "ruff check", "lint-imports", "bin/mypy", "openmed up"):
        assert part in done.stdout


def test_continuous_integration_runs_what_the_readme_says():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert {"make lint", "make test"} <= set(script.read_text().splitlines())


def test_the_application_sets_how_threads_wait_before_torch_is_loaded():
    code = (
        "import os, sys, pipeline\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive'\n"
        "assert 'torch' not in sys.modules\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_graph_and_the_settings_name_the_same_architectures():
    trained = {name.partition("@")[2] for name in STAGES if name.startswith("train@")}
    assert trained == set(load_params(ROOT / "params.yaml").architectures)


def test_the_application_has_few_rooms_and_no_folder_is_crowded():
    rooms = {path.relative_to(ROOT).parts[1] for path in CODE if path.is_relative_to(ROOT / "pipeline")}
    assert len(rooms - {"__init__.py"}) <= 16
    files = [path for name in ("openmed", "pipeline", "dags") for path in (ROOT / name).rglob("*.*")]
    sizes = Counter(_name(path.parent) for path in files if path.is_file() and path.name != "__init__.py")
    crowded = {name for name, size in sizes.items() if size > 10 and not name.endswith("__pycache__")}
    assert not crowded


def test_no_file_is_longer_than_350_lines_and_no_function_than_50():
    too_long = {_name(path) for path in CODE if len(path.read_text().splitlines()) > 350}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and node.end_lineno - node.lineno >= 50:
                too_long.add(f"{_name(path)}: {node.name}")
    assert not too_long


def test_no_import_goes_in_a_circle():
    graph = grimp.build_graph("openmed", "pipeline", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 500
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_tests_mirror_the_tree():
    tested = ("openmed", "pipeline", "dags", "docker", "benchmarks")
    tests = [path for name in tested for path in (ROOT / "tests" / name).rglob("test_*.py")]
    stray = {path.relative_to(ROOT / "tests").as_posix() for path in tests if not _mirrored(path)}
    assert stray == ACROSS


def _mirrored(test: Path) -> bool:
    """Whether a test is named after a module or its folder; more may follow: test_loop_speed."""
    folder = ROOT / test.relative_to(ROOT / "tests").parent
    names = {path.stem.strip("_") for path in folder.glob("*.py")} | {folder.name}
    return any(re.fullmatch(rf"test_{name}(_\w+)?", test.stem) for name in names if name != "init")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
