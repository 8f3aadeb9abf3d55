"""Airflow's REST API, as far as this project needs it."""

import configparser
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from tenacity import retry, retry_if_exception_message, stop_after_attempt, wait_fixed

from openmed.errors import BadInput, ResourceError
from openmed.files import read_json
from pipeline.settings.people import logins
from pipeline.settings.variables import variables

DATASET = "openmed_dataset"
"""The asset whose event starts a retraining."""
AUDITOR = "auditor"
"""The account of tasks that read who answered a question; it may read alone."""
_ANSWER_AFTER_S = 4.0
# SQLite can be locked for a moment while tasks end; a second event starts no second run.
_TRIED_AGAIN = retry(
    retry=retry_if_exception_message(match="Airflow answered 500"),
    stop=stop_after_attempt(4),
    wait=wait_fixed(1),
    reraise=True,
)


class AirflowClient:
    """One user of one Airflow server.

    `url` is the base URL of the API server, `timeout_s` the longest wait for one answer.

    Raises:
        ResourceError: From every method, when the server cannot be reached or says no.
    """

    def __init__(self, url: str, username: str, password: str, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.username = username
        self._credentials = {"username": username, "password": password}
        # A proxy of the environment must not see calls to this machine.
        self._http = httpx.Client(
            timeout=timeout_s, trust_env=False, follow_redirects=True, verify=ssl.create_default_context()
        )

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Sends one call to `/api/v2/<path>` and returns the decoded answer."""
        if "Authorization" not in self._http.headers:
            token = self._send("POST", "/auth/token", self._credentials)["access_token"]
            self._http.headers["Authorization"] = f"Bearer {token}"
        return self._send(method, f"/api/v2/{path}", body)

    def health(self) -> dict[str, Any]:
        """Returns the state of each component; needs no login."""
        return self._send("GET", "/api/v2/monitor/health", None)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Starts a run now and returns its id; while the DAG is paused the run only queues."""
        body = {"logical_date": None, "conf": conf or {}, "dag_run_id": run_id}
        return self.request("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"]

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Returns the runs of a DAG, oldest first."""
        return self.request("GET", f"dags/{dag_id}/dagRuns?order_by=run_after&limit=100")["dag_runs"]

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Returns `queued`, `running`, `success` or `failed`."""
        return self.request("GET", _run(dag_id, run_id))["state"]

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Returns the state of each task by id."""
        return {each["task_id"]: each["state"] for each in self.task_instances(dag_id, run_id)}

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Returns all that Airflow knows of each task of a run."""
        return self.request("GET", f"{_run(dag_id, run_id)}/taskInstances?limit=1000")["task_instances"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1) -> str:
        """Returns the lines one attempt of a task logged."""
        task = f"{_run(dag_id, run_id)}/taskInstances/{task_id}"
        content = self.request("GET", f"{task}/logs/{attempt}?full_content=true")["content"]
        return "\n".join(_log_line(each) for each in content)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Marks a task `success`, `failed` or `skipped`; a running one is ended."""
        self.request("PATCH", f"{_run(dag_id, run_id)}/taskInstances/{task_id}", {"new_state": state})

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Returns what a task handed on."""
        entry = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.request("GET", f"{entry}?deserialize=false&stringify=false")["value"]

    def set_paused(self, dag_id: str, paused: bool) -> None:
        """Pauses a DAG or lets it run."""
        self.request("PATCH", f"dags/{dag_id}", {"is_paused": paused})

    def emit(self, asset: str, extra: dict[str, Any] | None = None) -> None:
        """Records an event of an asset, which starts the DAGs that wait for it, and who it is that does."""
        assets = self.request("GET", f"assets?name_pattern={quote(asset, safe='')}")["assets"]
        ids = [each["id"] for each in assets if each["name"] == asset]
        if not ids:
            raise BadInput(f"Airflow knows no asset '{asset}'; wait until its DAGs are read")
        # Airflow keeps no name of who makes an event; here it is the account, and who sits at the machine.
        extra = {**(extra or {}), "started_by": sorted({self.username, logins()["system"]})}
        _TRIED_AGAIN(self.request)("POST", "assets/events", {"asset_id": ids[0], "extra": extra})

    def responses(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Returns what was asked in a run and who responded: task -> what Airflow keeps of it."""
        details = self.request("GET", f"{_run(dag_id, run_id)}/hitlDetails?limit=100")["hitl_details"]
        return {each["task_instance"]["task_id"]: each for each in details}

    def pending_reviews(self) -> list[dict[str, Any]]:
        """Returns the questions that wait for a person: subject, body, options, task_instance."""
        details = self.request("GET", "dags/~/dagRuns/~/hitlDetails?response_received=false&limit=100")
        return [
            each for each in details["hitl_details"] if each["task_instance"]["state"] == "awaiting_input"
        ]

    def answer(self, review: dict[str, Any], option: str, comment: str | None = None) -> None:
        """Answers a question of `pending_reviews` in the name of this user."""
        # A question shows up before its worker has reported its own end to the scheduler. An answer
        # in between makes the task fail, and it asks again; seen up to 1.5 s after the question.
        time.sleep(_ANSWER_AFTER_S)
        task = review["task_instance"]
        path = f"{_run(task['dag_id'], task['dag_run_id'])}/taskInstances/{task['task_id']}"
        body = {"chosen_options": [option], "params_input": {"comment": comment}}
        self.request("PATCH", f"{path}/{task['map_index']}/hitlDetails", body)

    def _send(self, method: str, path: str, body: Any) -> Any:
        try:
            answer = self._http.request(method, self.url + path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ResourceError(f"Airflow does not answer at {self.url} ({error}); is it started?") from None
        if not answer.is_success:
            detail = " ".join(answer.text.split())[:300]
            raise ResourceError(f"Airflow answered {answer.status_code} to {method} {path}: {detail}")
        return answer.json() if answer.content else None


def running_airflow(home: Path) -> AirflowClient | None:
    """Returns a client of the Airflow that serves a project, None when none answers.

    OPENMED_AIRFLOW_URL, OPENMED_AIRFLOW_USER and OPENMED_AIRFLOW_PASSWORD name a server elsewhere, which
    then has to answer; otherwise it is the local one of the state folder.

    Raises:
        ResourceError: The named server does not answer.
    """
    named = variables()
    if named.airflow_url:
        client = AirflowClient(
            named.airflow_url, named.airflow_user, named.airflow_password.get_secret_value()
        )
        client.health()
        return client
    settings, passwords = home / "airflow" / "airflow.cfg", home / "airflow" / "passwords.json"
    if not (settings.is_file() and passwords.is_file()):
        return None
    config = configparser.ConfigParser()
    config.read(settings, encoding="utf-8")
    # In a copied state folder the settings are those of the original, and its passwords would fit.
    if Path(config["logging"]["base_log_folder"]) != home.resolve() / "logs" / "tasks":
        return None
    client = AirflowClient(config["api"]["base_url"], "admin", read_json(passwords)["admin"])
    try:
        client.health()
    except ResourceError:
        return None
    return client


def _run(dag_id: str, run_id: str) -> str:
    return f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _log_line(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    errors = [f"{each['exc_type']}: {each['exc_value']}" for each in entry.get("error_detail") or []]
    return " ".join([entry["event"], *errors])
