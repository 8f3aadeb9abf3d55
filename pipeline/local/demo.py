"""The demo: both DAGs once, under a real local Airflow, with the review answered over its REST API."""

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openmed.errors import OpenMedError, ResourceError
from pipeline import ledger, registry
from pipeline.local.services import ENGINEER, REVIEWER, Services
from pipeline.settings.people import logins
from pipeline.tools.airflow_client import AirflowClient
from pipeline.tools.git import check_commit, dvc, git, run
from pipeline.tools.processes import ending_signals
from pipeline.versioning import workspace

_RETRAIN_WITHIN_S = 4 * 3600
_DECIDE_WITHIN_S = 1800
_FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}
_AUTHOR = ("-c", "user.name=openmed demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false")


class DemoFailed(OpenMedError):
    """A DAG run of the demo did not end well."""


def run_demo(
    project: Path, home: Path, films: Path | None, limit: int | None, patients_from: str = "auto"
) -> None:
    """Retrains on the sample, or on about `limit` of the given films, and promotes what passes.

    Raises:
        DemoFailed: A run failed.
    """
    started = time.monotonic()
    # Without this the demo would end at a signal and leave the services running.
    for number in {*ending_signals()} - {signal.SIGINT}:
        signal.signal(number, lambda number, frame: sys.exit(128 + number))

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    options = ["--patients-from", patients_from] + ([] if limit is None else ["--limit", str(limit)])
    revision = _head(project) if films is None else _commit_films(project, home, films, options, say)
    say("Starting Airflow (API server, scheduler, DAG processor, triggerer) and MLflow on loopback")
    # The demo's networks are small: three side by side keep the cores busier than one after another.
    with Services(project, home, schedule="off", gpu_slots=3) as services:
        services.wait_healthy(180)
        for dag in ("retrain", "promote"):
            services.wait_for_dag(dag)
        admin, people = services.client(), [services.client(user) for user in (REVIEWER, ENGINEER)]
        say(f"Airflow is at {services.airflow_url}, MLflow at {services.mlflow_url}")
        retrain = _retrain(admin, revision, say)
        promote, outcome = _decide(admin, people, retrain, home, say)
        judged = admin.xcom("promote", promote, "gate")
        say("Stopping Airflow and MLflow")
    _conclude(judged, outcome)


def _head(project: Path) -> str:
    check_commit(project)
    if git(project, "status", "--porcelain"):
        print("Note: the demo runs the last commit; your uncommitted changes take no part.")
    return git(project, "rev-parse", "HEAD")


def _commit_films(
    project: Path, home: Path, films: Path, options: list[str], say: Callable[[str], None]
) -> str:
    """Makes a data version of the films as a commit of its own, beside all branches."""
    films = films.absolute()
    say(f"Importing {films.name}")
    folder = workspace.create(project, "HEAD", "demo-data", home)
    try:
        # The workspace is this run's own; what it got from the cache makes room.
        shutil.rmtree(folder / "data")
        command = (sys.executable, "-m", "pipeline.commands.app", "data", "import", str(films), *options)
        # The site's secret is the project's, not that of the folder of this run.
        done = run(folder, *command, OPENMED_HOME=str(home))
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise DemoFailed(lines[-1].removeprefix("openmed: ") if lines else f"{films.name} was not taken")
        dvc(folder, "add", "data")
        if git(folder, "status", "--porcelain"):
            git(folder, *_AUTHOR, "commit", "--quiet", "--all", "--message", f"Use {films.name} as data")
        revision = git(folder, "rev-parse", "HEAD")
    finally:
        workspace.remove(project, folder)
    # Without a reference git would collect the commit some day.
    git(project, "update-ref", "refs/openmed/demo", revision)
    return revision


def _retrain(admin: AirflowClient, revision: str, say: Callable[[str], None]) -> str:
    """Runs the DAG retrain to its end, printing what each task becomes, and returns its run id."""
    run = f"demo-{time.strftime('%Y%m%dT%H%M%S')}"
    for dag in ("promote", "retrain"):
        admin.set_paused(dag, False)
    # A second demo may be on quite other films than the champion's: whoever starts it means that.
    admin.trigger("retrain", {"revision": revision, "note": "demo", "accept_drift": True}, run)
    say(f"DAG retrain, run {run}, on commit {revision[:10]}")
    seen: dict[str, str | None] = {}
    deadline = time.monotonic() + _RETRAIN_WITHIN_S
    while time.monotonic() < deadline:
        state = admin.run_state("retrain", run)
        for each in admin.task_instances("retrain", run):
            task, now = each["task_id"], each["state"]
            if now != seen.get(task) and now in _FINAL | {"running", "up_for_retry"}:
                took = f" in {each['duration']:.0f} s" if now in _FINAL and each["duration"] else ""
                say(f"  retrain.{task}: {now}{took}")
            seen[task] = now
            if now in ("failed", "up_for_retry") and seen.get(f"{task} log") != now:
                seen[f"{task} log"] = now
                print("\n".join(admin.task_log("retrain", run, task, each["try_number"]).splitlines()[-15:]))
        if state == "failed":
            raise DemoFailed(f"run {run} of DAG retrain failed: its tasks' last lines are above")
        if state == "success":
            return run
        time.sleep(1)
    raise ResourceError(f"run {run} of DAG retrain took longer than {_RETRAIN_WITHIN_S // 3600} hours")


