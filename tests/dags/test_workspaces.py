"""What becomes of the workspaces of runs, and who may say so."""

import pytest
import retrain
from airflow.sdk.exceptions import AirflowFailException

from openmed.files import read_json, write_json
from tests.dags.runs import Handed


def test_a_failed_run_keeps_its_workspace(state_folder):
    folder = state_folder / "runs/r"
    folder.mkdir(parents=True)
    said = retrain.cleanup.function(run_id="r", ti=Handed())
    assert "are kept for 14 days" in said and folder.exists()


def test_a_registration_written_by_hand_removes_no_workspace(state_folder, monkeypatch):
    record = state_folder / "runs/r.json"
    write_json(record, {"run_id": "r"})
    run = Handed(register={"version": "7"})
    run.written["register"] |= {"version": "8"}
    with pytest.raises(AirflowFailException, match="XCom of task 'register' is not what the task handed on"):
        retrain.cleanup.function(run_id="r", ti=run)
    run.xcom_pull = lambda task_ids, key="return_value": {"version": "8"} if key == "candidate" else None
    assert "are kept for 14 days" in retrain.cleanup.function(run_id="r", ti=run)
    assert "complete" not in read_json(record)
    assert "is kept for the gate" in retrain.cleanup.function(
        run_id="r", ti=Handed(register={"version": "7"})
    )
    assert read_json(record)["complete"] is True
