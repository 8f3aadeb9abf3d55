"""What an account of role `user` can do over REST to a promotion, on a real local Airflow, MLflow and record.

Nothing is trained or judged here: every version passes its gates.
"""

import shutil
import textwrap
import time
from pathlib import Path

import pytest

from openmed.errors import ResourceError
from pipeline import ledger
from pipeline.local.services import Services
from pipeline.settings.people import logins
from pipeline.tools.airflow_client import DATASET, running_airflow
from pipeline.tools.git import git
from tests.airflow_runs import wait_for_run
from tests.conftest import answered
from tests.pipeline.local.test_services import ROOT, toy  # noqa: F401

STUBS = {
    "pipeline/registry/__init__.py": """
        from types import SimpleNamespace
        from pipeline import ledger
        from pipeline.ledger import history
        from pipeline.registry.reviews import keep_review
        from pipeline.tracking.store import EXPERIMENT, MODEL_NAME, connect

        def is_read(out):
            return True

        def register_candidates(workspace, *, run_key, revision, started_by):
            with connect() as client:
                if not client.search_registered_models():
                    client.create_registered_model(MODEL_NAME)
                run = client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id)
                made = client.create_model_version(MODEL_NAME, run.info.artifact_uri, run.info.run_id)
                version = str(made.version)
                ledger.register(client, version, {"started_by": started_by or ""})
            chosen = {"version": version, "architecture": "vit", "verdict": "PASS"}
            return SimpleNamespace(**chosen, order=[version], run_id=run.info.run_id)
        """,
    "pipeline/promotion/gates/__init__.py": "",
    "pipeline/promotion/gates/verdict.py": """
        from pipeline import ledger
        from pipeline.promotion.judgement import Judgement

        def judge_version(version, workspace):
            judged = Judgement(
                version=version, architecture="vit", model_sha256="0", champion=ledger.champion(),
                verdict="PASS", grounds="", gates=[], comparison=[], note="", films_compared=0,
                films_left_out=0, limits=[], reviewers={"clinical": "Films.", "technical": "Code."},
                started_by=ledger.history(version)[0].content["started_by"] or None,
                accounts={"clinical": ["reviewer"], "technical": ["engineer"]},
            )
            return judged, None, None
        """,
    "pipeline/promotion/markdown.py": """
        def gate_tables(judged):
            return "| gate |"

        def film_tables(groups, addresses, *, maps_trusted):
            return ""
        """,
    "pipeline/promotion/review.py": """
        from types import SimpleNamespace

        def build_review(judged, refused, evidence, compared, workspace):
            return SimpleNamespace(page="<p>", pictures={}, groups=[], maps_trusted=True)
        """,
}


