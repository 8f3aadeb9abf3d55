"""The operator on real processes, without a scheduler."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import stage_operator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from stage_operator import PROJECT, DvcStageOperator, enter_project, one_sentence

from openmed.errors import BadInput, ResourceError

STAGE = """
import json, os, pathlib, subprocess, sys, time
do = os.environ.get("STAGE_DOES", "work")
print("stage begins", flush=True)
if do.startswith("exit"):
    sys.exit(int(do[4:]))
if do == "sleep":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    pathlib.Path("child.pid").write_text(str(child.pid))
    time.sleep(300)
pathlib.Path("out").write_text("done")
pathlib.Path("metrics.json").write_text(json.dumps({"auc": 0.9}))
pathlib.Path("place.json").write_text(json.dumps([os.environ["OPENMED_PROJECT"], os.environ["OPENMED_HOME"]]))
"""


RUN = {"run_id": "r"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The workspace of run `r`."""
    from dvc.repo import Repo

    monkeypatch.setattr(stage_operator, "HOME", tmp_path)
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    Repo.init(str(folder), no_scm=True).close()
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(
        textwrap.dedent("""
        stages:
          one:
            cmd: python stage.py
            deps:
              - stage.py
            outs:
              - out
            metrics:
              - metrics.json
        """)
    )
    return folder


@pytest.fixture
def logged(capsys):
    """Returns what the task has logged since the last call; outside a task Airflow logs to stdout."""
    return lambda: capsys.readouterr().out


def operator(workspace: Path, **options) -> DvcStageOperator:
    return DvcStageOperator(task_id="one", stage="one", workspace=str(workspace), **options)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_stage_hands_on_its_lock_entry_and_its_metrics(project, logged):
    result = operator(project).execute(RUN)
    assert result["stage"] == "one" and result["seconds"] > 0
    assert result["metrics"] == {"metrics.json": {"auc": 0.9}}
    assert result["lock"]["outs"][1]["path"] == "out"
    assert json.loads(json.dumps(result)) == result
    assert "stage begins" in logged()
    assert json.loads((project / "place.json").read_text()) == [str(project), str(stage_operator.HOME)]


def test_an_unchanged_stage_runs_again_only_when_forced(project, logged):
    operator(project).execute(RUN)
    logged()
    operator(project, force="False").execute(RUN)
    assert "stage begins" not in logged()
    operator(project, force="True").execute(RUN)
    assert "stage begins" in logged()


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (2, AirflowFailException, "refused: bad input"),
        (3, AirflowFailException, "refused: damaged content"),
        (5, AirflowFailException, "refused: the training diverged"),
        (4, AirflowException, "failed with exit 4"),
        (1, AirflowException, "failed with exit 1"),
    ],
)
def test_only_errors_that_may_pass_are_tried_again(project, monkeypatch, code, error, said):
    monkeypatch.setenv("STAGE_DOES", f"exit{code}")
    with pytest.raises(AirflowException, match=said) as failure:
        operator(project).execute(RUN)
    assert type(failure.value) is error


def test_files_in_use_by_another_stage_are_waited_for(project):
    failure = operator(project)._failure(255, "ERROR: 'out' is busy, it is being blocked by: (PID 1)")
    assert type(failure) is AirflowException and "another stage" in str(failure)


def test_a_copied_state_folder_never_works_in_the_workspaces_of_the_original(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_operator, "HOME", tmp_path / "copy")
    original = tmp_path / "original/runs/r"
    original.mkdir(parents=True)
    with pytest.raises(AirflowFailException, match="copied or moved since"):
        operator(original).execute(RUN)
    assert not list(original.iterdir())
    own = tmp_path / "copy/runs/r"
    assert stage_operator.own_workspace(str(own), "r") == own


@pytest.mark.parametrize("path", ["/tmp/mine", "runs/r", "{home}/runs/r/../s", "{home}/runs/s"])
def test_a_stage_runs_nowhere_but_in_the_workspace_of_its_run(tmp_path, monkeypatch, path):
    monkeypatch.setattr(stage_operator, "HOME", tmp_path)
    with pytest.raises(AirflowFailException, match="is not that of this run"):
        operator(path.format(home=tmp_path)).execute(RUN)


def test_a_workspace_that_is_gone_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_operator, "HOME", tmp_path)
    with pytest.raises(AirflowFailException, match="is gone"):
        operator(tmp_path / "runs/r").execute(RUN)


@pytest.mark.parametrize("way", ["on_kill", "exception"])
def test_no_process_is_left_however_the_task_ends(project, monkeypatch, way):
    monkeypatch.setenv("STAGE_DOES", "sleep")
    running = operator(project, grace_s=2.0)

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
            running.execute(RUN)
    finally:
        signal.signal(signal.SIGALRM, before)
    watcher.join(5)
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids)
    running.on_kill()


def test_the_command_is_the_one_that_is_safe_in_parallel(tmp_path):
    command = operator(tmp_path, force=True)._command()
    assert command[1:] == ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--force", "one"]
    assert operator(tmp_path)._environment(tmp_path)["PATH"].startswith(str(Path(sys.executable).parent))


def test_errors_of_the_project_become_one_sentence_of_airflow():
    with pytest.raises(AirflowFailException, match=r"^no such film$"), one_sentence():
        raise BadInput("no such film")
    with pytest.raises(AirflowException, match=r"^no server$") as failure, one_sentence():
        raise ResourceError("no server")
    assert type(failure.value) is AirflowException


def test_tasks_know_the_project_and_its_state(monkeypatch):
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.delenv("OPENMED_HOME", raising=False)
    enter_project()
    assert os.environ["OPENMED_PROJECT"] == str(PROJECT)
    assert os.environ["OPENMED_HOME"] == str(stage_operator.HOME)


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