def _decide(
    admin: AirflowClient, people: list[AirflowClient], retrain: str, home: Path, say: Callable[[str], None]
) -> tuple[str, str]:
    """Waits for the promotion that the candidate starts, approves it, and returns run id and outcome.

    Each role of the change plan is answered by the next of the people.
    """
    candidate = admin.xcom("retrain", retrain, "register")
    say(
        f"Candidate: version {candidate['version']}, {candidate['architecture']}, "
        f"gates {candidate['verdict']}"
    )
    run = _promotion_of(admin, candidate["version"])
    say(f"DAG promote, run {run}")
    judged = admin.xcom("promote", run, "gate")
    answering: dict[str, AirflowClient] = {}
    while admin.run_state("promote", run) not in ("success", "failed"):
        for review in admin.pending_reviews():
            task = review["task_instance"]
            if (task["dag_id"], task["dag_run_id"]) == ("promote", run):
                if not answering:
                    # A terminal shows no pictures.
                    body = [line for line in review["body"].strip().splitlines() if "![" not in line]
                    print("", review["subject"], "", *body, "", sep="\n")
                role = task["task_id"].removeprefix("review.")
                person = answering.setdefault(role, people[len(answering) % len(people)])
                signed = _sign(home, judged, role, person.username)
                say(f"The {role} review waits.")
                say(f"THE DEMO APPROVES ON YOUR BEHALF, as {person.username}, {signed}.")
                person.answer(review, "Approve", "Approved by the demo on the user's behalf.")
        time.sleep(1)
    states = admin.task_states("promote", run)
    if admin.run_state("promote", run) == "failed":
        raise DemoFailed(f"run {run} of DAG promote failed: {states}")
    return run, "promoted" if states["promote"] == "success" else "rejected"


def _sign(home: Path, judged: dict[str, Any], role: str, name: str) -> str:
    """Signs the yes of a role with a key of the moment, and says with which."""
    if shutil.which("ssh-keygen") is None:
        return "without a signature: there is no ssh-keygen here"
    with tempfile.TemporaryDirectory(dir=home) as folder:
        key = Path(folder) / "key"
        made = run(
            home, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "made for the demo", "-f", str(key)
        )
        if made.returncode:
            raise ResourceError(f"ssh-keygen makes no key: {' '.join(made.stderr.split())[:200]}")
        entry = ledger.sign(
            judged["version"],
            role=role,
            by=name,
            caller=ledger.Caller(logins(), key),
            judge=lambda: ledger.Basis.of(judged),
        )
    return f"with a key made for the demo ({entry.content['key']})"


def _promotion_of(admin: AirflowClient, version: str) -> str:
    """Run of the DAG promote that judges this version."""
    deadline = time.monotonic() + _DECIDE_WITHIN_S
    while time.monotonic() < deadline:
        for each in reversed(admin.runs("promote")):
            if admin.task_states("promote", each["dag_run_id"]).get("gate") == "success":
                judged = admin.xcom("promote", each["dag_run_id"], "gate")
                if judged["first"] == version:
                    return each["dag_run_id"]
        time.sleep(1)
    raise ResourceError(f"no run of DAG promote judged version {version} within {_DECIDE_WITHIN_S} s")


def _conclude(judged: dict[str, Any], outcome: str) -> None:
    print(f"\n{judged['table_markdown']}\n")
    name, judgements = registry.MODEL_NAME, [*judged["refused"], judged]
    if outcome == "promoted":
        print(f"Version {judged['version']} ({judged['architecture']}) is the champion of {name}.")
    elif judged["champion"]:
        print(f"No candidate passed its gates; version {judged['champion']} stays the champion of {name}.")
    else:
        print(f"No candidate may become the champion of {name}: none passed its gates.")
    for each in judgements[:-1] if outcome == "promoted" else judgements:
        print(f"  Version {each['version']} ({each['architecture']}) was rejected: {each['grounds']}.")
    live = "@champion" if outcome == "promoted" or judged["champion"] else f"/{judged['version']}"
    print(f"Report:     {registry.artifact(judged['version'], 'report.html')}")
    print("Web pages:  make up   (Airflow and MLflow with these runs)")
    print(f"Try it:     .venv/bin/openmed evaluate models:/{name}{live} FOLDER_OR_ZIP --json")
