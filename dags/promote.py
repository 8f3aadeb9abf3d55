"""Promotion: gate against the champion, a person's decision, the move of the alias.

A DAG apart from `retrain`, because a review may wait for days and must not hold up the next
retraining. Nothing is promoted by silence.
"""

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import host
from airflow.sdk import DAG, Asset, Param, TaskGroup, task
from airflow.sdk.exceptions import AirflowFailException
from handing import hand_on, handed, needed, tidy
from host import SpreadTries, enter_project, one_sentence
from people import Answer, answers
from question_operator import QuestionOperator

from openmed.errors import BadInput
from pipeline.settings.yaml_file import parse_yaml
from pipeline.tools.git import committed

PLAN_FILE = "change_plan.yaml"
CANDIDATE = Asset("openmed_candidate")
APPROVE, REJECT = "Approve", "Reject"
ANSWER_WITHIN = timedelta(days=7)

ABOUT = """
Decides whether a candidate becomes the champion.

Starts with every new candidate, or by hand for a version of the registry. The gates hold it against the
change plan and compare it with the champion on the same test films. What they refuse is rejected at once and
the next architecture of the retraining is judged, a further look at the test films, until one passes or none
is left. What they pass waits under *Required Actions* for one person in each role of the plan, none of them
the one who started the retraining. Without an answer in seven days the answer is no.
"""

REFUSED_BEFORE = """\
The gates refused version {versions}, which did better on validation films; this is the next.
"""
BODY = """\
Candidate **{version}** against {against}.
Its retraining was started by {started_by}.
You answer as **{role}**: {answers_for}

{table}

{films}

A no needs a reason in the comment.
"""


def roles() -> list[str]:
    """Returns the roles whose yes the committed change plan asks for, in their order.

    An edit of the checkout that nobody has committed takes no reviewer away.
    """
    source = f"the committed {PLAN_FILE} of {host.PROJECT}"
    plan = parse_yaml(committed(host.PROJECT, "HEAD", PLAN_FILE), source)
    try:
        return list(plan["protocol"]["reviewers"])
    except (KeyError, TypeError):
        raise BadInput(f"{source} names no reviewers: see protocol.reviewers") from None


class ReviewOperator(QuestionOperator):
    """Asks a person in a role of the change plan; an answer that cannot count is asked for again."""

    def __init__(self, *, earlier: list[str], **kwargs: Any) -> None:
        """Takes the roles that have answered before this one, and the rest as QuestionOperator."""
        super().__init__(**kwargs)
        self.earlier = earlier

    def question(self, ti: Any) -> tuple[str, str]:
        """Shows what the gates said."""
        judged = needed(ti, "gate")
        return subject(judged), body(judged, self.role)

    def check(self, answer: Answer, ti: Any) -> None:
        """Refuses an answer that the ledger would not take, such as a yes whose signature is missing."""
        from pipeline import ledger

        if answer.by is not None and answer.option == REJECT:
            ledger.signed(ledger.REJECTED, by=answer.by, reason=answer.comment)
        elif answer.by is not None:
            judged = needed(ti, "gate")
            said = {**given(judged, ti, self.earlier), self.role: answer}
            approved, basis = ledger.Approval.of(*approval(said)), ledger.Basis.of(judged)
            basis.check_people(approved.people)
            if basis.keys:
                enter_project()
                basis.approved(ledger.history(), approved)

    def record(self, answer: Answer, ti: Any) -> None:
        """Writes a no into the record: nobody who marks or clears a task takes it back."""
        from pipeline import ledger

        if answer.option == REJECT:
            judged = needed(ti, "gate")
            by, reason = refusal(judged, {self.role: answer})
            enter_project()
            ledger.reject(judged["version"], by=by, reason=reason)


def subject(judged: dict[str, Any]) -> str:
    """Returns what a reviewer is asked."""
    return f"Shall version {judged['version']} become the champion?"


def given(judged: dict[str, Any], ti: Any, roles: Iterable[str]) -> dict[str, Answer]:
    """Returns what was answered in these roles on the gate's result: role -> answer."""
    asked = {role: REVIEWS[role] for role in roles}
    return answers(ti, asked, judged["accounts"], subject(judged))


