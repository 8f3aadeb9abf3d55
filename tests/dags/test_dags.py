"""The shape of the DAGs, as Airflow itself reads them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from openmed.errors import BadInput, ResourceError
from openmed.metrics.intervals import Interval
from openmed.monitoring.drift import Limits, Shift
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.git import git

ROOT = Path(__file__).parents[2]
# They ask a person, or only pass on what is known.
UNTIMED = ("review.clinical", "review.technical", "triage", "tell", "ask", "outside", "doubtful", "keep")
STAGES = load_graph(ROOT / "dvc.yaml")


@pytest.fixture(scope="module")
def dags():
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(ROOT / "dags"))
    assert bag.import_errors == {}
    assert set(bag.dags) == {"retrain", "promote", "score", "hold"}
    return bag.dags


def task_id(stage: str) -> str:
    return stage.replace("@", ".")


def test_each_stage_is_one_task_with_the_edges_of_dvc_yaml(dags):
    retrain = dags["retrain"]
    added = {"prepare", "drift", "register", "cleanup"}
    assert set(retrain.task_dict) == {task_id(name) for name in STAGES} | added
    for name, stage in STAGES.items():
        expected = {task_id(other) for other in stage.upstream} or {"prepare"}
        # What trains waits for the comparison with the champion's films too.
        expected |= {"drift"} if name.startswith("train@") else set()
        task = retrain.get_task(task_id(name))
        assert task.upstream_task_ids == expected
        assert task.stage == name


def test_registration_needs_every_stage_and_the_workspace_outlives_it(dags):
    retrain = dags["retrain"]
    before = retrain.get_task("register").get_flat_relative_ids(upstream=True)
    assert before == {task_id(name) for name in STAGES} | {"prepare", "drift"}
    assert retrain.get_task("prepare").is_setup
    assert retrain.get_task("cleanup").is_teardown
    assert "register" in retrain.get_task("cleanup").upstream_task_ids


def test_only_trainings_queue_for_the_gpu_and_every_task_has_an_end(dags):
    pools = {name: task.pool for name, task in dags["retrain"].task_dict.items()}
    assert {name for name, pool in pools.items() if pool == "gpu"} == {
        task_id(name) for name in STAGES if name.startswith("train@")
    }
    for dag in dags.values():
        for task in dag.tasks:
            assert task.doc_md and task.owner == "ml-engineering"
            if task.task_id not in UNTIMED:
                assert task.execution_timeout
                # A trained model waits for a registry that is down.
                assert task.retries == (100 if task.task_id == "register" else 2)
    train = next(task for task in dags["retrain"].tasks if task.task_id.startswith("train."))
    assert train.execution_timeout == timedelta(hours=12)


def test_task_docs_are_the_first_lines_of_the_stages(dags):
    first_line = (ROOT / "pipeline" / "stages" / "validate.py").read_text().splitlines()[0].strip('"')
    assert dags["retrain"].get_task("validate").doc_md.startswith(first_line)


def test_one_run_at_a_time_and_nothing_is_made_up_for(dags):
    for dag in dags.values():
        assert dag.max_active_runs == 1 and dag.catchup is False and dag.doc_md


@pytest.mark.parametrize(
    ("minutes_after_slot", "next_slot"), [(1, "2026-01-04"), (10, "2026-01-11"), (16 * 60, "2026-01-11")]
)
def test_a_new_start_does_not_make_up_for_the_last_slot(dags, monkeypatch, minutes_after_slot, next_slot):
    from airflow.serialization.decoders import decode_timetable
    from airflow.serialization.encoders import encode_timetable
    from airflow.timetables import trigger
    from airflow.timetables.base import TimeRestriction

    now = datetime(2026, 1, 4, 2, tzinfo=UTC) + timedelta(minutes=minutes_after_slot)
    monkeypatch.setattr(trigger, "utcnow", lambda: now)
    timetable = decode_timetable(encode_timetable(dags["retrain"].timetable))
    info = timetable.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(None, None, catchup=False)
    )
    assert info.run_after.date().isoformat() == next_slot


def test_the_schedule_can_be_changed_or_switched_off(monkeypatch):
    import retrain

    monkeypatch.setenv("OPENMED_SCHEDULE", "off")
    assert retrain.schedule() == [retrain.DATASET]
    monkeypatch.setenv("OPENMED_SCHEDULE", "30 4 * * *")
    assert retrain.schedule().timetable.expression == "30 4 * * *"
    assert str(retrain.schedule().timetable.timezone) == "UTC"
    monkeypatch.setattr(retrain, "TIMEZONE", "Europe/Vienna")
    assert str(retrain.schedule().timetable.timezone) == "Europe/Vienna"


def test_defaults_of_the_forms_are_valid(dags):
    for dag in dags.values():
        dag.params.validate()
    assert dags["retrain"].params.dump() == {
        "revision": "HEAD",
        "seed": None,
        "force": False,
        "accept_drift": False,
        "note": None,
    }


def test_a_candidate_of_retraining_starts_promotion(dags):
    announced = dags["retrain"].get_task("register").outlets
    awaited = dags["promote"].timetable.asset_condition.objects
    assert [asset.name for asset in announced] == [asset.name for asset in awaited] == ["openmed_candidate"]


def test_silence_is_a_no_and_nobody_is_promoted_without_the_yes_of_every_role(dags):
    promote = dags["promote"]
    reviews = [promote.get_task(f"review.{role}") for role in ("clinical", "technical")]
    for review in reviews:
        assert review.defaults == ["Reject"] and review.response_timeout == timedelta(days=7)
        assert review.retries == 20 and review.execution_timeout is None
    assert reviews[0].options_mapping == {"Approve": "review.technical", "Reject": "reject"}
    assert reviews[1].options_mapping == {"Approve": "promote", "Reject": "reject"}
    assert reviews[1].upstream_task_ids == {"review.clinical"}
    assert promote.get_task("promote").upstream_task_ids == {"review.technical"}
    assert promote.get_task("promote").pool == promote.get_task("reject").pool == "registry"
    asked = {"triage", "review.clinical", "review.technical"}
    assert promote.get_task("reject").upstream_task_ids == asked


def test_reviewers_may_be_named_for_each_role(monkeypatch):
    from question_operator import named_people

    assert named_people("clinical") is None
    monkeypatch.setenv("OPENMED_REVIEWERS_CLINICAL", "ada, ben")
    found = named_people("clinical")
    assert found == [{"id": "ada", "name": "ada"}, {"id": "ben", "name": "ben"}]
    assert named_people("technical") is None


def answered(option="Approve", name="ada", comment=None):
    person = name and {"id": "1", "name": name}
    return {"chosen_options": [option], "responded_by_user": person, "params_input": {"comment": comment}}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (answered(), None),
        (answered(name="eve"), "eve started the retraining of version 7 and cannot approve it"),
        (answered(name=" ben"), "version 7 needs another person in each role: clinical, technical"),
        (answered(comment="x" * 1989), None),
        (answered(comment="x" * 1990), "the comment is longer than 2000 characters: say it shorter"),
        (answered("Reject"), "a rejection needs a reason: say what is wrong with the version"),
        (answered("Reject", comment=" "), "a rejection needs a reason: say what is wrong with the version"),
        (answered("Reject", comment="\x1b"), "the reason holds characters that cannot be shown"),
        (answered("Reject", name="eve", comment="edges are wrong"), None),
        (answered("Reject", name=None), None),
    ],
)
def test_an_answer_that_cannot_count_is_asked_for_again(dags, answer, problem):
    review = dags["promote"].get_task("review.technical")
    handed = Handed(gate=GATE, **{"review.clinical_answer": answered(name="ben")})
    if problem is None:
        review.check(answer, handed)
        return
    with pytest.raises(BadInput, match=problem):
        review.check(answer, handed)


def test_the_newest_candidate_is_judged_unless_one_is_named():
    from promote import asked_candidate

    def event(version, day):
        return SimpleNamespace(extra={"version": version}, timestamp=datetime(2026, 1, day, tzinfo=UTC))

    events = {"openmed_candidate": [event("7", 2), event("6", 1), SimpleNamespace(extra={}, timestamp=None)]}
    assert asked_candidate({"version": None}, events) == {"version": "7"}
    assert asked_candidate({"version": "3"}, events) == {"version": "3"}
    with pytest.raises(AirflowFailException, match="parameter 'version'"):
        asked_candidate({"version": None}, {})


def test_the_gate_hands_on_whom_it_judged_first_and_whom_it_refused(monkeypatch):
    import promote

    from pipeline.promotion import actions

    # The task sets these two; they are put back after the test.
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")

    def judgement(version, verdict):
        return SimpleNamespace(to_json=lambda: {"version": version, "verdict": verdict})

    def judge_in_turn(versions, *, workspace):
        assert (versions, workspace) == (["6", "7"], None)
        return judgement("7", "PASS"), [judgement("6", "FAIL")]

    monkeypatch.setattr(actions, "judge_in_turn", judge_in_turn)
    event = SimpleNamespace(
        extra={"version": "6", "order": ["6", "7"]}, timestamp=datetime(2026, 1, 1, tzinfo=UTC)
    )
    judged = promote.gate.function(params={"version": None}, triggering_asset_events={"a": [event]})
    refused = [{"version": "6", "verdict": "FAIL"}]
    assert judged == {"version": "7", "verdict": "PASS", "first": "6", "refused": refused}


def test_an_edit_of_the_plan_that_nobody_committed_takes_no_reviewer_away(tmp_path, monkeypatch):
    import promote

    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@localhost")
    monkeypatch.setattr(promote, "PROJECT", tmp_path)
    plan = tmp_path / "change_plan.yaml"
    plan.write_text("protocol: {reviewers: {clinical: Reads films., technical: Runs it.}}\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "change_plan.yaml")
    git(tmp_path, "commit", "--quiet", "--message", "Plan")
    plan.write_text("protocol: {reviewers: {technical: Runs it.}}\n")
    assert promote.roles() == ["clinical", "technical"]
    git(tmp_path, "commit", "--quiet", "--all", "--message", "Another plan")
    assert promote.roles() == ["technical"]
    plan.write_text("protocol: {}\n")
    git(tmp_path, "commit", "--quiet", "--all", "--message", "No reviewers")
    with pytest.raises(BadInput, match="names no reviewers"):
        promote.roles()


def test_a_refusal_names_who_and_why():
    from promote import refusal

    judged = {"verdict": "FAIL", "grounds": "the AUC is below 0.9"}
    assert refusal(judged, {}) == ("gate", "the AUC is below 0.9")
    silence = {"clinical": answered("Reject", name=None)}
    assert refusal(judged, silence) == ("nobody", "no answer as clinical within 7 days")
    no = {"clinical": answered(), "technical": answered("Reject", "ben", "edges are wrong")}
    assert refusal(judged, no) == ("ben (technical)", "edges are wrong")


GATE = {
    **{"version": "7", "verdict": "PASS", "champion": None, "model_sha256": "0", "started_by": "eve"},
    "reviewers": {"clinical": "Reads films.", "technical": "Runs the pipeline."},
}


class Handed:
    """What earlier tasks handed on, read as a task reads it."""

    def __init__(self, **values):
        self.values = values

    def xcom_pull(self, task_ids, key="return_value"):
        return self.values.get(task_ids if key == "return_value" else f"{task_ids}_{key}")


def test_the_outcome_is_one_sentence():
    import promote

    judged = {"version": "7", "champion": "3", "verdict": "PASS", "refused": []}
    tell = promote.tell.function
    promoted = Handed(gate=judged, promote={"content": {"by": "ada (clinical), ben (technical)"}})
    said = (
        "Version 7 is the champion now, in place of version 3: approved by ada (clinical), ben (technical)."
    )
    assert tell(ti=promoted) == said
    refused = [{"version": "6", "grounds": "the AUC is below 0.9"}]
    after = Handed(gate={**judged, "refused": refused}, promote={"content": {"by": "ada (clinical)"}})
    assert tell(ti=after).endswith(
        "approved by ada (clinical). Refused before it: version 6 (the AUC is below 0.9)."
    )
    first = {**judged, "champion": None}
    silent = Handed(gate=first, **{"review.clinical_answer": answered("Reject", name=None)})
    said = (
        "Version 7 is rejected by nobody (no answer as clinical within 7 days); there is still no champion."
    )
    assert tell(ti=silent) == said


@pytest.mark.parametrize(
    ("verdict", "following"),
    [
        ("PASS", "review.clinical"),
        ("FAIL", "reject"),
        ("OUTSIDE PLAN", "reject"),
        ("INSUFFICIENT EVIDENCE", "reject"),
    ],
)
def test_only_a_candidate_that_passed_reaches_a_person(verdict, following):
    import promote

    assert promote.triage.function(ti=Handed(gate={"verdict": verdict})) == following


def test_an_approval_without_a_name_promotes_nothing():
    import promote

    nameless = Handed(gate=GATE, **{"review.clinical_answer": answered(name=None)})
    with pytest.raises(AirflowFailException, match="the clinical reviewer must be named"):
        promote.promote.function(ti=nameless)


def test_a_revision_with_other_stages_fails_before_anything_runs(tmp_path, monkeypatch):
    import retrain

    from pipeline.versioning import workspace

    (tmp_path / "dvc.yaml").write_text("stages:\n  other:\n    cmd: echo\n")
    monkeypatch.setattr(workspace, "create", lambda *_: tmp_path)
    monkeypatch.setattr(workspace, "prune", lambda *_: [])
    params = {"revision": "v0", "seed": None, "note": None}
    with pytest.raises(AirflowFailException, match="revision v0 has other stages"):
        retrain.prepare.function(run_id="r", params=params)


def test_a_failed_run_keeps_its_workspace(tmp_path):
    import retrain

    said = retrain.cleanup.function(ti=Handed(prepare={"path": str(tmp_path)}))
    assert "is kept for 14 days" in said and tmp_path.exists()


def test_no_gpu_time_is_spent_before_the_films_are_compared(dags):
    retrain = dags["retrain"]
    assert retrain.get_task("drift").upstream_task_ids == {"validate"}
    after = retrain.get_task("drift").get_flat_relative_ids(upstream=False)
    assert {task.task_id for task in retrain.tasks if task.pool == "gpu"} <= after
    assert not {"validate", "split", "preprocess", "resample"} & after


@pytest.mark.parametrize(
    ("problem", "failure"), [(BadInput, AirflowFailException), (ResourceError, AirflowException)]
)
def test_a_large_shift_fails_at_once_and_a_registry_that_is_down_is_tried_again(
    tmp_path, monkeypatch, problem, failure
):
    import retrain

    from pipeline.monitoring import drift

    # The task sets these two; they are put back after the test.
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")

    def refuse(workspace, *, accept):
        assert (workspace, accept) == (tmp_path, False)
        raise problem("one sentence")

    monkeypatch.setattr(drift, "check_drift", refuse)
    with pytest.raises(AirflowException, match="one sentence") as raised:
        retrain.drift.function(params={"accept_drift": False}, ti=Handed(prepare={"path": str(tmp_path)}))
    assert type(raised.value) is failure


def test_an_accepted_shift_is_told_on(tmp_path, monkeypatch):
    import retrain

    from pipeline.monitoring import drift

    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")
    shift = Shift("brightness", "sd", Interval(2.0, 1.0, 3.0), Limits(0.2, 0.5), "large")
    compared = {"added": drift.Comparison(9, 9, [shift])}
    monkeypatch.setattr(
        drift, "check_drift", lambda _, *, accept: drift.DriftResult("1", accept, "0", "added", "s", compared)
    )
    told = retrain.drift.function(params={"accept_drift": True}, ti=Handed(prepare={"path": str(tmp_path)}))
    assert told["accepted"] is True and told["verdict"] == "large" and "comparisons" not in told
