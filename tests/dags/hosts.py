"""One retraining on two hosts with a git remote and a local folder as DVC remote in common, and nothing else.

Airflow's part is played by `Handed`; git, DVC and the files are real.
"""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import handing
import host
import pytest
import retrain
from stage_operator import DvcStageOperator

from pipeline.settings.yaml_file import read_mapping
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.dvc_lock import check_outputs, outputs
from pipeline.tools.git import git
from pipeline.versioning import workspace
from tests.dags.runs import Handed

SECRET = "a secret of this site"
# What it does not read must not matter to a stage: `left` and `right` run side by side.
GRAPH = """
stages:
  validate:
    cmd: python stage.py validate
    deps: [data, stage.py]
    outs: [artifacts/validate]
  left:
    cmd: python stage.py left artifacts/validate/out.json
    deps: [artifacts/validate, stage.py]
    params: [run]
    outs: [artifacts/left]
    metrics: [artifacts/left.json]
  right:
    cmd: python stage.py right artifacts/validate/out.json
    deps: [artifacts/validate, stage.py]
    outs: [artifacts/right]
  join:
    cmd: python stage.py join artifacts/left/out.json artifacts/right/out.json
    deps: [artifacts/left, artifacts/right/out.json, stage.py]
    outs: [artifacts/join]
"""
STAGE = """
import hashlib, json, pathlib, sys, yaml
name, *read = sys.argv[1:]
seed = yaml.safe_load(open("params.yaml"))["run"]["seed"]
folder = pathlib.Path("artifacts", name)
folder.mkdir(parents=True)
seen = hashlib.sha256(b"".join(pathlib.Path(each).read_bytes() for each in read)).hexdigest()
(folder / "out.json").write_text(json.dumps({"stage": name, "seen": seen, "seed": seed}))
if name == "left":
    pathlib.Path("artifacts/left.json").write_text(json.dumps({"auc": 0.9}))
"""
COMMIT = ("-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "--quiet", "--message")


@dataclass
class Hosts:
    """Two hosts, and what a server knows of a run: its XComs and its state."""

    root: Path
    ti: Handed

    def on(self, name: str) -> Path:
        """Goes to a host; returns where the workspace of the run is there."""
        host.PROJECT, host.HOME = self.root / name / "project", self.root / name / "home"
        return workspace.path_of(self.ti.run_id, host.HOME)

    def wrote(self, beginning: bytes) -> list[Path]:
        """Returns the files on the DVC remote that begin so."""
        files = [path for path in (self.root / "storage").rglob("*") if path.is_file()]
        return [path for path in files if path.read_bytes().startswith(beginning)]

    def prepare(self, seed: int | None = None, announced: Sequence[str] = ()) -> None:
        """Runs `prepare`, maybe as new data have started it."""
        self.ti.task_id = "prepare"
        begun = SimpleNamespace(triggering_user_name="ada", run_type="manual")
        params = {"revision": "HEAD", "seed": seed, "note": None}
        events = [
            SimpleNamespace(timestamp=at, extra={"revision": commit}) for at, commit in enumerate(announced)
        ]
        self.ti.written["prepare"] = retrain.prepare.function(
            params=params, dag_run=begun, triggering_asset_events={"data": events[::-1]}, ti=self.ti
        )

    def stage(self, name: str, **options: Any) -> dict[str, str]:
        """Runs a stage; returns output -> hash."""
        self.ti.task_id = handing.task_of(name)
        done = DvcStageOperator(task_id=self.ti.task_id, stage=name, **options).execute({"ti": self.ti})
        self.ti.written[self.ti.task_id] = done
        return outputs({"stages": {name: done["lock"]}}, name)

    def register(self) -> dict:
        """Runs `register`; returns what it announced."""
        self.ti.task_id = "register"
        begun = SimpleNamespace(triggering_user_name="ada", run_type="manual")
        task = retrain.register.function(dag_run=begun, triggering_asset_events=None, ti=self.ti)
        announced = next(task)
        with pytest.raises(StopIteration) as ended:
            next(task)
        self.ti.written["register"] = ended.value.value
        return announced.extra


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A git remote, a DVC remote and a host `one` that has pushed the project to both."""
    root = tmp_path_factory.mktemp("template")
    project = root / "one/project"
    (project / "data").mkdir(parents=True)
    (root / "storage").mkdir()
    files = {"dvc.yaml": GRAPH, "stage.py": STAGE, "params.yaml": "run:\n  seed: 1\n", "data/film": "film"}
    for name, text in (files | {".gitignore": "/artifacts\n"}).items():
        (project / name).write_text(textwrap.dedent(text))
    git(root, "init", "--quiet", "--bare", "remote.git")
    git(project, "init", "--quiet", "--initial-branch", "main")
    # Relative, so that it still holds where the template was copied to.
    config = "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../../storage\n"
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--quiet"], cwd=project, check=True)
    (project / ".dvc/config").write_text(config)
    subprocess.run([*dvc, "add", "--quiet", "data"], cwd=project, check=True)
    subprocess.run([*dvc, "push", "--quiet"], cwd=project, check=True)
    git(project, "add", "--all")
    git(project, *COMMIT, "first")
    git(project, "remote", "add", "origin", "../../remote.git")
    git(project, "push", "--quiet", "origin", "main")
    git(root / "one", "clone", "--quiet", "../remote.git", str(root / "two/project"))
    git(root / "two/project", "remote", "set-url", "origin", "../../remote.git")
    git(root / "two/project", "checkout", "--quiet", "main")
    return root


@pytest.fixture(scope="module")
def begun(template, tmp_path_factory) -> Hosts:
    """The two in a run with seed 5: `one` has prepared and validated, `two` has made its workspace."""
    root = shutil.copytree(template, tmp_path_factory.mktemp("hosts") / "root", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROJECT", "HOME"):
            patch.setattr(host, name, root)
        patch.setenv("OPENMED_SITE_SECRET", SECRET)
        patch.setattr(retrain, "STAGES", load_graph(root / "one/project/dvc.yaml"))
        hosts = Hosts(root, Handed())
        hosts.on("one")
        hosts.prepare(seed=5)
        hosts.stage("validate")
        hosts.on("two")
        handing.workspace_of(hosts.ti)
    return hosts


@pytest.fixture
def hosts(begun, monkeypatch) -> Hosts:
    """The two as they have begun: `two` has nothing but its workspace and the data in it."""
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    monkeypatch.setattr(host, "PROJECT", host.PROJECT)
    monkeypatch.setattr(retrain, "STAGES", load_graph(begun.root / "one/project/dvc.yaml"))
    ti = Handed()
    ti.written = {name: dict(begun.ti.written[name]) for name in ("prepare", "validate")}
    hosts = Hosts(begun.root, ti)
    folder = hosts.on("two")
    for made in (folder / "artifacts", hosts.root / "two/project/.dvc/cache"):
        shutil.rmtree(made, ignore_errors=True)
    for made in ("dvc.lock", ".dvc/tmp/openmed-whole.json"):
        (folder / made).unlink(missing_ok=True)
    return hosts


@pytest.fixture
def registered(monkeypatch) -> list[dict]:
    """What `register` gave to the registry, which reads what `join` and `left` wrote here."""
    from pipeline import registry

    seen: list[dict] = []

    def register_candidates(folder, *, run_key, revision, started_by):
        lock = read_mapping(folder / "dvc.lock")
        for stage in {"join", "left"} & lock["stages"].keys():
            check_outputs(folder, lock, stage)
        seen.append({"revision": revision, "by": started_by, "lock": lock, "folder": folder})
        return SimpleNamespace(version="7", architecture="a", verdict="PASS", run_id="x", order=["7"])

    monkeypatch.setattr(registry, "register_candidates", register_candidates)
    monkeypatch.setattr(registry, "is_read", lambda out: out.startswith(("artifacts/join", "artifacts/left")))
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")
    return seen