@pytest.fixture
def project(toy) -> Path:  # noqa: F811
    """The toy project with the real record of decisions."""
    for name, text in STUBS.items():
        (toy / name).parent.mkdir(parents=True, exist_ok=True)
        (toy / name).write_text(textwrap.dedent(text))
    for name in ("pipeline/promotion/actions.py", "pipeline/registry/reviews.py"):
        shutil.copy(ROOT / name, toy / name)
    git(toy, "add", "--all")
    git(toy, "-c", "user.name=Test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "R")
    return toy


class Run:
    """One run of the DAG promote, as an account sees it."""

    def __init__(self, client, run_id: str) -> None:
        self.client, self.id, self.path = client, run_id, f"dags/promote/dagRuns/{run_id}/taskInstances"
        self.path = self.path.replace(":", "%3A").replace("+", "%2B")

    def wait_for(self, task: str) -> None:
        """Waits until a question is asked."""
        while self.client.task_states("promote", self.id).get(task) != "awaiting_input":
            assert self.client.run_state("promote", self.id) in ("queued", "running")
            time.sleep(0.5)
        time.sleep(4)  # the worker reports its own end

    def forge(self, task: str, name: str) -> None:
        """Writes an answer as an XCom, in somebody's name."""
        user = {"id": name, "name": name}
        said = {"chosen_options": ["Approve"], "params_input": {}, "responded_by_user": user}
        entry = {"key": "answer", "value": {**said, "responded_at": "2026-01-01T00:00:00+00:00"}}
        self.client.request("POST", f"{self.path}/{task}/xcomEntries", entry)

    def mark(self, task: str, state: str) -> None:
        """Sets the state of a task."""
        self.client.set_task_state("promote", self.id, task, state)

    def clear(self, *tasks: str) -> None:
        """Lets tasks run again."""
        body = {"dry_run": False, "dag_run_id": self.id, "task_ids": list(tasks), "only_failed": False}
        self.client.request("POST", "dags/promote/clearTaskInstances", body)

    def say(self, option: str, comment: str | None, role: str) -> None:
        """Answers a question once."""
        body = {"chosen_options": [option], "params_input": {"comment": comment}}
        self.client.request("PATCH", f"{self.path}/review.{role}/-1/hitlDetails", body)

    def end(self) -> str:
        """Waits for the end of the run."""
        return wait_for_run(self.client, "promote", self.id, 120)

    def outcome(self, task: str) -> str:
        """Waits for the end of a task that was cleared."""
        while (state := self.client.task_states("promote", self.id)[task]) not in ("failed", "success"):
            time.sleep(0.5)
        return state

    def said(self, task: str) -> str:
        """Returns what the first attempt of a task logged."""
        return self.client.task_log("promote", self.id, task)


def newest(client, dag: str, known: int) -> str:
    while len(runs := client.runs(dag)) <= known:
        time.sleep(0.5)
    return runs[-1]["dag_run_id"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_account_of_role_user_moves_the_champion(project, tmp_path, monkeypatch):
    home = tmp_path / "home"
    with Services(project, home, mlflow_port=None, schedule="off") as running:
        running.wait_healthy(180)
        for dag in ("retrain", "promote"):
            running.wait_for_dag(dag)
        admin, reviewer, engineer = (running.client(user) for user in ("admin", "reviewer", "engineer"))
        monkeypatch.setenv("OPENMED_HOME", str(home))
        monkeypatch.setenv("OPENMED_PROJECT", str(project))

        # As `openmed data add` does; the starter travels with the event, and `user` can make none.
        running_airflow(home).emit(DATASET, {"films": 3})
        asset = engineer.request("GET", f"assets?name_pattern={DATASET}")["assets"][0]["id"]
        with pytest.raises(ResourceError, match="answered 403"):
            engineer.request("POST", "assets/events", {"asset_id": asset, "extra": {"started_by": ["x"]}})
        first = newest(engineer, "promote", 0)
        started_by = ", ".join(sorted({"admin", logins()["system"]}))
        assert ledger.history("1")[0].content == {"started_by": started_by}
        retrained = engineer.runs("retrain")[0]["dag_run_id"]
        assert engineer.xcom("retrain", retrained, "register")["version"] == "1"
        assert wait_for_run(engineer, "retrain", retrained, 120) == "success"
        assert "is kept for the gate" in engineer.xcom("retrain", retrained, "cleanup")

        # The attack of the issue, word by word; before it the role that is another's.
        run = Run(engineer, first)
        run.wait_for("review.clinical")
        with pytest.raises(ResourceError, match="answered 403 to PATCH"):
            run.say("Approve", None, "clinical")
        question = next(each for each in engineer.pending_reviews())
        assert f"started by {started_by}." in question["body"]
        run.forge("review.clinical", "Dr Adams")
        run.forge("review.technical", "Ms Brown")
        for task, state in (
            ("reject", "skipped"),
            ("review.clinical", "success"),
            ("review.technical", "success"),
        ):
            run.mark(task, state)
        assert run.end() == "failed"
        assert "Airflow has no record of an answer as clinical" in engineer.task_log(
            "promote", first, "promote"
        )
        assert ledger.champion() is None

        # The gate's result is rewritten while the question waits.
        third = engineer.trigger("promote", {"version": "1"})
        run = Run(engineer, third)
        run.wait_for("review.clinical")
        judged = engineer.xcom("promote", third, "gate")
        engineer.request(
            "PATCH", f"{run.path}/gate/xcomEntries/return_value", {"value": {**judged, "version": "9"}}
        )
        Run(reviewer, third).say("Approve", None, "clinical")
        assert run.end() == "failed"
        assert "the XCom of task 'gate' is not what" in engineer.task_log(
            "promote", third, "review.clinical", 1
        )
        assert ledger.champion() is None

        # Who retrained neither starts the promotion by hand nor answers in it.
        engineer.trigger("retrain", {"seed": 7})
        fourth = newest(engineer, "promote", 2)
        run = Run(engineer, fourth)
        run.wait_for("review.clinical")
        assert ledger.history("2")[0].content == {"started_by": "engineer"}
        Run(reviewer, fourth).say("Approve", None, "clinical")
        run.wait_for("review.technical")
        run.say("Approve", None, "technical")
        run.wait_for("review.technical")
        said = run.said("review.technical")
        assert "engineer started the retraining of version 2 and cannot approve it" in said
        with pytest.raises(ResourceError, match="answered 403"):
            Run(admin, fourth).say("Approve", None, "technical")
        run.mark("review.technical", "success")
        run.end()
        assert "Airflow has no record of an answer as technical" in engineer.task_log(
            "promote", fourth, "promote"
        )
        run = Run(engineer, engineer.trigger("promote", {"version": "2"}))
        assert run.end() == "failed"
        assert "engineer started the retraining of version 2 and cannot start its" in run.said("gate")
        assert ledger.champion() is None

        # A no is in the record when it is said, although its rejection was skipped beforehand.
        second = reviewer.trigger("promote", {"version": "2"})
        run = Run(engineer, second)
        run.wait_for("review.clinical")
        run.mark("reject", "skipped")
        Run(reviewer, second).say("Reject", "edges are wrong", "clinical")
        run.end()
        for role in ("technical", "clinical"):
            run.forge(f"review.{role}", "reviewer")
        run.mark("review.technical", "success")
        run.clear("promote")
        assert run.outcome("promote") == "failed"
        assert "reviewer (clinical) said no: a state was set by hand" in run.said("promote")
        assert ledger.history("2")[-1].by == "reviewer (clinical)"
        assert ledger.champion() is None

        # A review is marked as done before its no arrives: nothing goes on with that, and it is found.
        admin.trigger("retrain", {"seed": 8})
        fifth = newest(engineer, "promote", 5)
        run = Run(engineer, fifth)
        run.wait_for("review.clinical")
        run.mark("review.clinical", "success")
        Run(reviewer, fifth).say("Reject", "blurred", "clinical")
        run.wait_for("review.technical")
        run.say("Approve", None, "technical")
        assert run.end() == "failed"
        assert "reviewer (clinical) said no: a state was set by hand" in run.said("promote")
        assert ledger.history("3")[-1].content == {"by": "reviewer (clinical)", "reason": "blurred"}

        # What two people say in their roles counts.
        sixth = reviewer.trigger("promote", {"version": "1"})
        assert answered([reviewer, engineer], sixth) == "success"
        assert ledger.champion() == "1"
        promoted = next(entry for entry in ledger.history("1") if entry.event == ledger.PROMOTED)
        assert promoted.content["approvals"] == {"clinical": "reviewer", "technical": "engineer"}
