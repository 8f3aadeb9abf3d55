"""One retraining on two hosts with a git remote and a local folder as DVC remote in common, and nothing else.

Airflow's part is played by `Handed`; git, DVC and the files are real.
"""

import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import handing
import host
import pytest
import retrain
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from configobj import ConfigObj
from host import Outage
from stage_operator import DvcStageOperator

from openmed.errors import BadInput
from openmed.files import read_json, sha256_file, write_json
from pipeline.settings.yaml_file import read_mapping
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.dvc_lock import check_outputs, outputs
from pipeline.tools.git import git, run
from pipeline.versioning import handover, training_states, workspace
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

    def stage(self, name: str) -> dict[str, str]:
        """Runs a stage; returns output -> hash."""
        self.ti.task_id = handing.task_of(name)
        done = DvcStageOperator(task_id=self.ti.task_id, stage=name).execute({"ti": self.ti})
        self.ti.written[self.ti.task_id] = done
        return outputs({"stages": {name: done["lock"]}}, name)

    def register(self) -> dict:
        """Runs `register`; returns what it announced."""
        self.ti.task_id = "register"
        begun = SimpleNamespace(triggering_user_name="ada", run_type="manual")
        task = retrain.register.function(
            run_id=self.ti.run_id, dag_run=begun, triggering_asset_events=None, ti=self.ti
        )
        announced = next(task)
        with pytest.raises(StopIteration) as ended:
            next(task)
        self.ti.written["register"] = ended.value.value
        return announced.extra


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


