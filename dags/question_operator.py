"""A question to a person in the Airflow UI, which is asked again until its answer can count."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLBranchOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowException
from people import Answer, named_people
from stage_operator import one_sentence

from openmed.errors import BadInput


class QuestionOperator(HITLBranchOperator):
    """Asks those who are named for a role, and follows the answer.

    An answer that cannot count is asked for again. What was answered is not handed on: the tasks after it
    read it with `people.answers`.
    """

    def __init__(self, *, role: str, **kwargs: Any) -> None:
        """Takes the role and what HITLBranchOperator takes; there is always room for a comment."""
        kwargs["params"] = {"comment": Param(None, type=["null", "string"], maxLength=2000, title="Comment")}
        # An answer within half a second of the question can fail the task, and one that cannot count does;
        # then it asks again.
        kwargs |= {"retries": 20, "retry_delay": timedelta(seconds=5)}
        super().__init__(subject=f"Question to {role}", assigned_users=named_people(role), **kwargs)
        self.role = role

    def question(self, ti: Any) -> tuple[str, str]:
        """Returns what is asked: one line, and Markdown."""
        raise NotImplementedError

    def check(self, answer: Answer, ti: Any) -> None:
        """Refuses an answer that cannot count, by BadInput."""
        raise NotImplementedError

    def record(self, answer: Answer, ti: Any) -> None:
        """Writes down at once what must not wait for another task; here nothing."""

    def execute(self, context: Any) -> Any:
        """Asks; what is shown comes from where nobody can rewrite it, and not from a template."""
        self.subject, self.body = self.question(context["ti"])
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Follows the answer, if it can count."""
        HITLOperator.execute_complete(self, context, event)
        with one_sentence():
            try:
                answer = Answer.of(event, self.role)
                self.check(answer, context["ti"])
            except BadInput as error:
                raise AirflowException(f"{error}; the question is asked again") from None
            self.record(answer, context["ti"])
        return self.do_branch(context, [self.options_mapping[answer.option]])
