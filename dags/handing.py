"""What a task hands to those after it where nobody may rewrite it: a file beside the XCom.

Whoever may answer a question may write every XCom over REST; the state folder is out of that reach.
"""

import json
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from stage_operator import HOME

from openmed.files import read_json, write_json


def hand_on(ti: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Keeps what this task hands on, and returns it as its XCom."""
    file = _file(ti, ti.task_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
    return read_json(file)


def handed(ti: Any, task_id: str) -> dict[str, Any] | None:
    """Returns what an earlier task of this run handed on, None where it did not run.

    Raises:
        AirflowFailException: Its XCom says something else: it was written by hand.
    """
    file = _file(ti, task_id)
    kept, shown = read_json(file) if file.is_file() else None, ti.xcom_pull(task_ids=task_id)
    if json.dumps(kept, sort_keys=True) != json.dumps(shown, sort_keys=True):
        raise AirflowFailException(
            f"the XCom of task '{task_id}' is not what the task handed on: it was written by hand, and "
            "nothing is decided on it; clear that task"
        )
    return kept


def needed(ti: Any, task_id: str) -> dict[str, Any]:
    """Returns what an earlier task handed on, as `handed`; AirflowFailException where it did not run."""
    if (content := handed(ti, task_id)) is None:
        raise AirflowFailException(
            f"task '{task_id}' of this run has not run: its state was set by hand, and nothing is decided; "
            "clear that task"
        )
    return content


def _file(ti: Any, task_id: str) -> Path:
    from pipeline.versioning.workspace import path_of

    return HOME / "handed" / ti.dag_id / path_of(ti.run_id, HOME).name / f"{task_id}.json"