@pytest.fixture(scope="module")
def begun(template) -> Hosts:
    """The two in a run with seed 5: `one` has prepared and validated, `two` has made its workspace."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROJECT", "HOME"):
            patch.setattr(host, name, template)
        patch.setenv("OPENMED_SITE_SECRET", SECRET)
        patch.setattr(retrain, "STAGES", load_graph(template / "one/project/dvc.yaml"))
        hosts = Hosts(template, Handed())
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


def test_stages_alternate_between_two_hosts_and_make_what_one_host_makes(hosts, registered):
    made = {"validate": outputs({"stages": {"validate": hosts.ti.written["validate"]["lock"]}}, "validate")}
    for where, name in (("two", "left"), ("one", "right"), ("two", "join")):
        folder = hosts.on(where)
        made[name] = hosts.stage(name)
        assert read_json(folder / f"artifacts/{name}/out.json")["seed"] == 5
    assert hosts.ti.written["left"]["metrics"] == {"artifacts/left.json": {"auc": 0.9}}
    folder = hosts.on("one")
    # `left` ran where `right` did not, and nothing of it came here.
    assert not (folder / "artifacts/left").exists()
    announced = hosts.register()
    commit = git(host.PROJECT, "rev-parse", "HEAD")
    assert announced == handing.needed(hosts.ti, "register") | {
        "revision": commit,
        "retrain_run": hosts.ti.run_id,
    }
    assert str(hosts.root) not in str(hosts.ti.written) + str(announced)
    (told,) = registered
    assert (told["revision"], told["by"], told["folder"]) == (commit, "ada", folder)
    assert {stage: outputs(told["lock"], stage) for stage in told["lock"]["stages"]} == made

    alone = shutil.copytree(hosts.root / "one/project", hosts.root / "alone/here/project", symlinks=True)
    shutil.rmtree(alone / ".dvc/cache/runs")
    workspace.set_params(alone, {"run.seed": 5})
    assert run(alone, sys.executable, "-m", "dvc", "repro").returncode == 0
    lock = read_mapping(alone / "dvc.lock")
    assert {stage: outputs(lock, stage) for stage in lock["stages"]} == made

    # `left` is cleared and gives something else; what read it before is not registered beside it.
    workspace.set_params(hosts.on("two"), {"run.seed": 2})
    hosts.stage("left")
    hosts.on("one")
    with pytest.raises(AirflowFailException, match="join read another artifacts/left than left wrote"):
        hosts.register()
    hosts.stage("join")
    assert read_json(folder / "artifacts/left/out.json")["seed"] == 2
    hosts.register()
    assert len(registered) == 2


def test_what_fails_on_the_way_is_an_outage_and_the_next_try_goes_on(hosts, monkeypatch):
    storage, away = hosts.root / "storage", hosts.root / "away"
    folder, real = hosts.on("two"), DvcStageOperator._dvc

    def and_then(verb, what):
        def dvc(self, where, *arguments):
            done = real(self, where, *arguments)
            if arguments[0] == verb:
                what()
            return done

        monkeypatch.setattr(DvcStageOperator, "_dvc", dvc)

    storage.rename(away)
    with pytest.raises(Outage, match="neither in the DVC cache nor whole on a remote"):
        hosts.stage("left")
    shutil.rmtree(storage, ignore_errors=True)
    away.rename(storage)

    def killed():
        (folder / "artifacts/validate/out.json").unlink()
        raise TimeoutError

    and_then("pull", killed)
    with pytest.raises(TimeoutError):
        hosts.stage("left")

    def gone():
        storage.rename(away)
        storage.write_text("no folder")

    and_then("repro", gone)
    with pytest.raises(Outage, match="what left wrote could not be pushed to the DVC remote store"):
        hosts.stage("left")
    storage.unlink()
    away.rename(storage)
    monkeypatch.setattr(DvcStageOperator, "_dvc", real)
    hosts.stage("left")
    seen = read_json(folder / "artifacts/left/out.json")["seen"]
    assert seen == sha256_file(hosts.on("one") / "artifacts/validate/out.json")
    assert hosts.wrote(b'{"stage": "left"')


def test_a_damaged_output_on_the_remote_is_no_outage(hosts):
    (file,) = hosts.wrote(b'{"stage": "validate"')
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    with pytest.raises(AirflowFailException, match="holds a damaged copy of artifacts/validate"):
        hosts.stage("left")
    file.write_bytes(content)


def test_new_data_of_another_host_are_what_is_retrained_on(hosts, tmp_path):
    one, two = (hosts.root / name / "project" for name in ("one", "two"))
    before = [git(each, "rev-parse", "HEAD") for each in (one, two)]
    git(one, *COMMIT, "new data", "--allow-empty")
    new = git(one, "rev-parse", "HEAD")
    hosts.ti.run_id, hosts.ti.written = "asset_triggered__1", {}
    hosts.on("two")
    host.HOME = tmp_path
    with pytest.raises(Outage, match=f"commit {new} of this run is not in .*: push it"):
        hosts.prepare(announced=[before[0], new])
    git(one, "push", "--quiet", "origin", "HEAD:news")
    hosts.prepare(announced=[before[0], new])
    assert handing.needed(hosts.ti, "prepare")["revision"] == new
    git(two, "reset", "--quiet", "--hard", new)
    git(two, *COMMIT, "moved on", "--allow-empty")
    for run_id, commit in (("asset_triggered__1", new), ("later", git(two, "rev-parse", "HEAD"))):
        hosts.ti.run_id = run_id
        hosts.prepare(announced=[before[0], new])
        assert handing.needed(hosts.ti, "prepare")["revision"] == commit
    for each, commit in zip((one, two), before, strict=True):
        git(each, "reset", "--quiet", "--hard", commit)


def test_a_run_whose_workspace_was_never_whole_may_begin_elsewhere_at_another_commit(hosts, tmp_path):
    one, home = hosts.root / "one/project", tmp_path
    here = git(one, "rev-parse", "HEAD")
    path = workspace.path_of("run", home)
    write_json(
        path.with_name("run.json"), {"run_id": "run", "revision": "HEAD", "commit": "0" * 40, "whole": False}
    )
    assert workspace.commit_of(workspace.find(one, here, "run", home)) == here
    with pytest.raises(BadInput, match="start a new run"):
        workspace.find(one, "1" * 40, "run", home)


def test_a_remote_that_hangs_up_while_it_is_read_is_an_outage(hosts):
    class Halting(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"a part")

        do_HEAD = do_GET

        def log_message(self, *_):
            """Says nothing."""

    settings = hosts.on("two") / ".dvc/config.local"
    kept = settings.read_text()
    with HTTPServer(("127.0.0.1", 0), Halting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = ConfigObj(kept.splitlines())
        remote['remote "store"']["url"] = f"http://127.0.0.1:{server.server_port}"
        settings.write_text("\n".join(remote.write()))
        try:
            with pytest.raises(Outage, match="neither in the DVC cache nor whole on a remote"):
                hosts.stage("left")
        finally:
            settings.write_text(kept)
            server.shutdown()


def test_a_commit_that_a_host_lacks_is_fetched_and_head_moves_nothing(hosts):
    one, two = (hosts.root / name / "project" for name in ("one", "two"))
    first = git(one, "rev-parse", "HEAD")
    (one / "params.yaml").write_text("run:\n  seed: 8\n")
    git(one, *COMMIT, "second", "--all")
    second = git(one, "rev-parse", "HEAD")
    hosts.on("one")
    hosts.ti.run_id = "manual__2"
    hosts.prepare()
    folder = hosts.on("two")
    with pytest.raises(Outage, match=f"commit {second} of this run is not in .* nor on its remotes"):
        handing.workspace_of(hosts.ti)
    git(one, "push", "--quiet", "origin", "main")
    git(one, *COMMIT, "third", "--allow-empty")
    assert handing.workspace_of(hosts.ti) == folder
    assert (git(two, "rev-parse", "HEAD"), git(folder, "rev-parse", "HEAD")) == (first, second)
    assert (folder / "params.yaml").read_text() == "run:\n  seed: 8\n"


@pytest.mark.parametrize(
    ("task", "forge"),
    [
        ("prepare", {"revision": "0" * 40}),
        ("prepare", {"seed": 3}),
        ("prepare", {"seal": None}),
        ("validate", {"lock": {}}),
        ("validate", {"seal": {"key": None, "hmac": ""}}),
    ],
)
def test_no_stage_runs_on_what_was_written_by_hand(hosts, task, forge):
    hosts.ti.written[task] |= forge
    with pytest.raises(AirflowFailException, match=f"XCom of task '{task}' is not what the task handed on"):
        hosts.stage("left")


def test_the_seal_of_another_task_run_or_dag_does_not_count(hosts):
    ti = hosts.ti
    ti.written["right"] = ti.written["validate"]
    with pytest.raises(AirflowFailException, match="task 'right' is not what the task handed on"):
        handing.handed(ti, "right")
    assert handing.needed(ti, "validate")["stage"] == "validate"
    for name in ("run_id", "dag_id"):
        before = getattr(ti, name)
        setattr(ti, name, "another")
        with pytest.raises(AirflowFailException, match="written by hand"):
            handing.needed(ti, "validate")
        setattr(ti, name, before)


def test_a_page_of_a_run_is_found_on_the_remote_and_an_outage_ends_nothing(hosts, tmp_path):
    folder, said = hosts.on("two"), []
    page = tmp_path / "drift.html"
    page.write_text("<p>")
    handover.show(host.PROJECT, folder, page, said.append)
    name = f"openmed/states/{folder.name}/drift.html"
    assert (hosts.root / "storage" / name).read_text() == "<p>"
    assert said == [f"the page is {name} on the DVC remote store"]
    (hosts.root / "storage").rename(hosts.root / "away")
    (hosts.root / "storage").write_text("no folder")
    handover.show(host.PROJECT, folder, page, said.append)
    (hosts.root / "storage").unlink()
    (hosts.root / "away").rename(hosts.root / "storage")
    assert said[1].startswith("the page stays on this host: ")
    handover.show(host.PROJECT, tmp_path / "alone", page, said.append)
    training_states.forget(host.PROJECT, hosts.ti.run_id, said.append)
    assert len(said) == 2 and not (hosts.root / "storage" / name).exists()


def test_another_secret_is_told_from_a_forged_xcom(hosts, monkeypatch):
    monkeypatch.setenv("OPENMED_SITE_SECRET", "the secret of another")
    with pytest.raises(AirflowFailException, match="another site secret than the one of this host"):
        hosts.stage("validate")


def test_a_seal_holds_over_what_a_database_makes_of_numbers():
    ti = Handed(
        gate={"auc": 0.1, "high": 1e22, "zero": -0.0, "share": 1.0, "none": float("nan"), "pair": (1, 2)}
    )
    ti.written["gate"] |= {"high": 10**22, "zero": 0.0, "share": 1}
    told = handing.needed(ti, "gate")
    assert told == {"auc": 0.1, "high": 10**22, "zero": 0, "share": 1, "none": None, "pair": [1, 2]}


def test_an_xcom_of_an_earlier_release_still_counts(monkeypatch):
    """A review may wait for days over an update."""
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    ti = Handed()
    key = hashlib.scrypt(SECRET.encode(), salt=b"openmed seal 1", n=2**14, r=8, p=1, dklen=32)
    bound = json.dumps(["promote", "manual__1", "gate", {"verdict": "PASS"}])
    ti.written["gate"] = {
        "verdict": "PASS",
        "seal": {"hmac": hmac.digest(key, bound.encode(), "sha256").hex()},
    }
    assert handing.needed(ti, "gate") == {"verdict": "PASS"}


def test_a_host_takes_away_what_runs_left_that_ended_elsewhere(hosts):
    for number, run_id in enumerate(("first", "second", "third", "running")):
        folder = workspace.path_of(run_id, host.HOME)
        folder.mkdir(parents=True)
        record = folder.with_name(f"{run_id}.json")
        write_json(record, {"run_id": run_id, "revision": "HEAD", "commit": "0"})
        os.utime(record, (0, time.time() - 100 + number))
        hosts.ti.states[run_id] = {"second": "failed", "running": "running"}.get(run_id, "success")
    handing.tidy(hosts.ti)
    left = {path.name for path in (host.HOME / "runs").iterdir() if path.is_dir()}
    assert left - {"manual__2"} == {"second", "third", "running", hosts.ti.run_id}


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
    hosts.ti.run_id, hosts.ti.written = "manual__3", {}
    hosts.on("one")
    hosts.prepare()
    with pytest.raises(AirflowException, match="failed with exit 1"):
        hosts.stage("train@vit")
    states = hosts.root / "storage/openmed/states"
    assert (states / hosts.on("two").name / "train@vit/newest.json").is_file()
    hosts.stage("train@vit")
    hosts.register()
    assert registered
    assert not [path for path in states.rglob("*") if path.is_file()]
