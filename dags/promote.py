"""Promotion: gate against the champion, a person's decision, the move of the alias.

A DAG apart from `retrain`, because a review may wait for days and must not hold up the next
retraining. Nothing is promoted by silence.
"""

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import HITLBranchOperator, HITLOperator
from airflow.sdk import DAG, Asset, Param, task
from airflow.sdk.exceptions import AirflowFailException
from stage_operator import enter_project, one_sentence

CANDIDATE = Asset("openmed_candidate")
APPROVE, REJECT = "Approve", "Reject"
ANSWER_WITHIN = timedelta(days=7)

ABOUT = """
Decides whether a candidate becomes the champion.

Starts with every new candidate, or by hand for a version of the registry. The gates compare it with
the champion on the same test films. What they refuse is rejected at once; what they pass waits under
*Required Actions* for a person. Without an answer in seven days the answer is no.
"""

SUBJECT = "Shall version {{ ti.xcom_pull(task_ids='gate')['version'] }} become the champion?"
BODY = """\
{% set gate = ti.xcom_pull(task_ids='gate') -%}
Candidate **{{ gate['version'] }}** against
{{ 'champion **' ~ gate['champion'] ~ '**' if gate['champion'] else 'no champion: it would be the first' }}.

{{ gate['table_markdown'] }}
"""


def reviewers() -> list[dict[str, str]] | None:
    """Returns who may answer: the users in OPENMED_REVIEWERS, comma-separated, or anyone."""
    names = [name.strip() for name in os.environ.get("OPENMED_REVIEWERS", "").split(",")]
    return [{"id": name, "name": name} for name in names if name] or None


class ReviewOperator(HITLBranchOperator):
    """Asks a person, follows the answer, and keeps it under the XCom key `answer`.

    The operator it extends keeps the chosen branch alone, which would lose the person's name.
    """

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Writes the answer down first: following a branch ends the task with an exception."""
        answer = HITLOperator.execute_complete(self, context, event)
        kept = {key: answer[key] for key in ("chosen_options", "params_input", "responded_by_user")}
        context["ti"].xcom_push(
            key="answer", value={**kept, "responded_at": answer["responded_at"].isoformat()}
        )
        return self.do_branch(context, [self.options_mapping[option] for option in answer["chosen_options"]])


def asked_candidate(params: dict[str, Any], events: dict[Any, list[Any]]) -> dict[str, str]:
    """Returns the version given by hand, or what the newest announcement says.

    Raises:
        AirflowFailException: There is neither.
    """
    if params["version"]:
        return {"version": params["version"]}
    announced = [event for found in events.values() for event in found if "version" in (event.extra or {})]
    if not announced:
        raise AirflowFailException("no candidate is named; start the run with the parameter 'version'")
    # Candidates that came while a review was waiting arrive in one run; the last one counts.
    return max(announced, key=lambda event: event.timestamp).extra


@task(
    execution_timeout=timedelta(hours=2),
    doc_md="Compares the candidate with the champion on the same test films.",
)
def gate(*, params: dict[str, Any], triggering_asset_events: Any) -> dict[str, Any]:
    """Returns the verdict with its evidence."""
    from pipeline import promotion

    candidate = asked_candidate(params, dict(triggering_asset_events or {}))
    folder = Path(candidate.get("workspace") or "absent")
    enter_project()
    with one_sentence():
        return promotion.gate(str(candidate["version"]), workspace=folder if folder.is_dir() else None)


@task.branch(doc_md="Sends what passed the gates to a person and everything else to `reject`.")
def triage(*, ti: Any) -> str:
    """Returns the next task."""
    # Only PASS passes: not enough evidence is a no as well.
    return "review" if ti.xcom_pull(task_ids="gate")["verdict"] == "PASS" else "reject"


@task(pool="registry", execution_timeout=timedelta(minutes=30), doc_md="Makes the candidate the champion.")
def promote(*, ti: Any) -> dict[str, Any]:
    """Returns the promotion record."""
    from pipeline import promotion

    judged, answer = ti.xcom_pull(task_ids="gate"), ti.xcom_pull(task_ids="review", key="answer")
    person = answer["responded_by_user"]
    if not person:
        raise AirflowFailException(
            "nobody's name stands under this approval; a person has to answer the review"
        )
    enter_project()
    with one_sentence():
        return promotion.promote(
            judged["version"],
            approved_by=person["name"] or person["id"],
            comment=(answer["params_input"] or {}).get("comment") or "",
            expected_champion=judged["champion"],
        )


@task(
    pool="registry",
    trigger_rule="none_failed_min_one_success",
    execution_timeout=timedelta(minutes=30),
    doc_md="Writes down that the candidate was refused, by whom and why.",
)
def reject(*, ti: Any) -> dict[str, Any]:
    """Returns the record of the refusal."""
    from pipeline import promotion

    judged, answer = ti.xcom_pull(task_ids="gate"), ti.xcom_pull(task_ids="review", key="answer")
    by, reason = refusal(judged, answer)
    enter_project()
    with one_sentence():
        return promotion.reject(judged["version"], by=by, reason=reason)


def refusal(judged: dict[str, Any], answer: dict[str, Any] | None) -> tuple[str, str]:
    """Returns who refused and why, from the gate's result and the answer of the review if any."""
    if answer is None:
        failed = [each["reason"] for each in judged["gates"] if each["verdict"] != "PASS"]
        failed += [each["reason"] for each in judged["comparison"] if each["verdict"] == "FAIL"]
        return "gate", "; ".join(
            reason.rstrip(".") for reason in failed
        ) or f"the gates say {judged['verdict']}"
    person = answer["responded_by_user"]
    if not person:
        return "nobody", f"no answer within {ANSWER_WITHIN.days} days"
    comment = (answer["params_input"] or {}).get("comment")
    return person["name"] or person["id"], comment or "rejected in the review without a comment"


