"""A question to a person in the Airflow UI, whose answer is kept with the name under it."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLBranchOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowException

from openmed.errors import BadInput
from pipeline.settings.variables import variables


class QuestionOperator(HITLBranchOperator):
    """Asks a person, follows the answer, and keeps it under the XCom key `answer`.

    The operator it extends keeps the chosen branch alone, which would lose the person's name. An answer that
    cannot count is asked for again.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Takes what HITLBranchOperator takes; there is always room for a comment."""
        kwargs["params"] = {"comment": Param(None, type=["null", "string"], maxLength=2000, title="Comment")}
        # An answer within half a second of the question can fail the task, and one that cannot count does;
        # then it asks again.
        kwargs |= {"retries": 20, "retry_delay": timedelta(seconds=5)}
        super().__init__(**kwargs)

    def check(self, answer: dict[str, Any], ti: Any) -> None:
        """Refuses an answer that cannot count, by BadInput; here any can."""

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Writes the answer down first: following a branch ends the task with an exception."""
        answer = HITLOperator.execute_complete(self, context, event)
        record = {key: answer[key] for key in ("chosen_options", "params_input", "responded_by_user")}
        try:
            self.check(record, context["ti"])
        except BadInput as error:
            raise AirflowException(f"{error}; the question is asked again") from None
        context["ti"].xcom_push(
            key="answer", value={**record, "responded_at": answer["responded_at"].isoformat()}
        )
        return self.do_branch(context, [self.options_mapping[option] for option in answer["chosen_options"]])


def named_people(role: str) -> list[dict[str, str]] | None:
    """Returns who may answer in a role: the users in OPENMED_REVIEWERS_<ROLE>, or None for anyone."""
    names = [name.strip() for name in variables().reviewers.get(role.upper(), "").split(",")]
    return [{"id": name, "name": name} for name in names if name] or None


def person(answer: dict[str, Any] | None) -> str | None:
    """Returns who gave an answer; None for the one that time gives."""
    user = (answer or {}).get("responded_by_user")
    return (user["name"] or user["id"]) if user else None


def comment_of(answer: dict[str, Any]) -> str:
    """Returns the comment of an answer; may be empty."""
    return ((answer["params_input"] or {}).get("comment") or "").strip()
