"""A question to a person in the Airflow UI, which is asked again until its answer can count."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLBranchOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowException
from handing import needed
from host import one_sentence
from people import Accounts, Answer

from openmed.errors import BadInput


class QuestionOperator(HITLBranchOperator):
    """Asks those who are named for a role, and follows the answer.

    What is asked, and who may answer, comes from what an earlier task handed on.

    An answer that cannot count is asked for again. What was answered is not handed on: the tasks after it
    read it with `people.answers`.
    """

    def __init__(self, *, role: str, about: str, **kwargs: Any) -> None:
        """Takes the role, the task that handed it on, and the rest as HITLBranchOperator."""
        kwargs["params"] = {"comment": Param(None, type=["null", "string"], maxLength=2000, title="Comment")}
        # An answer within half a second of the question can fail the task, and one that cannot count does;
        # then it asks again.
        kwargs |= {"retries": 20, "retry_delay": timedelta(seconds=5), "retry_policy": None}
        super().__init__(subject=f"Question to {role}", **kwargs)
        self.role, self.about = role, about

    def accounts(self, ti: Any) -> Accounts:
        """Returns who may answer."""
        return needed(ti, self.about)["accounts"]

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
        ti = context["ti"]
        with one_sentence():
            self.subject, self.body = self.question(ti)
        named = self.accounts(ti).get(self.role, [])
        self.assigned_users = [{"id": name, "name": name} for name in named]
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Follows the answer, if it can count."""
        HITLOperator.execute_complete(self, context, event)
        ti = context["ti"]
        with one_sentence():
            try:
                answer = Answer.of(event, self.role, self.accounts(ti))
                self.check(answer, ti)
            except BadInput as error:
                raise AirflowException(f"{error}; the question is asked again") from None
            self.record(answer, ti)
        return self.do_branch(context, [self.options_mapping[answer.option]])
