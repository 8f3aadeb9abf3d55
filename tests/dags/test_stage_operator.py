"""The operator on real processes, without a scheduler."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from pathlib import Path

import host
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from host import PROJECT, Outage, SpreadTries, enter_project, one_sentence
from stage_operator import DvcStageOperator

from openmed.errors import BadInput, IntegrityError, ResourceError
from pipeline.tools.git import git
from pipeline.versioning import workspace
from tests.dags.runs import Handed

STAGE = """
import json, os, pathlib, subprocess, sys, time
do = os.environ.get("STAGE_DOES", "work")
print("stage begins", flush=True)
if do.startswith("exit"):
    sys.exit(int(do[4:]))
if do == "fill":
    with open("/dev/full", "w") as full:
        full.write("x")
if do == "sleep":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    pathlib.Path("child.pid").write_text(str(child.pid))
    time.sleep(300)
pathlib.Path("out").write_text("done")
pathlib.Path("metrics.json").write_text(json.dumps({"auc": 0.9}))
pathlib.Path("place.json").write_text(json.dumps([os.environ["OPENMED_PROJECT"], os.environ["OPENMED_HOME"]]))
"""


GRAPH = """
stages:
  one:
    cmd: python stage.py
    deps:
      - stage.py
    outs:
      - out
    metrics:
      - metrics.json
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A committed project, a state folder, and the workspace of a run in it."""
    from dvc.repo import Repo

    repo, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    git(repo, "init", "--quiet")
    (repo / "data").mkdir()
    for name, text in {
        "stage.py": STAGE,
        "dvc.yaml": GRAPH,
        "params.yaml": "{}\n",
        "data/film": "film",
    }.items():
        (repo / name).write_text(textwrap.dedent(text))
    with Repo.init(str(repo)) as project:
        project.add(str(repo / "data"))
    git(repo, "add", "--all")
    git(repo, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "toy")
    commit = git(repo, "rev-parse", "HEAD")
    return repo, home, commit, workspace.create(repo, commit, Handed.run_id, home)


@pytest.fixture
def run(made, monkeypatch) -> dict[str, Handed]:
    """What a task sees of a run whose workspace is there, and in which nothing has run."""
    repo, home, commit, folder = made
    monkeypatch.setattr(host, "PROJECT", repo)
    monkeypatch.setattr(host, "HOME", home)
    git(folder, "clean", "--quiet", "--force", "-d")
    # From here DVC would bring back what an earlier test wrote.
    shutil.rmtree(repo / ".dvc/cache/runs", ignore_errors=True)
    (folder / ".dvc/tmp/openmed-whole.json").unlink(missing_ok=True)
    ti = Handed(prepare={"revision": commit, "seed": None, "note": ""})
    ti.task_id = "one"
    return {"ti": ti}


@pytest.fixture
def project(made, run) -> Path:
    """The workspace of that run."""
    return made[-1]


@pytest.fixture
def logged(capsys):
    """Returns what the task has logged since the last call; outside a task Airflow logs to stdout."""
    return lambda: capsys.readouterr().out


def operator(**options) -> DvcStageOperator:
    return DvcStageOperator(task_id="one", stage="one", **options)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_stage_hands_on_its_lock_entry_and_its_metrics(project, run, logged):
    result = operator().execute(run)
    run["ti"].written["one"] = json.loads(json.dumps(result))
    assert result["stage"] == "one" and result["seconds"] > 0
    assert result["metrics"] == {"metrics.json": {"auc": 0.9}}
    assert result["lock"]["outs"][1]["path"] == "out"
    assert "stage begins" in logged()
    assert json.loads((project / "place.json").read_text()) == [str(project), str(host.HOME)]


def test_where_one_host_is_alone_a_stage_is_one_start_of_dvc(project, run, monkeypatch):
    started = []
    real = DvcStageOperator._dvc
    monkeypatch.setattr(DvcStageOperator, "_dvc", lambda self, *of: started.append(of[1]) or real(self, *of))
    monkeypatch.setattr(workspace, "create", None)
    operator().execute(run)
    assert started == ["repro"]


def test_an_unchanged_stage_runs_again_only_when_forced(run, logged):
    operator().execute(run)
    logged()
    operator(force="False").execute(run)
    assert "stage begins" not in logged()
    operator(force="True").execute(run)
    assert "stage begins" in logged()


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (2, AirflowFailException, "refused: bad input"),
        (3, AirflowFailException, "refused: damaged content"),
        (5, AirflowFailException, "refused: the training diverged"),
        (4, Outage, "lacked a resource"),
        (1, AirflowException, "failed with exit 1"),
    ],
)
def test_only_errors_that_may_pass_are_tried_again(run, monkeypatch, code, error, said):
    monkeypatch.setenv("STAGE_DOES", f"exit{code}")
    with pytest.raises(AirflowException, match=said) as failure:
        operator().execute(run)
    assert type(failure.value) is error


def test_files_in_use_by_another_stage_are_waited_for():
    failure = operator()._failure(255, "ERROR: 'out' is busy, it is being blocked by: (PID 1)")
    assert type(failure) is AirflowException and "another stage" in str(failure)


@pytest.mark.parametrize("code", [1, 2, 4, 255])
def test_a_full_disk_is_no_damage(run, monkeypatch, code):
    if code == 255:
        monkeypatch.setenv("STAGE_DOES", "fill")
        with pytest.raises(Outage, match="the disk of this host is full"):
            operator().execute(run)
    failure = operator()._failure(code, "ERROR: unexpected error - [Errno 28] No space left on device: 'x'")
    assert type(failure) is Outage and "disk of this host is full" in str(failure)
    with pytest.raises(Outage, match="disk of this host is full"), one_sentence():
        raise OSError(errno.ENOSPC, "No space left on device", "x")
    with pytest.raises(Outage, match="disk of this host is full"), one_sentence():
        raise BadInput("x.json cannot be written: [Errno 28] No space left on device")
    with pytest.raises(PermissionError), one_sentence():
        raise PermissionError(errno.EACCES, "Permission denied", "x")


@pytest.mark.parametrize(
    "error", [Outage("full"), OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full")]
)
def test_the_three_tries_after_an_outage_are_spread_over_an_hour(error):
    delays = [SpreadTries().evaluate(error, number, 2).retry_delay for number in (1, 2)]
    assert delays == [timedelta(minutes=10), timedelta(minutes=50)]
    # Whoever clears the task gives it three more.
    assert SpreadTries().evaluate(error, 4, 5).retry_delay == timedelta(minutes=10)


@pytest.mark.parametrize(
    "error", [AirflowException("killed"), RuntimeError(), FileNotFoundError(errno.ENOENT, "")]
)
def test_other_failures_keep_the_delays_of_the_task(error):
    decision = SpreadTries().evaluate(error, 1, 2)
    assert (decision.action.value, decision.retry_delay) == ("default", None)


@pytest.mark.parametrize("way", ["on_kill", "exception"])
def test_no_process_is_left_however_the_task_ends(project, run, monkeypatch, way):
    monkeypatch.setenv("STAGE_DOES", "sleep")
    running = operator(grace_s=2.0)

    class Timeout(BaseException):
        pass

    def expire(*_):
        if way == "on_kill":
            running.on_kill()
        else:
            raise Timeout

    before = signal.signal(signal.SIGALRM, expire)
    pids = []

    def watch():
        file = project / "child.pid"
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        pids.extend([int(file.read_text()), running._process.pid])
        os.kill(os.getpid(), signal.SIGALRM)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with pytest.raises(AirflowException if way == "on_kill" else Timeout):
            running.execute(run)
    finally:
        signal.signal(signal.SIGALRM, before)
    watcher.join(5)
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids)
    running.on_kill()


def test_the_command_is_the_one_that_is_safe_in_parallel(project, monkeypatch):
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **_: (_ for _ in ()).throw(RuntimeError(command))
    )
    running = operator(force=True)
    with pytest.raises(RuntimeError) as called:
        running._dvc(project, *running._repro(project))
    assert called.value.args[0][1:] == [
        "-m",
        "dvc",
        "--wait-for-lock",
        "repro",
        "--single-item",
        "--force",
        "one",
    ]
    assert running._environment(project)["PATH"].startswith(str(Path(sys.executable).parent))


def test_errors_of_the_project_become_one_sentence_of_airflow():
    for problem in (BadInput, IntegrityError):
        with pytest.raises(AirflowFailException, match=r"^no such film$"), one_sentence():
            raise problem("no such film")
    with pytest.raises(Outage, match=r"^no server$"), one_sentence():
        raise ResourceError("no server")


def test_tasks_know_the_project_and_its_state(monkeypatch):
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.delenv("OPENMED_HOME", raising=False)
    enter_project()
    assert os.environ["OPENMED_PROJECT"] == str(PROJECT)
    assert os.environ["OPENMED_HOME"] == str(host.HOME)


def test_the_dag_files_import_nothing_heavy():
    code = (
        "import sys, retrain, promote\n"
        "heavy = {'torch', 'timm', 'cv2', 'pandas', 'sklearn', 'mlflow', 'dvc', 'great_expectations'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "dags")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
