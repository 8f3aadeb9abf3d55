"""What tasks hand on to those after them, on two hosts, and the seals of it."""

import hashlib
import hmac
import json
import shutil
import sys
import textwrap

import handing
import host
import pytest
import retrain
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from openmed.files import read_json
from pipeline.settings.yaml_file import read_mapping
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.dvc_lock import outputs
from pipeline.tools.git import git, run
from pipeline.versioning import workspace
from tests.dags.hosts import COMMIT, GRAPH, SECRET
from tests.dags.runs import Handed

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


def test_what_ran_before_prepare_took_another_commit_does_not_count(hosts, registered, tmp_path):
    hosts.on("two")
    first = git(host.PROJECT, "rev-parse", "HEAD")
    git(host.PROJECT, *COMMIT, "moved on", "--allow-empty")
    host.HOME = tmp_path  # a host that has no workspace of the run yet
    hosts.prepare(seed=5)
    git(host.PROJECT, "reset", "--quiet", "--hard", first)
    for refused in (lambda: hosts.stage("left"), hosts.register):
        with pytest.raises(
            AirflowFailException, match=f"task 'validate' ran at commit {first}, and 'prepare'"
        ):
            refused()
    hosts.stage("validate")
    hosts.stage("left")
    assert registered == []


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
