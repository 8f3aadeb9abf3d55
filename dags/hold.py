"""Hold: people are told that the champion is on hold, and one of them decides what follows.

A DAG apart from `score`, because an answer may take days.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, Metadata, task
from airflow.sdk.exceptions import AirflowFailException
from handing import hand_on, needed
from host import SpreadTries, enter_project, one_sentence
from people import Answer, answers
from question_operator import QuestionOperator

from openmed.errors import BadInput

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

BODY = """\
{sentence}

The page with pictures: {page}

A release needs a reason in the comment. {signing}
"""


class HoldOperator(QuestionOperator):
    """Asks what shall follow a hold."""

    def question(self, ti: Any) -> tuple[str, str]:
        """Shows what was announced."""
        announced = needed(ti, "tell")
        return subject(announced), BODY.format(**announced, signing=signing(announced["version"]))

    def check(self, answer: Answer, ti: Any) -> None:
        """Refuses a release that the ledger would not take."""
        from pipeline import ledger

        if answer.option == RELEASE:
            ledger.signed(ledger.RELEASED, by=answer.by, reason=answer.comment)
            if first := signing(needed(ti, "tell")["version"]):
                raise BadInput(first)


def subject(announced: dict[str, Any]) -> str:
    """Returns what is asked."""
    return f"Version {announced['version']} is on hold: what shall follow?"


def signing(version: str) -> str:
    """Says how a release is signed, which Airflow cannot; empty where it need not be, or is given already."""
    from pipeline import ledger

    enter_project()
    if version not in ledger.on_hold() or not ledger.keys_in_force(ledger.history()):
        return ""
    return (
        "The champion's change plan lists keys: first sign with `openmed registry release "
        f"{version} --by NAME --reason TEXT --key PATH`, then answer Release"
    )


def answered(ti: Any, *options: str) -> Answer:
    """Returns the answer of this run, which is one of the options.

    Raises:
        AirflowFailException: Airflow's record has none, or another one.
    """
    announced = needed(ti, "tell")
    answer = answers(ti, {"hold": "ask"}, announced["accounts"], subject(announced)).get("hold")
    if answer is None or answer.option not in options:
        said = "no answer" if answer is None else f"the answer {answer.option!r}"
        raise AirflowFailException(
            f"Airflow's record has {said}: a state or an XCom was set by hand, and nothing is done"
        )
    return answer


@task(execution_timeout=timedelta(minutes=5), doc_md="Says what was announced.")
def tell(*, triggering_asset_events: Any, ti: Any) -> dict[str, Any]:
    """Returns what the newest announcement says, and who may answer by the change plan of its version."""
    from pipeline.promotion.actions import accounts

    announced = [event for events in dict(triggering_asset_events or {}).values() for event in events]
    if not announced:
        raise AirflowFailException("no hold was announced: this DAG is started by the DAG `score`")
    announcement = max(announced, key=lambda event: event.timestamp).extra
    logging.getLogger("airflow.task").warning(announcement["sentence"])
    enter_project()
    with one_sentence():
        named = {"accounts": accounts(announcement["version"])}
    return hand_on(ti, named | {key: announcement[key] for key in ("version", "sentence", "page")})


@task(
    execution_timeout=timedelta(minutes=5),
    doc_md="Posts the sentence to OPENMED_ALERT_URL, where it is set. The question is asked in any case.",
)
def alert(*, ti: Any) -> bool:
    """Returns whether there was somewhere to post it."""
    from pipeline.tools.alert import send_alert

    announcement = needed(ti, "tell")
    with one_sentence():
        return send_alert(
            f"OpenMed: version {announcement['version']} is on hold. {announcement['sentence']}"
        )


@task(doc_md="The hold stays; says who said so.")
def keep(*, ti: Any) -> str:
    """Says that nothing changes."""
    with one_sentence():
        by = answered(ti, KEEP).by or "nobody: no answer came"
    return f"The hold of version {needed(ti, 'tell')['version']} is left as it is, by {by}."


@task(pool="registry", execution_timeout=timedelta(minutes=30), doc_md="Takes the version off hold.")
def release(*, ti: Any) -> dict[str, Any]:
    """Returns the entry of the record."""
    from pipeline import ledger

    version = needed(ti, "tell")["version"]
    enter_project()
    with one_sentence():
        answer = answered(ti, RELEASE)
        standing = ledger.on_hold().get(version)
        if standing is None:
            # Signed on the command line, or released by a try of this task that was cut off.
            return [each for each in ledger.history(version) if each.event == ledger.RELEASED][-1].to_json()
        if datetime.fromisoformat(standing.at) > answer.at:
            raise BadInput(f"version {version} was put on hold again after this answer: answer the newer one")
        return ledger.release(version, by=answer.by, reason=answer.comment).to_json()


@task(outlets=[DATASET], execution_timeout=timedelta(minutes=5), doc_md="Starts the DAG `retrain`.")
def retrain(*, ti: Any) -> Any:
    """Emits the asset that starts a retraining, with who wants it; the version stays on hold."""
    with one_sentence():
        by = answered(ti, RETRAIN).by
    reason = f"version {needed(ti, 'tell')['version']} is on hold"
    yield Metadata(DATASET, {"reason": reason, "started_by": [by]})


with DAG(
    dag_id="hold",
    description="Ask what shall follow a hold",
    doc_md=ABOUT,
    schedule=[HOLD],
    catchup=False,
    max_active_runs=1,
    tags=["openmed", "live"],
    default_args={
        "owner": "ml-engineering",
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": SpreadTries(),
    },
) as dag:
    question = HoldOperator(
        task_id="ask",
        role="hold",
        about="tell",
        options=[KEEP, RELEASE, RETRAIN],
        options_mapping={KEEP: "keep", RELEASE: "release", RETRAIN: "retrain"},
        defaults=KEEP,
        response_timeout=ANSWER_WITHIN,
        doc_md="A person decides under *Required Actions*; silence keeps the hold.",
    )
    announced = tell()
    announced >> alert()
    announced >> question >> [keep(), release(), retrain()]
