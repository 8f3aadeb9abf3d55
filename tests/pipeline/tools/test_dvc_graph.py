"""Our reading of dvc.yaml against DVC's own."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from openmed.errors import BadInput
from pipeline.tools.dvc_graph import load_graph

PROJECT = Path(__file__).parents[3]

CHAIN = """
stages:
  first:
    cmd: python first.py
    deps: [data/]
    outs:
      - artifacts/first
  second:
    cmd:
      - python second.py
      - echo done
    deps:
      - artifacts/first/table.csv
    metrics:
      - artifacts/second/metrics.json:
          cache: false
    plots:
      - artifacts/second/curve.csv:
          x: a
  third:
    cmd: python third.py
    deps: [artifacts/second, artifacts/firstborn]
"""

MATRIX = """
vars:
  - more.yaml:sizes
  - suffix: out
stages:
  make:
    cmd: make
    outs:
      - work/data
  train:
    matrix:
      architecture: ${architectures}
      size: ${sizes}
    cmd: python train.py --a ${item.architecture} --s ${item.size} --k ${key} --lr ${train.lr}
    deps:
      - work/data/${item.size}.npy
    params:
      - train.lr
    outs:
      - models/${key}.${suffix}
  report:
    cmd: cat
    deps:
      - models/vit-64.${suffix}
      - models/resnet50-32.${suffix}
  nested:
    matrix:
      flag: [true, false]
      option:
        - {name: a}
        - {name: b}
    cmd: run ${item.flag} ${item.option.name}
    outs:
      - nested/${item.flag}/${item.option.name}
"""

FOREACH = r"""
stages:
  listed:
    foreach: ${architectures}
    do:
      cmd: python listed.py ${item} \${HOME}
      outs:
        - listed/${item}
  mapped:
    foreach: ${table}
    do:
      cmd: python mapped.py ${key} ${item.lr} ${item[lr]}
      deps:
        - listed
      outs:
        - mapped/${key}
  records:
    foreach:
      - {name: one, n: 1}
      - {name: two, n: 2}
    do:
      cmd: echo ${item.name} ${item.n}
      deps:
        - mapped/${item.name}
"""

PARAMS = """
architectures: [resnet50, vit]
train: {lr: 0.1}
table:
  one: {lr: 0.1}
  two: {lr: 0.2}
"""


def write_project(folder: Path, dvc_yaml: str) -> Path:
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "more.yaml").write_text("sizes: [32, 64]\nunused: 1\n")
    (folder / "dvc.yaml").write_text(textwrap.dedent(dvc_yaml))
    return folder / "dvc.yaml"


def graph_of_dvc(folder: Path) -> dict[str, tuple[str, set[str], set[str], set[str]]]:
    """name -> (cmd, deps, outs, upstream) as DVC itself sees them."""
    from dvc.repo import Repo

    here = Path.cwd()
    # DVC writes names and paths relative to the current folder.
    os.chdir(folder)
    try:
        with Repo(str(folder)) as repo:
            graph = repo.index.graph
            stages = [stage for stage in repo.index.stages if stage.cmd]
            return {
                stage.addressing: (
                    " && ".join(stage.cmd) if isinstance(stage.cmd, list) else stage.cmd,
                    {Path(dep.fs_path).relative_to(folder).as_posix() for dep in stage.deps if is_file(dep)},
                    {Path(out.fs_path).relative_to(folder).as_posix() for out in stage.outs},
                    {other.addressing for other in graph.successors(stage) if other.cmd},
                )
                for stage in stages
            }
    finally:
        os.chdir(here)


def is_file(dep) -> bool:
    return type(dep).__name__ != "ParamsDependency"


def ours(path: Path) -> dict[str, tuple[str, set[str], set[str], set[str]]]:
    return {
        name: (stage.cmd, set(stage.deps), set(stage.outs), set(stage.upstream))
        for name, stage in load_graph(path).items()
    }


@pytest.mark.parametrize("dvc_yaml", [CHAIN, MATRIX, FOREACH], ids=["chain", "matrix", "foreach"])
def test_graph_equals_the_graph_of_dvc(tmp_path, dvc_yaml):
    from dvc.repo import Repo

    path = write_project(tmp_path, dvc_yaml)
    Repo.init(str(tmp_path), no_scm=True).close()
    assert ours(path) == graph_of_dvc(tmp_path)


def test_graph_of_this_project_equals_the_graph_of_dvc(tmp_path):
    from dvc.repo import Repo

    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    assert ours(tmp_path / "dvc.yaml") == graph_of_dvc(tmp_path)


def test_names_and_edges_of_a_matrix(tmp_path):
    graph = load_graph(write_project(tmp_path, MATRIX))
    assert list(graph)[:6] == [
        "make",
        "train@resnet50-32",
        "train@resnet50-64",
        "train@vit-32",
        "train@vit-64",
        "report",
    ]
    assert graph["train@vit-64"].upstream == ("make",)
    assert graph["report"].upstream == ("train@resnet50-32", "train@vit-64")
    assert "nested@true-option1" in graph


def test_metrics_are_outputs_and_are_listed(tmp_path):
    stage = load_graph(write_project(tmp_path, CHAIN))["second"]
    assert stage.metrics == ("artifacts/second/metrics.json",)
    assert stage.outs == ("artifacts/second/metrics.json", "artifacts/second/curve.csv")


def test_a_name_that_only_starts_alike_is_no_edge(tmp_path):
    assert load_graph(write_project(tmp_path, CHAIN))["third"].upstream == ("second",)


def test_inline_vars_are_merged_into_params(tmp_path):
    path = write_project(
        tmp_path,
        """
        vars:
          - train: {epochs: 3}
        stages:
          a:
            cmd: run ${train.lr} ${train.epochs} ${architectures[1]}
        """,
    )
    assert load_graph(path)["a"].cmd == "run 0.1 3 vit"


def test_a_file_without_stages_is_an_empty_graph(tmp_path):
    (tmp_path / "dvc.yaml").write_text("")
    assert load_graph(tmp_path / "dvc.yaml") == {}


@pytest.mark.parametrize(
    ("dvc_yaml", "said"),
    [
        ("stages: {a: {cmd: 'run ${nobody.here}'}}", "nobody.here"),
        ("stages: {a: {cmd: 'run ${architectures.9}'}}", "architectures.9"),
        ("stages: {a: {cmd: 'run ${train}'}}", "one plain value"),
        ("stages: {a: {cmd: run, wdir: sub}}", "'wdir' inside a stage is not supported"),
        ("stages: {a: {foreach: '${train.lr}', do: {cmd: run}}}", "foreach needs a list"),
        ("stages: [", "cannot be read as YAML"),
        ("- a list", "must hold a mapping"),
        ("vars: [absent.yaml]", "absent.yaml does not exist"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, dvc_yaml, said):
    with pytest.raises(BadInput) as refusal:
        load_graph(write_project(tmp_path, dvc_yaml))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_reading_the_graph_imports_nothing_heavy():
    code = (
        "import sys, pipeline.tools.dvc_graph\n"
        "heavy = {'torch', 'timm', 'cv2', 'pandas', 'sklearn', 'mlflow', 'dvc', 'great_expectations'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
