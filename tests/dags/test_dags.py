"""The shape of the DAGs, as Airflow itself reads them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from host import Outage

from openmed.errors import BadInput, ResourceError
from openmed.metrics.intervals import Interval
from openmed.monitoring.drift import Limits, Shift
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.git import git
from tests.dags.runs import AT, Handed, keep, response

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


def test_airflow_asks_the_accounts_that_the_plan_of_the_version_names(dags, monkeypatch):
    asked = []

    def ask(self, context):
        asked.append(self.assigned_users)

    monkeypatch.setattr(HITLOperator, "execute", ask)
    for named in ({}, {"clinical": ["ada", "ben"]}):
        handed = Handed(gate=GATE | {"accounts": named})
        for role in ("clinical", "technical"):
            dags["promote"].get_task(f"review.{role}").execute({"ti": handed})
    ada, ben = ({"id": name, "name": name} for name in ("ada", "ben"))
    assert asked == [[], [], [ada, ben], []]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (response(), None),
        (response(name="eve"), "eve started the retraining of version 7 and cannot approve it"),
        (response(name=" ben"), "version 7 needs another person in each role: clinical, technical"),
        (response(comment="x" * 1989), None),
        (response(comment="x" * 1990), "the comment is longer than 2000 characters: say it shorter"),
        (response("Reject"), "a rejection needs a reason: say what is wrong with the version"),
        (response("Reject", comment=" "), "a rejection needs a reason: say what is wrong with the version"),
        (response("Reject", comment="\x1b"), "the reason holds characters that cannot be shown"),
        (response("Reject", name="eve", comment="edges are wrong"), None),
        (response("Reject", name=None), None),
    ],
)
def test_an_answer_that_cannot_count_is_asked_for_again(dags, monkeypatch, answer, problem):
    from people import Answer

    review = dags["promote"].get_task("review.technical")
    keep(monkeypatch, clinical=response(name="ben"))
    handed = Handed(gate=GATE)
    if problem is None:
        review.check(Answer.of(answer, "technical", {}), handed)
        return
    with pytest.raises(BadInput, match=problem):
        review.check(Answer.of(answer, "technical", {}), handed)


def test_the_newest_candidate_is_judged_unless_one_is_named():
    from promote import asked_candidate

    def event(version, day):
        return SimpleNamespace(extra={"version": version}, timestamp=datetime(2026, 1, day, tzinfo=UTC))

    events = {"openmed_candidate": [event("7", 2), event("6", 1), SimpleNamespace(extra={}, timestamp=None)]}
    assert asked_candidate({"version": None}, events) == {"version": "7"}
    assert asked_candidate({"version": "3"}, events) == {"version": "3"}
    with pytest.raises(AirflowFailException, match="parameter 'version'"):
        asked_candidate({"version": None}, {})


def test_the_gate_hands_on_whom_it_judged_first_and_whom_it_refused(tmp_path, monkeypatch):
    import promote

    from pipeline.promotion import actions, films

    # The task sets these two; they are put back after the test.
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")

    def judgement(version, verdict):
        said = {"version": version, "verdict": verdict}
        return SimpleNamespace(**said, reviewers=GATE["reviewers"], to_json=lambda: said)

    def judge_in_turn(versions, *, workspace):
        assert (versions, workspace) == (["6", "7"], tmp_path)
        return judgement("7", "PASS"), [judgement("6", "FAIL")]

    monkeypatch.setattr(actions, "judge_in_turn", judge_in_turn)
    asked = []
    monkeypatch.setattr(films, "films_at_hand", lambda *_, at_any_rate: asked.append(at_any_rate) or tmp_path)
    event = SimpleNamespace(
        extra={"version": "6", "order": ["6", "7"]}, timestamp=datetime(2026, 1, 1, tzinfo=UTC)
    )
    judged = promote.gate.function(
        params={"version": None},
        triggering_asset_events={"a": [event]},
        dag_run=SimpleNamespace(triggering_user_name=None),
        ti=Handed(),
    )
    assert asked == [True]
    refused = [{"version": "6", "verdict": "FAIL"}]
    assert judged.pop("seal")
    assert judged == {"version": "7", "verdict": "PASS", "first": "6", "refused": refused}


def test_an_edit_of_the_plan_that_nobody_committed_takes_no_reviewer_away(tmp_path, monkeypatch):
    import host
    import promote

    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@localhost")
    monkeypatch.setattr(host, "PROJECT", tmp_path)
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
    from people import Answer
    from promote import refusal

    failed, passed = ({"version": "7", "verdict": each, "grounds": "AUC"} for each in ("FAIL", "PASS"))
    assert refusal(failed, {}) == ("gate", "AUC")
    silence = {"clinical": Answer("Reject", None, "", AT)}
    assert refusal(passed, silence) == ("nobody", "no answer as clinical within 7 days")
    no = {
        "clinical": Answer("Approve", "ada", "", AT),
        "technical": Answer("Reject", "ben", "edges are wrong", AT),
    }
    assert refusal(passed, no) == ("ben (technical)", "edges are wrong")
    with pytest.raises(AirflowFailException, match="nobody has rejected version 7: a state was set by hand"):
        refusal(passed, {})


GATE = {
    **{
        "version": "7",
        "verdict": "PASS",
        "champion": None,
        "model_sha256": "0",
        "started_by": "eve",
        "started_login": None,
    },
    "reviewers": {"clinical": "Reads films.", "technical": "Runs the pipeline."},
    **{"accounts": {}, "refused": [], "table_markdown": "| gate |", "films_markdown": ""},
}


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


def test_the_outcome_of_a_rejection_is_that_of_the_record():
    import promote

    first = {"version": "7", "champion": None, "verdict": "PASS", "refused": []}
    said = {"by": "nobody", "reason": "no answer as clinical within 7 days"}
    assert promote.tell.function(ti=Handed(gate=first, reject={"content": said})) == (
        "Version 7 is rejected by nobody (no answer as clinical within 7 days); there is still no champion."
    )


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


def test_a_revision_with_other_stages_fails_before_anything_runs(tmp_path, monkeypatch):
    import retrain

    from pipeline.versioning import workspace

    (tmp_path / "dvc.yaml").write_text("stages:\n  other:\n    cmd: echo\n")
    monkeypatch.setattr(workspace, "create", lambda *_, **__: tmp_path)
    params = {"revision": "v0", "seed": None, "note": None}
    run = SimpleNamespace(triggering_user_name="ada", run_type="manual")
    with pytest.raises(AirflowFailException, match="revision v0 has other stages"):
        retrain.prepare.function(params=params, dag_run=run, triggering_asset_events=None, ti=Handed())


def test_no_gpu_time_is_spent_before_the_films_are_compared(dags):
    retrain = dags["retrain"]
    assert retrain.get_task("drift").upstream_task_ids == {"validate"}
    after = retrain.get_task("drift").get_flat_relative_ids(upstream=False)
    assert {task.task_id for task in retrain.tasks if task.pool == "gpu"} <= after
    assert not {"validate", "split", "preprocess", "resample"} & after


@pytest.fixture
def own_run(tmp_path, monkeypatch) -> Path:
    """The workspace of a run in which `validate` has written nothing."""
    import retrain

    monkeypatch.setattr(retrain, "workspace_of", lambda ti: tmp_path)
    return tmp_path


@pytest.mark.parametrize(("problem", "failure"), [(BadInput, AirflowFailException), (ResourceError, Outage)])
def test_a_large_shift_fails_at_once_and_a_registry_that_is_down_is_tried_again(
    own_run, monkeypatch, problem, failure
):
    import retrain

    from pipeline.monitoring import drift

    # The task sets these two; they are put back after the test.
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")

    def refuse(workspace, *, accept):
        assert (workspace, accept) == (own_run, False)
        raise problem("one sentence")

    monkeypatch.setattr(drift, "check_drift", refuse)
    with pytest.raises(AirflowException, match="one sentence") as raised:
        retrain.drift.function(params={"accept_drift": False}, ti=Handed(prepare={"revision": "0"}))
    assert type(raised.value) is failure


def test_an_accepted_shift_is_told_on(own_run, monkeypatch):
    import retrain

    from pipeline.monitoring import drift

    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")
    shift = Shift("brightness", "sd", Interval(2.0, 1.0, 3.0), Limits(0.2, 0.5), "large")
    compared = {"added": drift.Comparison(9, 9, [shift])}
    monkeypatch.setattr(
        drift, "check_drift", lambda _, *, accept: drift.DriftResult("1", accept, "0", "added", "s", compared)
    )
    told = retrain.drift.function(params={"accept_drift": True}, ti=Handed(prepare={"revision": "0"}))
    assert (
        told["accepted"] is True and told["verdict"] == "large" and told["comparisons"]["added"]["films"] == 9
    )