def body(judged: dict[str, Any], role: str) -> str:
    """Returns what a reviewer is shown of the gate's result."""
    champion, refused = judged["champion"], [each["version"] for each in judged["refused"]]
    before = REFUSED_BEFORE.format(versions=" and ".join(refused)) if refused else ""
    return before + BODY.format(
        version=judged["version"],
        against=f"champion **{champion}**" if champion else "no champion: it would be the first",
        started_by=judged["started_by"] or "nobody: the schedule did",
        role=role,
        answers_for=judged["reviewers"][role],
        table=judged["table_markdown"],
        films=judged["films_markdown"],
    )


def approval(given: dict[str, Answer]) -> tuple[dict[str, str | None], str]:
    """Returns role -> who said yes in it, and all comments as one."""
    comments = [f"{role}: {answer.comment}" for role, answer in given.items() if answer.comment]
    return {role: answer.by for role, answer in given.items()}, "; ".join(comments)


def approvals(judged: dict[str, Any], ti: Any) -> dict[str, Answer]:
    """Returns the yes of every role.

    Raises:
        AirflowFailException: Airflow's record lacks one, or has a no, which then is in the record.
    """
    from pipeline import ledger

    said = given(judged, ti, REVIEWS)
    if any(answer.option != APPROVE for answer in said.values()):
        by, reason = refusal(judged, said)
        # A review that is marked as done before its answer arrives records nothing.
        ledger.reject(judged["version"], by=by, reason=reason)
        raise AirflowFailException(f"{by} said no: a state was set by hand, and nothing is promoted")
    if missing := [role for role in REVIEWS if role not in said]:
        raise AirflowFailException(
            f"Airflow has no record of an answer as {missing[0]}: a state or an XCom was set by hand, and "
            "nothing is promoted"
        )
    return said


def asked_candidate(params: dict[str, Any], events: dict[Any, list[Any]]) -> dict[str, str]:
    """Returns the version given by hand, or what the newest announcement says.

    Raises:
        AirflowFailException: There is neither.
    """
    if params["version"]:
        return {"version": params["version"]}
    announced = [event for each in events.values() for event in each if "version" in (event.extra or {})]
    if not announced:
        raise AirflowFailException("no candidate is named; start the run with the parameter 'version'")
    # Candidates that came while a review was waiting arrive in one run; the last one counts.
    return max(announced, key=lambda event: event.timestamp).extra


@task(
    execution_timeout=timedelta(hours=2),
    doc_md="Holds the candidate against plan and champion; when it is refused, the next architecture.",
)
def gate(*, params: dict[str, Any], triggering_asset_events: Any, dag_run: Any, ti: Any) -> dict[str, Any]:
    """Returns the verdict with its evidence."""
    from pipeline.promotion import actions as promotion
    from pipeline.promotion.films import films_at_hand

    candidate = asked_candidate(params, dict(triggering_asset_events or {}))
    enter_project()
    versions = [str(version) for version in candidate.get("order") or [candidate["version"]]]
    with one_sentence():
        promotion.check_starter(versions, dag_run.triggering_user_name)
        tidy(ti)
        last = ti.try_number > ti.max_tries
        films = films_at_hand(host.PROJECT, host.HOME, versions[0], at_any_rate=not last)
        judged, refused = promotion.judge_in_turn(versions, workspace=films)
        if judged.verdict == "PASS" and judged.reviewers.keys() != REVIEWS.keys():
            raise BadInput(
                f"the plan of version {judged.version} asks {' and '.join(judged.reviewers)}, the project's "
                f"committed plan {' and '.join(REVIEWS)}: commit the version's plan, or retrain"
            )
    result = judged.to_json() | {"first": versions[0], "refused": [each.to_json() for each in refused]}
    return hand_on(ti, result)


@task.branch(doc_md="Sends what passed the gates to a person and everything else to `reject`.")
def triage(*, ti: Any) -> str:
    """Returns the next task."""
    # Only PASS passes: not enough evidence is a no as well.
    return next(iter(REVIEWS.values())) if needed(ti, "gate")["verdict"] == "PASS" else "reject"


