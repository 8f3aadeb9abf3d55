"""The one custom operator: runs a stage of dvc.yaml and leaves no process behind.

Only the standard library, yaml, airflow.sdk and what this loads (pydantic) are imported here: Airflow parses
DAG files all the time, and once more in every task.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from openmed.errors import BadInput, IntegrityError, OpenMedError, ResourceError
from openmed.files import read_json
from pipeline.settings.variables import variables
from pipeline.settings.yaml_file import read_mapping
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.processes import signal_group

_VARIABLES = variables()
PROJECT = (_VARIABLES.project or Path(__file__).resolve().parents[1]).resolve()
HOME = (_VARIABLES.home or PROJECT / ".openmed").resolve()
TIMEZONE = _VARIABLES.timezone

# DVC ends with 255 whatever the stage ended with; only its text has the stage's own exit code.
_STAGE_EXIT = re.compile(r"exited with (-?\d+)")
# 5 is that of openmed.training.loop.TrainingDiverged, which would load PyTorch.
_PERMANENT = {
    BadInput.exit_code: "bad input",
    IntegrityError.exit_code: "damaged content",
    5: "the training diverged",
}
# Airflow sends SIGTERM to the task and kills it 5 s later, so on_kill must be done before that.
_GRACE_ON_KILL_S = 3.0
_GRACE_S = 10.0


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns the project's errors into Airflow's: bad input fails at once, the rest is retried."""
    try:
        yield
    except ResourceError as error:
        raise AirflowException(str(error)) from None
    except OpenMedError as error:
        raise AirflowFailException(str(error)) from None


def own_workspace(path: str, run_id: str) -> Path:
    """Returns the workspace of a run, which stands in an XCom that others may write.

    Raises:
        AirflowFailException: It is another one: this state folder was copied or moved since, or it was
            written by hand.
    """
    from pipeline.versioning.workspace import path_of

    if (workspace := path_of(run_id, HOME)) != Path(path):
        raise AirflowFailException(
            f"workspace {path} is not that of this run in the state folder {HOME}, which was copied or moved "
            "since: start the run again from 'prepare'"
        )
    return workspace


def enter_project() -> None:
    """Tells code that runs inside this task where the project and its state are."""
    os.environ["OPENMED_PROJECT"] = str(PROJECT)
    os.environ["OPENMED_HOME"] = str(HOME)


class DvcStageOperator(BaseOperator):
    """Runs `dvc repro --single-item` of one stage in the workspace of the run.

    The output is streamed to the task log. The stage has a session of its own, and whatever ends
    the task (mark failed, timeout, shutdown) ends every process of it.

    Its XCom is `{"stage", "seconds", "lock", "metrics"}`: the stage's entry of dvc.lock and the
    content of its metrics files by path.

    `force`, a template that may render to "True", runs the stage although nothing changed; `grace_s` are the
    seconds between SIGTERM and SIGKILL when the task itself gives up.

    Raises:
        AirflowFailException: The stage refused its input, found damaged content or diverged (exit 2, 3 or
            5); trying again would not help.
        AirflowException: Anything else, so that Airflow tries again.
    """

    template_fields: Sequence[str] = ("stage", "workspace", "force")
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        stage: str,
        workspace: str,
        force: bool | str = False,
        grace_s: float = _GRACE_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.workspace = workspace
        self.force = force
        self.grace_s = grace_s
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Runs the stage and returns what it wrote down."""
        workspace = own_workspace(self.workspace, context["run_id"])
        started = time.monotonic()
        code, output = self._run(workspace)
        seconds = round(time.monotonic() - started, 3)
        if code != 0:
            raise self._failure(code, output)
        return {"stage": self.stage, "seconds": seconds, **_evidence(workspace, self.stage)}

    def on_kill(self) -> None:
        """Ends the stage and all its processes."""
        self._end(min(self.grace_s, _GRACE_ON_KILL_S))

    def _command(self) -> list[str]:
        # Without --wait-for-lock a stage can fail after it has done its work, and without
        # --single-item parallel trainings fail on each other's locks.
        forced = ["--force"] if str(self.force).lower() == "true" else []
        repro = ["repro", "--single-item", *forced, self.stage]
        return [sys.executable, "-m", "dvc", "--wait-for-lock", *repro]

    def _environment(self, workspace: Path) -> dict[str, str]:
        # dvc.yaml says `python`: it has to be the interpreter that Airflow runs on.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        folders = {"OPENMED_HOME": str(HOME), "OPENMED_PROJECT": str(workspace)}
        return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"} | folders

    def _run(self, workspace: Path) -> tuple[int, str]:
        """Returns DVC's exit code and the end of what was printed."""
        if not workspace.is_dir():
            raise AirflowFailException(f"workspace {workspace} is gone; start the run again from 'prepare'")
        self._process = subprocess.Popen(
            self._command(),
            cwd=workspace,
            env=self._environment(workspace),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        tail: list[str] = []
        try:
            for line in self._process.stdout or ():
                self.log.info("%s", line.rstrip())
                tail = [*tail[-49:], line]
            return self._process.wait(), "".join(tail)
        finally:
            # Every way out passes here: the end, a timeout, a signal. After a good end the group
            # is empty unless the stage left a child behind.
            self._end(self.grace_s)
            self._process = None

    def _failure(self, code: int, output: str) -> Exception:
        exits = _STAGE_EXIT.findall(output)
        stage_code = int(exits[-1]) if exits else code
        if kind := _PERMANENT.get(stage_code):
            return AirflowFailException(
                f"stage {self.stage} refused: {kind} (exit {stage_code}), see its log"
            )
        if "is busy" in output:
            return AirflowException(f"stage {self.stage} waits for files another stage is using")
        return AirflowException(f"stage {self.stage} failed with exit {stage_code}, see its log")

    def _end(self, grace_s: float) -> None:
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + grace_s
        signal_group(process.pid, signal.SIGTERM)
        while signal_group(process.pid, 0) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.05)
        signal_group(process.pid, signal.SIGKILL)
        process.poll()


def _evidence(workspace: Path, stage: str) -> dict[str, Any]:
    lock_file = workspace / "dvc.lock"
    lock = read_mapping(lock_file) if lock_file.exists() else {}
    known = load_graph(workspace / "dvc.yaml").get(stage)
    metrics = {}
    for name in known.metrics if known else ():
        path = workspace / name
        if path.suffix == ".json" and path.is_file() and path.stat().st_size <= 64 * 1024:
            metrics[name] = read_json(path)
    return {"lock": lock.get("stages", {}).get(stage), "metrics": metrics}
