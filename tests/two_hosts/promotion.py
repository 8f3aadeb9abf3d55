"""The promotion of what the two hosts trained, with both reviews answered over Airflow's API."""

import json
import time

from openmed.errors import ResourceError
from tests.two_hosts.retraining import Run
from tests.two_hosts.scene import Scene

_REVIEWERS = {"clinical": "reviewer", "technical": "engineer"}
_WITHIN_S = 1200


def promoted(scene: Scene, retraining: Run) -> str:
    """Waits for the promotion that a retraining started, says yes in both roles, and tells what came of it.

    Raises:
        RuntimeError: It ended without a champion, or did not end.
    """
    admin, deadline = scene.client(), time.monotonic() + _WITHIN_S
    run = None
    while time.monotonic() < deadline:
        run = run or next((each["dag_run_id"] for each in admin.runs("promote")), None)
        if run is None:
            time.sleep(1)
            continue
        _answer(scene, run)
        if admin.run_state("promote", run) in ("success", "failed"):
            break
        time.sleep(1)
    if run is None or admin.task_states("promote", run).get("promote") != "success":
        states = admin.task_states("promote", run) if run else "it never began"
        raise RuntimeError(f"the promotion after {retraining.name} made no champion: {states}")
    tasks = admin.task_instances("promote", run)
    where = {each["task_id"]: each["hostname"] for each in tasks if each["task_id"] in ("gate", "promote")}
    judged = admin.xcom("promote", run, "gate")
    told = scene.on("solo", "-m", "pipeline.commands.app", "registry", "verify", judged["version"], "--json")
    links = json.loads(told)
    return (
        f"promote: version {judged['version']} ({judged['architecture']}) is the champion, judged on "
        f"{where['gate']}, promoted on {where['promote']}; "
        f"verified on a third machine: {len(links)} links intact"
    )


def _answer(scene: Scene, run: str) -> None:
    for role, user in _REVIEWERS.items():
        person = scene.client(user)
        try:
            waiting = person.pending_reviews()
        except ResourceError:
            continue
        for review in waiting:
            task = review["task_instance"]
            if (task["dag_run_id"], task["task_id"]) == (run, f"review.{role}"):
                person.answer(review, "Approve", f"Seen by {user}.")