@task(pool="registry", execution_timeout=timedelta(minutes=30), doc_md="Makes the candidate the champion.")
def promote(*, ti: Any) -> dict[str, Any]:
    """Returns the entry of the record."""
    from pipeline.promotion import actions as promotion

    judged = needed(ti, "gate")
    enter_project()
    with one_sentence():
        said = approvals(judged, ti)
        approved_by, comment = approval(said)
        entry = promotion.promote(
            judged["version"],
            approved_by=approved_by,
            comment=comment,
            answered_at=min(answer.at for answer in said.values()),
            expected_champion=judged["champion"],
            expected_model=judged["model_sha256"],
        )
    return hand_on(ti, entry.to_json())


@task(
    pool="registry",
    trigger_rule="none_failed_min_one_success",
    execution_timeout=timedelta(minutes=30),
    doc_md="Writes down that the candidate was refused, by whom and why.",
)
def reject(*, ti: Any) -> dict[str, Any]:
    """Returns the entry of the record."""
    from pipeline import ledger

    judged = needed(ti, "gate")
    enter_project()
    with one_sentence():
        by, reason = refusal(judged, given(judged, ti, REVIEWS))
        return hand_on(ti, ledger.reject(judged["version"], by=by, reason=reason).to_json())


def refusal(judged: dict[str, Any], given: dict[str, Answer]) -> tuple[str, str]:
    """Returns who refused and why, from the gate's result and the answers of the reviews.

    Raises:
        AirflowFailException: Neither the gate nor anybody did.
    """
    if judged["verdict"] != "PASS":
        return "gate", judged["grounds"]
    no = next((each for each in given.items() if each[1].option == REJECT), None)
    if no is None:
        raise AirflowFailException(
            f"nobody has rejected version {judged['version']}: a state was set by hand, and nothing is done"
        )
    role, answer = no
    if answer.by is None:
        return "nobody", f"no answer as {role} within {ANSWER_WITHIN.days} days"
    return f"{answer.by} ({role})", answer.comment


@task(trigger_rule="none_failed_min_one_success", doc_md="Says the outcome in one sentence.")
def tell(*, ti: Any) -> str:
    """Logs and returns the outcome."""
    judged, promoted = needed(ti, "gate"), handed(ti, "promote")
    version, champion = judged["version"], judged["champion"]
    if promoted:
        before = f"in place of version {champion}" if champion else "as the first one"
        sentence = (
            f"Version {version} is the champion now, {before}: approved by {promoted['content']['by']}."
        )
    else:
        said = needed(ti, "reject")["content"]
        stays = f"version {champion} stays the champion" if champion else "there is still no champion"
        sentence = f"Version {version} is rejected by {said['by']} ({said['reason'].rstrip('.')}); {stays}."
    earlier = [f"version {each['version']} ({each['grounds']})" for each in judged["refused"]]
    if earlier:
        sentence += f" Refused before it: {'; '.join(earlier)}."
    logging.getLogger("airflow.task").info(sentence)
    return sentence


def review_tasks() -> list[ReviewOperator]:
    """Makes one question for each role, asked one after the other: a no ends the asking."""
    following = [*list(REVIEWS.values())[1:], "promote"]
    with TaskGroup("review"):
        return [
            ReviewOperator(
                task_id=role,
                role=role,
                about="gate",
                earlier=list(REVIEWS)[:number],
                options=[APPROVE, REJECT],
                options_mapping={APPROVE: following[number], REJECT: "reject"},
                defaults=REJECT,
                response_timeout=ANSWER_WITHIN,
                doc_md=f"The {role} reviewer says Approve or Reject under *Required Actions*; silence: no.",
            )
            for number, role in enumerate(REVIEWS)
        ]


REVIEWS = {role: f"review.{role}" for role in roles()}
"""Role -> task that asks it, in their order."""

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
    default_args={
        "owner": "ml-engineering",
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": SpreadTries(),
    },
) as dag:
    triaged, promoted, rejected, reviews = triage(), promote(), reject(), review_tasks()
    gate() >> triaged >> [reviews[0], rejected]
    for review, after in zip(reviews, [*reviews[1:], promoted], strict=True):
        review >> [after, rejected]
    [promoted, rejected] >> tell()
