"""One retraining on two hosts with a git remote and a local folder as DVC remote in common, and nothing else.

Airflow's part is played by `Handed`; git, DVC and the files are real.
"""

import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import host
import pytest
import retrain
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from handing import task_of
from host import Outage
from stage_operator import DvcStageOperator

from openmed.files import read_json
from pipeline.settings.yaml_file import read_mapping
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.dvc_lock import check_outputs
from pipeline.tools.git import git, run
from pipeline.versioning import workspace
from tests.dags.runs import Handed

SECRET = "a secret of this site"
STAGES = ("validate", "left", "right", "join")
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
# It stops when it has left a state, and goes on where it finds one.
TRAINING = """
import json, os, pathlib, sys
import numpy
from safetensors.numpy import save_file
from pipeline.settings.project import checkpoint_folder
folder = checkpoint_folder(pathlib.Path(os.environ["OPENMED_HOME"]), pathlib.Path.cwd(), "vit")
state = folder / "state.safetensors"
if not state.exists():
    folder.mkdir(parents=True)
    position = {"fingerprint": "mark", "position": json.dumps({"epoch": 1})}
    save_file({"weight": numpy.ones(3)}, state, metadata=position)
    sys.exit(1)
pathlib.Path("artifacts/train.json").parent.mkdir(exist_ok=True)
pathlib.Path("artifacts/train.json").write_text("{}")
"""
TRAINS = """
  train:
    matrix: {item: [vit]}
    cmd: python train.py
    deps: [train.py]
    outs: [artifacts/train.json]
"""
COMMIT = ("-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "--quiet", "--message")


@dataclass
class Hosts:
    """Two hosts, and what a server would know of a run: its XComs and who is where."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    ti: Handed

    def on(self, name: str) -> Path:
        """Goes to a host; returns where the workspace of the run is there."""
        home = self.root / name / "home"
        self.monkeypatch.setattr(host, "PROJECT", self.root / name / "project")
        self.monkeypatch.setattr(host, "HOME", home)
        return workspace.path_of(self.ti.run_id, home)

    def prepare(self, seed: int | None = None) -> None:
        """Runs `prepare`."""
        self.ti.task_id = "prepare"
        begun = SimpleNamespace(triggering_user_name="ada", run_type="manual")
        params = {"revision": "HEAD", "seed": seed, "note": None}
        self.ti.written["prepare"] = retrain.prepare.function(
            params=params, dag_run=begun, triggering_asset_events=None, ti=self.ti
        )

    def stage(self, name: str) -> dict:
        """Runs a stage."""
        self.ti.task_id = task_of(name)
        done = DvcStageOperator(task_id=task_of(name), stage=name).execute({"ti": self.ti})
        self.ti.written[task_of(name)] = done
        return done


@pytest.fixture(scope="module")
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


@pytest.fixture
def hosts(template, tmp_path, monkeypatch) -> Hosts:
    """The two, without a run."""
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    monkeypatch.setattr(retrain, "STAGES", load_graph(template / "one/project/dvc.yaml"))
    shutil.copytree(template, tmp_path / "hosts", symlinks=True)
    made = Hosts(tmp_path / "hosts", monkeypatch, Handed())
    made.on("one")
    return made


def hashes(lock: dict) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in lock["outs"]}


def test_stages_alternate_between_two_hosts_and_make_what_one_host_makes(hosts):
    hosts.prepare(seed=5)
    made = {}
    for where, name in (("two", "validate"), ("one", "left"), ("two", "right"), ("one", "join")):
        folder = hosts.on(where)
        made[name] = hashes(hosts.stage(name)["lock"])
        assert read_json(folder / f"artifacts/{name}/out.json")["seed"] == 5
    assert hosts.ti.written["left"]["metrics"] == {"artifacts/left.json": {"auc": 0.9}}
    # `right` ran where `left` did not, and read nothing of it.
    assert not (hosts.on("two") / "artifacts/left").exists()

    alone = hosts.root / "one/project"
    shutil.rmtree(alone / ".dvc/cache/runs")
    workspace.set_params(alone, {"run.seed": 5})
    assert run(alone, sys.executable, "-m", "dvc", "repro").returncode == 0
    stages = read_mapping(alone / "dvc.lock")["stages"]
    assert {name: hashes(entry) for name, entry in stages.items()} == made


@pytest.fixture
def registered(monkeypatch) -> list[dict]:
    """What `register` gave to the registry, which reads what `join` and `left` wrote here."""
    from pipeline import registry

    seen: list[dict] = []

    def register_candidates(folder, *, run_key, revision, started_by):
        stages = read_mapping(folder / "dvc.lock")["stages"]
        for stage in ("join", "left"):
            check_outputs(folder, {"stages": stages}, stage)
        seen.append({"revision": revision, "by": started_by, "stages": sorted(stages), "folder": folder})
        return SimpleNamespace(version="7", architecture="a", verdict="PASS", run_id="x", order=["7"])

    monkeypatch.setattr(registry, "register_candidates", register_candidates)
    monkeypatch.setattr(registry, "is_read", lambda out: out.startswith(("artifacts/join", "artifacts/left")))
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")
    return seen


def register(hosts: Hosts) -> list:
    begun = SimpleNamespace(triggering_user_name="ada", run_type="manual")
    pushed = {}
    hosts.ti.xcom_push = lambda key, value: pushed.update({key: value})
    made = retrain.register.function(
        run_id=hosts.ti.run_id, dag_run=begun, triggering_asset_events=None, ti=hosts.ti
    )
    return [*made, pushed]


def test_the_second_host_registers_what_the_first_made(hosts, registered):
    hosts.prepare()
    for name in STAGES:
        hosts.stage(name)
    folder = hosts.on("two")
    announced, pushed = register(hosts)
    commit = git(hosts.root / "one/project", "rev-parse", "HEAD")
    assert registered == [{"revision": commit, "by": "ada", "stages": sorted(STAGES), "folder": folder}]
    assert not (folder / "artifacts/right").exists()
    assert announced.extra == pushed["candidate"] | {"revision": commit, "retrain_run": hosts.ti.run_id}
    assert str(hosts.root) not in str(announced.extra)


def test_a_commit_that_a_host_lacks_is_fetched_and_head_moves_nothing(hosts):
    one, two = (hosts.root / name / "project" for name in ("one", "two"))
    (one / "params.yaml").write_text("run:\n  seed: 8\n")
    git(one, *COMMIT, "second", "--all")
    hosts.prepare()
    hosts.stage("validate")
    hosts.on("two")
    with pytest.raises(Outage, match=r"commit [0-9a-f]{40} of this run is not in .* nor on its remotes"):
        hosts.stage("left")
    git(one, "push", "--quiet", "origin", "main")
    git(one, *COMMIT, "third", "--allow-empty")
    folder = hosts.on("two")
    hosts.stage("left")
    assert read_json(folder / "artifacts/left/out.json")["seed"] == 8
    assert (
        git(two, "rev-parse", "HEAD") != git(folder, "rev-parse", "HEAD") == git(one, "rev-parse", "HEAD~1")
    )


@pytest.mark.parametrize("stage", ["left", "join"])
def test_a_remote_that_is_gone_is_an_outage_and_the_next_try_goes_on(hosts, stage):
    hosts.prepare()
    hosts.stage("validate")
    if stage == "join":
        hosts.stage("left")
        hosts.stage("right")
    hosts.on("two")
    workspace.find(
        host.PROJECT, hosts.ti.written["prepare"]["revision"], hosts.ti.run_id, host.HOME
    )  # the data came before
    storage = hosts.root / "storage"
    storage.rename(hosts.root / "away")
    with pytest.raises(Outage, match="neither in the DVC cache nor on a remote"):
        hosts.stage(stage)
    if storage.exists():
        shutil.rmtree(storage)
    (hosts.root / "away").rename(storage)
    hosts.stage(stage)


def test_what_was_made_is_not_lost_where_it_cannot_be_pushed(hosts):
    hosts.prepare()
    storage = hosts.root / "storage"
    storage.rename(hosts.root / "away")
    storage.write_text("no folder")
    with pytest.raises(Outage, match="what validate wrote could not be pushed to the DVC remote store"):
        hosts.stage("validate")
    storage.unlink()
    (hosts.root / "away").rename(storage)
    hosts.stage("validate")
    hosts.on("two")
    hosts.stage("left")


def test_an_output_that_arrived_in_part_is_fetched_again(hosts, monkeypatch):
    hosts.prepare()
    hosts.stage("validate")
    folder = hosts.on("two")
    real = DvcStageOperator._dvc

    def killed(self, where, *arguments):
        done = real(self, where, *arguments)
        if arguments[0] == "pull":
            (where / "artifacts/validate/out.json").unlink()
            raise TimeoutError
        return done

    monkeypatch.setattr(DvcStageOperator, "_dvc", killed)
    with pytest.raises(TimeoutError):
        hosts.stage("left")
    monkeypatch.setattr(DvcStageOperator, "_dvc", real)
    hosts.stage("left")
    written = (folder / "artifacts/validate/out.json").read_bytes()
    assert written == (hosts.on("one") / "artifacts/validate/out.json").read_bytes()


def test_a_stage_that_was_run_again_elsewhere_is_taken_from_there(hosts):
    """Its first output is here, and another one stands in its XCom."""
    hosts.prepare(seed=1)
    hosts.stage("validate")
    hosts.stage("left")
    folder = hosts.on("two")
    hosts.stage("validate")
    workspace.set_params(folder, {"run.seed": 2})
    hosts.stage("left")
    folder = hosts.on("one")
    hosts.stage("right")
    hosts.stage("join")
    assert read_json(folder / "artifacts/left/out.json")["seed"] == 2


def test_stages_that_read_another_output_than_was_made_are_not_registered(hosts, registered):
    hosts.prepare()
    for name in STAGES:
        hosts.stage(name)
    # `left` is cleared and gives something else; `join` is not.
    workspace.set_params(hosts.on("one"), {"run.seed": 2})
    hosts.stage("left")
    with pytest.raises(AirflowFailException, match="join read another artifacts/left than left wrote"):
        register(hosts)
    assert registered == []


@pytest.mark.parametrize("forge", [{"revision": "0" * 40}, {"seed": 3}, {"seal": None}])
def test_nothing_runs_on_a_commit_or_seed_that_was_written_by_hand(hosts, forge):
    hosts.prepare()
    hosts.ti.written["prepare"] |= forge
    with pytest.raises(AirflowFailException, match="is not what the task handed on: it was written by hand"):
        hosts.stage("validate")


def test_the_outputs_of_another_stage_or_run_are_not_taken_in_the_place_of_its_own(hosts):
    hosts.prepare()
    hosts.stage("validate")
    before = hosts.stage("left")
    hosts.stage("right")
    hosts.ti.written["right"] = before
    with pytest.raises(AirflowFailException, match="the XCom of task 'right' is not what the task handed on"):
        hosts.stage("join")
    hosts.ti.run_id = "manual__2"
    with pytest.raises(AirflowFailException, match="the XCom of task 'prepare' is not what"):
        hosts.stage("validate")


def test_another_secret_is_told_from_a_forged_xcom(hosts, monkeypatch):
    hosts.prepare()
    monkeypatch.setenv("OPENMED_SITE_SECRET", "the secret of another")
    with pytest.raises(AirflowFailException, match="another site secret than the one of this host"):
        hosts.stage("validate")


def test_a_host_takes_away_what_runs_left_that_ended_elsewhere(hosts):
    kept = []
    for run_id in ("first", "second", "third"):
        hosts.ti.run_id = run_id
        hosts.on("one")
        hosts.prepare()
        kept.append(hosts.on("two"))
        hosts.stage("validate")
        hosts.on("one")
        hosts.ti.states[run_id] = "failed" if run_id == "second" else "success"
    # `first` is the newest complete one that this host knew of when `third` came to it.
    assert [folder.exists() for folder in kept] == [True, True, True]
    hosts.ti.run_id = "fourth"
    hosts.prepare()
    hosts.on("two")
    hosts.stage("validate")
    assert [folder.exists() for folder in kept] == [False, True, True]


def test_a_training_goes_on_with_the_state_of_another_host_until_it_is_registered(
    hosts, registered, monkeypatch
):
    one = hosts.root / "one/project"
    (one / "train.py").write_text(TRAINING)
    (one / "dvc.yaml").write_text(textwrap.dedent(GRAPH) + TRAINS)
    git(one, "add", "train.py")
    git(one, *COMMIT, "trains", "--all")
    git(one, "push", "--quiet", "origin", "main")
    monkeypatch.setattr(retrain, "STAGES", load_graph(one / "dvc.yaml"))
    hosts.prepare()
    for name in STAGES:
        hosts.stage(name)
    with pytest.raises(AirflowException, match="failed with exit 1"):
        hosts.stage("train@vit")
    states = hosts.root / "storage/openmed/states"
    assert (states / hosts.on("two").name / "train@vit/newest.json").is_file()
    hosts.stage("train@vit")
    register(hosts)
    assert registered
    assert not [path for path in states.rglob("*") if path.is_file()]
