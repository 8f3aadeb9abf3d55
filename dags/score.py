"""Scoring: new films answered by the champion, and the champion judged on them."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import host
from airflow.sdk import DAG, Asset, CronTriggerTimetable, Metadata, Param, task
from airflow.sdk.exceptions import AirflowSkipException
from handing import hand_on, needed
from host import TIMEZONE, SpreadTries, enter_project, one_sentence

from pipeline.settings.variables import variables

HOLD = Asset("openmed_hold")

ABOUT = """
Scores the films of a folder with the champion, each film once. Its answers go to the log of answers first
and to Parquet files under `scores` of the state folder then. The champion is judged on the latest films by
its change plan: drift of their looks, expected and measured performance, referrals. What is surely too bad
puts it on hold, which ends scoring and starts the DAG `hold`, where a person decides. What its
probabilities alone say is a WARNING, which holds nothing: a message to OPENMED_ALERT_URL, where it is set,
asks for labels. What too few films can show is named in the sentence, with the verdict INSUFFICIENT
EVIDENCE, and holds nothing either.

Runs by hand, or by the cron expression in OPENMED_SCORE_SCHEDULE.
"""


def schedule() -> CronTriggerTimetable | None:
    """Returns when to score: by the cron expression in OPENMED_SCORE_SCHEDULE, if there is one."""
    cron = variables().score_schedule
    return CronTriggerTimetable(cron, timezone=TIMEZONE) if cron else None


@task(
    max_active_tis_per_dag=1,
    execution_timeout=timedelta(hours=6),
    doc_md="Scores the films that the champion has not scored yet.",
)
def score(*, params: dict[str, Any]) -> dict[str, Any]:
    """Returns how many films were scored; skips when the folder is empty or not there."""
    from pipeline.monitoring import score_films

    folder = Path(params["films"])
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        raise AirflowSkipException(f"{folder} holds no films")
    enter_project()
    with one_sentence():
        return vars(score_films(host.HOME, folder))


@task(
    trigger_rule="none_failed",
    execution_timeout=timedelta(hours=1),
    doc_md="Judges the champion on the films that it scored last. The page is `watch/watch.html` of the "
    "state folder.",
)
def watch(*, ti: Any) -> dict[str, Any]:
    """Returns the verdict and its sentence, which name no film and no patient."""
    from pipeline.monitoring import watch as judge

    enter_project()
    with one_sentence():
        result = judge(host.HOME)
    if result.verdict == "WARNING":
        logging.getLogger("airflow.task").warning(result.sentence)
    keys = ("version", "verdict", "news", "sentence", "films", "hold")
    return hand_on(ti, {**{key: getattr(result, key) for key in keys}, "page": str(result.page)})


@task.short_circuit(doc_md="Goes on only when the champion did not stay within its plan.")
def outside(*, ti: Any) -> bool:
    """Tells whether people have to look."""
    return needed(ti, "watch")["verdict"] == "FAIL"


@task(
    outlets=[HOLD],
    execution_timeout=timedelta(minutes=5),
    doc_md="Announces the hold, which starts the DAG `hold`.",
)
def announce(*, ti: Any) -> Any:
    """Emits the asset of the hold."""
    result = needed(ti, "watch")
    yield Metadata(HOLD, {key: result[key] for key in ("version", "sentence", "page")})


@task.short_circuit(doc_md="Goes on only when labels are needed, and the last watch did not say so.")
def doubtful(*, ti: Any) -> bool:
    """Tells whether labels are newly needed."""
    result = needed(ti, "watch")
    return result["verdict"] == "WARNING" and result["news"]


@task(
    execution_timeout=timedelta(minutes=5),
    doc_md="Posts the sentence, which says how many films to label, to OPENMED_ALERT_URL, where it is set.",
)
def ask_for_labels(*, ti: Any) -> bool:
    """Returns whether there was somewhere to post it."""
    from pipeline.tools.alert import send_alert

    result = needed(ti, "watch")
    with one_sentence():
        return send_alert(f"OpenMed: {result['sentence']}")


with DAG(
    dag_id="score",
    description="Score new films with the champion and watch it",
    doc_md=ABOUT,
    schedule=schedule(),
    catchup=False,
    max_active_runs=1,
    params={
        "films": Param(
            variables().incoming or str(host.HOME / "incoming"),
            type="string",
            minLength=1,
            title="Films",
            description="Folder or zip of films",
        )
    },
    tags=["openmed", "live"],
    default_args={
        "owner": "ml-engineering",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_policy": SpreadTries(),
    },
) as dag:
    watched = watch()
    score() >> watched >> outside() >> announce()
    watched >> doubtful() >> ask_for_labels()
