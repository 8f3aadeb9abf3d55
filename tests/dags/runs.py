"""A run of a DAG as its tasks see it: what was handed on, and what Airflow keeps of the answers."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

AT = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Handed:
    """What earlier tasks handed on, read as a task reads it; by `written` as somebody wrote it over REST."""

    dag_id, run_id, task_id = "promote", "manual__1", "here"
    try_number, max_tries = 1, 2

    def __init__(self, **values: Any) -> None:
        import handing

        self.written: dict[str, Any] = {}
        self.states: dict[str, str] = {}
        for self.task_id, value in values.items():
            self.written[self.task_id] = handing.hand_on(self, value)

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        """Returns the state of a run."""
        return self.states.get(run_id, "running")

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        """Returns the XCom of a task; nothing has another key."""
        return self.written.get(task_ids) if key == "return_value" else None


def response(option: str = "Approve", name: str | None = "ada", comment: str | None = None) -> dict[str, Any]:
    """One answer, as Airflow's REST API says it."""
    return {
        "response_received": True,
        "chosen_options": [option],
        "responded_by_user": name and {"id": name, "name": name},
        "responded_at": AT.isoformat(),
        "params_input": {"comment": comment},
    }


def keep(monkeypatch: Any, version: str = "", **responses: dict[str, Any]) -> None:
    """Lets Airflow's record hold these: review (of version 7) or `ask` (of version 3) -> response."""
    import people

    table = {}
    for name, each in responses.items():
        task, subject = f"review.{name}", f"Shall version {version or 7} become the champion?"
        if name == "ask":
            task, subject = name, f"Version {version or 3} is on hold: what shall follow?"
        table[task] = {"subject": subject, **each}
    record = SimpleNamespace(responses=lambda dag_id, run_id: table)
    monkeypatch.setattr(people, "_airflow", lambda: record)
