"""What tests do with a running Airflow beside what the product does: wait for a run, answer its questions."""

import time
from collections.abc import Callable

from pipeline.tools.airflow_client import AirflowClient


def wait_for_run(
    client: AirflowClient, dag: str, run: str, timeout_s: float, meanwhile: Callable[[], None] = lambda: None
) -> str:
    """Returns the final state of a run."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (state := client.run_state(dag, run)) in ("success", "failed"):
            return state
        meanwhile()
        time.sleep(0.5)
    raise TimeoutError(f"run {run} of {dag} is not done after {timeout_s:g} s")


def decide(
    client: AirflowClient,
    dag: str,
    run: str,
    option: str,
    comment: str | None,
    timeout_s: float,
    task: str | None = None,
) -> str:
    """Answers the questions of a run, again and again (of `task` alone), and returns its final state."""

    def answer() -> None:
        for review in client.pending_reviews():
            asked = review["task_instance"]
            mine = task in (None, asked["task_id"])
            if mine and (asked["dag_id"], asked["dag_run_id"]) == (dag, run):
                client.answer(review, option, comment)

    return wait_for_run(client, dag, run, timeout_s, answer)
