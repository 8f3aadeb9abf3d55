"""What a task hands to those after it, on whatever host they run: an XCom under the site's seal.

Whoever may answer a question may write every XCom over REST, but has not the site's secret, which makes the
seal. It is bound to DAG, run and task, so that no XCom counts in the place of another.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import host
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError

from openmed.errors import IntegrityError
from openmed.files import finite
from pipeline.settings.variables import variables

SEAL = "seal"
KEEP_WORKSPACES_DAYS = variables().keep_workspaces_days


def hand_on(ti: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Returns what this task hands on with its seal, to be its XCom."""
    from pipeline.versioning.site import seal

    plain = json.loads(json.dumps(finite(content), default=str))
    with host.one_sentence():
        return {**plain, SEAL: seal(_bound(ti, ti.task_id, plain), host.HOME)}


def handed(ti: Any, task_id: str) -> dict[str, Any] | None:
    """Returns what an earlier task of this run handed on, None where it did not run.

    Raises:
        AirflowFailException: Its seal is not this site's or not that of its content: it was written by hand.
    """
    from pipeline.versioning.site import is_sealed

    shown = ti.xcom_pull(task_ids=task_id)
    if shown is None:
        return None
    content = dict(shown) if isinstance(shown, dict) else {}
    seal, what = content.pop(SEAL, None), f"the XCom of task '{task_id}'"
    with host.one_sentence():
        if not is_sealed(_bound(ti, task_id, content), seal, host.HOME, what):
            raise IntegrityError(
                f"{what} is not what the task handed on: it was written by hand, and nothing is decided on "
                "it; clear that task"
            )
    return content


def needed(ti: Any, task_id: str) -> dict[str, Any]:
    """Returns what an earlier task handed on, as `handed`; AirflowFailException where it did not run."""
    if (content := handed(ti, task_id)) is None:
        raise AirflowFailException(
            f"task '{task_id}' of this run has not run: its state was set by hand, and nothing is decided; "
            "clear that task"
        )
    return content


def task_of(stage: str) -> str:
    """Returns the task that runs a stage: `train@vit` is task `vit` of group `train`."""
    return stage.replace("@", ".")


def entries(ti: Any, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns what DVC wrote down of some stages, of those that have run: stage -> entry of dvc.lock.

    Raises:
        AirflowFailException: As `handed`; or one ran at another commit than `prepare` has fixed since.
    """
    commit, found = needed(ti, "prepare")["revision"], {}
    for stage in stages:
        if (said := handed(ti, task_of(stage))) is None:
            continue
        if (ran_at := said.get("revision", commit)) != commit:
            raise AirflowFailException(
                f"task '{task_of(stage)}' ran at commit {ran_at}, and 'prepare' was cleared since and took "
                f"{commit}: start a new run"
            )
        found[stage] = said["lock"]
    return found


def workspace_of(ti: Any, *, bare: bool = False) -> Path:
    """Returns the workspace of this run on this host, at the commit and seed that `prepare` handed on.

    The first task of a run on a host makes it, bare where that will do, and takes away those that no run
    needs any more.
    """
    from pipeline.versioning import workspace

    begun = needed(ti, "prepare")
    with host.one_sentence():
        if not workspace.path_of(ti.run_id, host.HOME).exists():
            tidy(ti)
        return workspace.find(
            host.PROJECT, begun["revision"], ti.run_id, host.HOME, seed=begun["seed"], bare=bare
        )


def tidy(ti: Any) -> None:
    """Removes the workspaces of this host that no run needs any more, wherever those runs ended."""
    from pipeline.versioning import workspace

    def is_complete(run_id: str) -> bool:
        try:
            return bool(run_id) and ti.get_dagrun_state("retrain", run_id) == "success"
        except AirflowRuntimeError:
            return False  # no run of this DAG, or deleted since: its age decides

    workspace.tidy(host.PROJECT, host.HOME, KEEP_WORKSPACES_DAYS, is_complete)


def _bound(ti: Any, task_id: str, content: dict[str, Any]) -> str:
    return json.dumps([ti.dag_id, ti.run_id, task_id, _as_stored(content)], sort_keys=True)


def _as_stored(value: Any) -> Any:
    """Returns a value as every database gives it back: Postgres takes 1e22 for a whole number, -0.0 for 0."""
    if isinstance(value, dict):
        return {key: _as_stored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_stored(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
