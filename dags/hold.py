"""Hold: people are told that the champion is on hold, and one of them decides what follows.

A DAG apart from `score`, because an answer may take days.
"""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, Metadata, task
from airflow.sdk.exceptions import AirflowFailException
from question_operator import QuestionOperator, comment_of, named_people, person
from stage_operator import enter_project, one_sentence

HOLD = Asset("openmed_hold")
DATASET = Asset("openmed_dataset")
KEEP, RELEASE, RETRAIN = "Keep the hold", "Release", "Keep it and retrain"
ANSWER_WITHIN = timedelta(days=7)

ABOUT = """
Starts when monitoring has put the champion on hold. People are told, by a message to OPENMED_ALERT_URL
where it is set, and asked under *Required Actions*: keep the hold, release the version (which needs a
reason), or keep it and retrain on the committed data. Without an answer in seven days the hold stays. A
rollback, or the promotion of another version, ends it too.
"""

SUBJECT = "Version {{ ti.xcom_pull(task_ids='tell')['version'] }} is on hold: what shall follow?"
BODY = """\
{{ ti.xcom_pull(task_ids='tell')['sentence'] }}

The page with pictures: {{ ti.xcom_pull(task_ids='tell')['page'] }}

A release needs a reason in the comment.
"""


class HoldOperator(QuestionOperator):
    """Asks what shall follow a hold."""

    def check(self, answer: dict[str, Any], ti: Any) -> None:
        """Refuses a release that the ledger would not take."""
        from pipeline import ledger

        if answer["chosen_options"] == [RELEASE]:
            ledger.signed(ledger.RELEASED, by=person(answer), reason=comment_of(answer))


@task(execution_timeout=timedelta(minutes=5), doc_md="Says what was announced.")
def tell(*, triggering_asset_events: Any) -> dict[str, str]:
    """Returns what the newest announcement says."""
    announced = [event for events in dict(triggering_asset_events or {}).values() for event in events]
    if not announced:
        raise AirflowFailException("no hold was announced: this DAG is started by the DAG `score`")
    announcement = max(announced, key=lambda event: event.timestamp).extra
    logging.getLogger("airflow.task").warning(announcement["sentence"])
    return {key: announcement[key] for key in ("version", "sentence", "page")}


@task(
    execution_timeout=timedelta(minutes=5),
    doc_md="Posts the sentence to OPENMED_ALERT_URL, where it is set. The question is asked in any case.",
)
def alert(*, ti: Any) -> bool:
    """Returns whether there was somewhere to post it."""
    from pipeline.tools.alert import send_alert

    announcement = ti.xcom_pull(task_ids="tell")
    with one_sentence():
        return send_alert(
            f"OpenMed: version {announcement['version']} is on hold. {announcement['sentence']}"
        )


@task(doc_md="The hold stays; who said so is in the answer of `ask`.")
def keep(*, ti: Any) -> str:
    """Says that nothing changes."""
    by = person(ti.xcom_pull(task_ids="ask", key="answer")) or "nobody: no answer came"
    return f"Version {ti.xcom_pull(task_ids='tell')['version']} stays on hold, by {by}."


@task(pool="registry", execution_timeout=timedelta(minutes=30), doc_md="Takes the version off hold.")
def release(*, ti: Any) -> dict[str, Any]:
    """Returns the entry of the record."""
    from pipeline import ledger

    version, answer = ti.xcom_pull(task_ids="tell")["version"], ti.xcom_pull(task_ids="ask", key="answer")
    enter_project()
    with one_sentence():
        return ledger.release(version, by=person(answer), reason=comment_of(answer)).to_json()


@task(outlets=[DATASET], execution_timeout=timedelta(minutes=5), doc_md="Starts the DAG `retrain`.")
def retrain(*, ti: Any) -> Any:
    """Emits the asset that starts a retraining; the version stays on hold."""
    yield Metadata(DATASET, {"reason": f"version {ti.xcom_pull(task_ids='tell')['version']} is on hold"})


with DAG(
    dag_id="hold",
    description="Ask what shall follow a hold",
    doc_md=ABOUT,
    schedule=[HOLD],
    catchup=False,
    max_active_runs=1,
    tags=["openmed", "live"],
    default_args={"owner": "ml-engineering", "retries": 2, "retry_delay": timedelta(seconds=30)},
) as dag:
    question = HoldOperator(
        task_id="ask",
        subject=SUBJECT,
        body=BODY,
        options=[KEEP, RELEASE, RETRAIN],
        options_mapping={KEEP: "keep", RELEASE: "release", RETRAIN: "retrain"},
        defaults=KEEP,
        response_timeout=ANSWER_WITHIN,
        assigned_users=named_people("hold"),
        doc_md="A person decides under *Required Actions*; silence keeps the hold.",
    )
    announced = tell()
    announced >> alert()
    announced >> question >> [keep(), release(), retrain()]
