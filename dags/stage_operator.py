"""The one custom operator: runs a stage of dvc.yaml and leaves no process behind.

Only the standard library, yaml, airflow.sdk and what this loads (pydantic) are imported here: Airflow parses
DAG files all the time, and once more in every task.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import host
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from handing import entries, hand_on, workspace_of
from host import DISK_FULL, Outage, one_sentence

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import read_json
from pipeline.tools.dvc_graph import Stage, load_graph, overlap
from pipeline.tools.git import disk_is_full, environment
from pipeline.tools.processes import signal_group

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


class DvcStageOperator(BaseOperator):
    """Runs `dvc repro --single-item` of one stage in the workspace of the run on this host.

    What the stage reads and this host lacks is fetched from the default DVC remote before, what it wrote is
    pushed there after it, and the state of a training while it runs; without a default remote there is one
    host. The output is streamed to the task log. DVC has a session of its own, and whatever ends the task
    (mark failed, timeout, shutdown) ends every process of it.

    Its XCom is `{"stage", "revision", "seconds", "lock", "metrics"}`, sealed: the commit, the stage's entry
    of dvc.lock and the content of its metrics files by path.

    With `learns` it first takes what mapped tasks of the run have learnt from films into this host's store.
    `force`, a template that may render to "True", runs the stage although nothing changed; `grace_s` are the
    seconds between SIGTERM and SIGKILL when the task itself gives up.

    Raises:
        AirflowFailException: The stage refused its input, found damaged content or diverged (exit 2, 3 or
            5); trying again would not help.
        Outage: The disk or the memory is full, or a remote does not answer.
        AirflowException: Anything else, so that Airflow tries again.
    """

    template_fields: Sequence[str] = ("stage", "force")
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        stage: str,
        force: bool | str = False,
        learns: bool = False,
        grace_s: float = _GRACE_S,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.force = force
        self.learns = learns
        self.grace_s = grace_s
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Runs the stage and hands on what it wrote down."""
        from pipeline.versioning import handover
        from pipeline.versioning.training_states import carried
        from pipeline.versioning.workspace import commit_of

        ti = context["ti"]
        workspace = workspace_of(ti)
        with one_sentence():
            stage = load_graph(workspace / "dvc.yaml")[self.stage]
            read = entries(ti, stage.upstream)
            handover.receive(workspace, read, lambda out: _reads(stage, out), dvc=self._dvc)
            handover.begin(workspace, stage.outs)
            if self.learns:
                from pipeline.stages.ranges import take_over

                take_over(host.PROJECT, host.HOME, workspace, self.log.info)
        started = time.monotonic()
        with carried(host.PROJECT, host.HOME, workspace, self.stage, self.log.warning):
            code, output = self._dvc(workspace, *self._repro(workspace))
            if code != 0:
                raise self._failure(code, output)
        seconds = round(time.monotonic() - started, 3)
        with one_sentence():
            told = {"stage": self.stage, "revision": commit_of(workspace), "seconds": seconds}
            told |= {"metrics": _metrics(workspace, stage)}
            lock = handover.hand_on(workspace, self.stage, read, dvc=self._dvc)
            return hand_on(ti, told | {"lock": lock})

    def on_kill(self) -> None:
        """Ends the stage and all its processes."""
        self._end(min(self.grace_s, _GRACE_ON_KILL_S))

    def _repro(self, workspace: Path) -> list[str]:
        from pipeline.versioning.handover import is_unsent

        # What an earlier try made, and could not push, is not made again.
        forced = str(self.force).lower() == "true" and not is_unsent(workspace, self.stage)
        # Without --single-item parallel trainings fail on each other's locks.
        return ["repro", "--single-item", *(["--force"] if forced else []), self.stage]

    def _environment(self, workspace: Path) -> dict[str, str]:
        folders = {"OPENMED_HOME": str(host.HOME), "OPENMED_PROJECT": str(workspace)}
        return environment() | {"PYTHONUNBUFFERED": "1"} | folders

    def _dvc(self, workspace: Path, *arguments: str) -> tuple[int, str]:
        """Runs DVC in a session of its own; returns its exit code and the end of what was printed."""
        self._process = subprocess.Popen(
            # Without --wait-for-lock a stage can fail after it has done its work.
            [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
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
        # Whatever else it came to say: nothing is wrong with what it read.
        if disk_is_full(output):
            return Outage(DISK_FULL)
        if kind := _PERMANENT.get(stage_code):
            return AirflowFailException(
                f"stage {self.stage} refused: {kind} (exit {stage_code}), see its log"
            )
        if stage_code == ResourceError.exit_code:
            return Outage(f"stage {self.stage} lacked a resource (exit {stage_code}), see its log")
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


def _reads(stage: Stage, out: str) -> bool:
    return any(overlap(dep, out) for dep in stage.deps)


def _metrics(workspace: Path, stage: Stage) -> dict[str, Any]:
    paths = {name: workspace / name for name in stage.metrics}
    return {
        name: read_json(path)
        for name, path in paths.items()
        if path.suffix == ".json" and path.is_file() and path.stat().st_size <= 64 * 1024
    }