@task(trigger_rule="none_failed_min_one_success", doc_md="Says the outcome in one sentence.")
def tell(*, ti: Any) -> str:
    """Logs and returns the outcome."""
    judged, answer = ti.xcom_pull(task_ids="gate"), ti.xcom_pull(task_ids="review", key="answer")
    version, champion = judged["version"], judged["champion"]
    if ti.xcom_pull(task_ids="promote"):
        person = answer["responded_by_user"]
        before = f"in place of version {champion}" if champion else "as the first one"
        said = (
            f"Version {version} is the champion now, {before}: approved by {person['name'] or person['id']}."
        )
    else:
        by, reason = refusal(judged, answer)
        stays = f"version {champion} stays the champion" if champion else "there is still no champion"
        said = f"Version {version} is rejected by {by} ({reason.rstrip('.')}); {stays}."
    logging.getLogger("airflow.task").info(said)
    return said


with DAG(
    dag_id="promote",
    description="Gate a candidate, ask a person, promote or reject",
    doc_md=ABOUT,
    schedule=[CANDIDATE],
    catchup=False,
    max_active_runs=1,
    params={
        "version": Param(
            None,
            type=["null", "string"],
            pattern="^[0-9]+$",
            title="Version",
            description="Version of the registry to judge; empty for the newest candidate",
        )
    },
    tags=["openmed", "promotion"],
    default_args={"owner": "ml-engineering", "retries": 2, "retry_delay": timedelta(seconds=30)},
) as dag:
    review = ReviewOperator(
        task_id="review",
        subject=SUBJECT,
        body=BODY,
        options=[APPROVE, REJECT],
        options_mapping={APPROVE: "promote", REJECT: "reject"},
        defaults=REJECT,
        response_timeout=ANSWER_WITHIN,
        assigned_users=reviewers(),
        params={"comment": Param(None, type=["null", "string"], maxLength=2000, title="Comment")},
        # An answer within half a second of the question can fail the task; then it asks again.
        retries=3,
        retry_delay=timedelta(seconds=5),
        doc_md="A person says Approve or Reject under *Required Actions*; silence means Reject.",
    )
    triaged, promoted, rejected = triage(), promote(), reject()
    gate() >> triaged >> [review, rejected]
    review >> [promoted, rejected] >> tell()
