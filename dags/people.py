"""Who started a run and who answered its questions, as Airflow itself keeps it.

Whoever may answer a question may also write every XCom and set the state of every task over REST. What
Airflow writes down of a response (who, when, who was asked) nobody can write that way: it is read from the
server, by an account that may read alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from openmed.errors import BadInput, ResourceError
from openmed.files import read_json
from pipeline.settings.variables import variables
from pipeline.tools.airflow_client import AUDITOR, AirflowClient

Accounts = Mapping[str, Sequence[str]]
"""Role, or `hold` -> the accounts that may answer for it; for one that is not there anyone may."""


@dataclass(frozen=True)
class Answer:
    """A response to a question: the option, who chose it (None: time did), the comment, and when."""

    option: str
    by: str | None
    comment: str
    at: datetime

    @classmethod
    def of(cls, response: Mapping[str, Any], role: str, accounts: Accounts) -> "Answer":
        """Takes it from what Airflow says of a response.

        Raises:
            BadInput: It was given by somebody who is not named for the role.
        """
        user, at = response["responded_by_user"], response["responded_at"]
        if user and user["id"] not in accounts.get(role, [user["id"]]):
            raise BadInput(
                f"{user['name'] or user['id']} answered as {role} and is not named for it: see "
                f"protocol.accounts.{role} of the version's change plan"
            )
        return cls(
            option=response["chosen_options"][0],
            by=(user["name"] or user["id"]) if user else None,
            comment=((response["params_input"] or {}).get("comment") or "").strip(),
            at=at if isinstance(at, datetime) else datetime.fromisoformat(at),
        )


def answers(ti: Any, roles: Mapping[str, str], accounts: Accounts, subject: str) -> dict[str, Answer]:
    """Returns the answers to a question of this run: role -> answer, of those that were given.

    The roles are role -> task that asks. Nothing is taken from an XCom or from the state of a task. What was
    asked under another subject, before the task that it is about was cleared, is another question.

    Raises:
        BadInput: Somebody answered who is not named for the role.
        ResourceError: Airflow does not answer, or no account is named that may read.
    """
    responses = _airflow().responses(ti.dag_id, ti.run_id) if roles else {}
    given = {role: responses[task] for role, task in roles.items() if task in responses}
    return {
        role: Answer.of(response, role, accounts)
        for role, response in given.items()
        if response["response_received"] and response["subject"] == subject
    }


def starter(dag_run: Any, events: Iterable[Any]) -> str | None:
    """Returns who started a run, several joined by a comma; None for the schedule alone.

    A run that an asset started was started by whom its events name.

    Raises:
        AirflowFailException: Somebody did, and nobody says who.
    """
    if dag_run.triggering_user_name:
        return dag_run.triggering_user_name
    named = [(event.extra or {}).get("started_by") or [] for event in events]
    if named and all(named):
        return ", ".join(sorted({name for names in named for name in names}))
    if not named and dag_run.run_type == "scheduled":
        return None
    raise AirflowFailException(
        "nobody says who started this retraining, so that no review could leave them out: start it in "
        "Airflow or by `openmed data add`"
    )


def _airflow() -> AirflowClient:
    """Returns a client that may read: of the account `auditor`, or of OPENMED_AIRFLOW_USER without it."""
    file = conf.get("core", "simple_auth_manager_passwords_file", fallback=None)
    passwords = read_json(Path(file)) if file and Path(file).is_file() else {}
    if AUDITOR in passwords:
        server = conf.get("core", "execution_api_server_url")
        return AirflowClient(server.rstrip("/").removesuffix("/execution"), AUDITOR, passwords[AUDITOR])
    named = variables()
    if not named.airflow_url:
        raise ResourceError(
            f"no account can read Airflow's record of answers: name one, of role viewer, as {AUDITOR} or by "
            "OPENMED_AIRFLOW_URL, OPENMED_AIRFLOW_USER and OPENMED_AIRFLOW_PASSWORD"
        )
    return AirflowClient(named.airflow_url, named.airflow_user, named.airflow_password.get_secret_value())
