"""What counts as a decision: Airflow's own record of answers, and no XCom or state that others can write."""

import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from host import Outage

from openmed.errors import BadInput, ResourceError
from tests.dags.runs import AT, Handed, keep, response
from tests.dags.test_dags import GATE, dags  # noqa: F401

YES = {"clinical": response(name="ada"), "technical": response(name="ben", comment="fine")}


@pytest.fixture
def promoted(monkeypatch):
    """What reached the promotion; the variables that tasks set are put back."""
    from pipeline.promotion import actions

    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")
    calls = []

    def promote(version, **options):
        calls.append((version, options))
        return SimpleNamespace(to_json=lambda: {"version": version, "content": {"by": "ada, ben"}})

    monkeypatch.setattr(actions, "promote", promote)
    return calls


def run_promote(ti):
    import promote

    return promote.promote.function(ti=ti)


def test_the_answers_of_airflow_are_what_is_promoted_on(promoted, monkeypatch):
    keep(monkeypatch, **YES)
    run_promote(Handed(gate=GATE))
    said = {"approved_by": {"clinical": "ada", "technical": "ben"}, "comment": "technical: fine"}
    assert promoted == [("7", said | {"answered_at": AT, "expected_champion": None, "expected_model": "0"})]


def test_answers_written_as_xcoms_promote_nothing(promoted, monkeypatch):
    """The tasks are marked success; nobody answered."""
    keep(monkeypatch)
    forged = Handed(gate=GATE)
    forged.xcom_pull = lambda task_ids, key="return_value": (
        response(name="ada") if key == "answer" else forged.written.get(task_ids)
    )
    with pytest.raises(AirflowFailException, match="Airflow has no record of an answer as clinical"):
        run_promote(forged)
    keep(monkeypatch, clinical=YES["clinical"], technical=response() | {"response_received": False})
    with pytest.raises(AirflowFailException, match="Airflow has no record of an answer as technical"):
        run_promote(forged)
    assert promoted == []


@pytest.mark.parametrize(
    ("name", "by", "reason"),
    [("ben", "ben (technical)", "edges"), (None, "nobody", "no answer as technical within 7 days")],
)
def test_a_no_to_a_review_that_was_marked_as_done_is_recorded_and_promotes_nothing(
    promoted, monkeypatch, name, by, reason
):
    from pipeline import ledger

    said = []
    monkeypatch.setattr(ledger, "reject", lambda version, *, by, reason: said.append((version, by, reason)))
    # Airflow keeps an answer to a task that is no longer waiting, and does not go on with it.
    no = response("Reject", name, "edges")
    for given in ({**YES, "technical": no}, {"technical": no}):
        keep(monkeypatch, **given)
        with pytest.raises(AirflowFailException, match=rf"{re.escape(by)} said no: a state was set by hand"):
            run_promote(Handed(gate=GATE))
    assert promoted == [] and said == [("7", by, reason)] * 2


def test_answers_to_another_question_promote_and_reject_nothing(promoted, monkeypatch):
    """The gate was cleared after them, without the reviews, and passes another version now."""
    import promote

    for option in ("Approve", "Reject"):
        keep(monkeypatch, "6", clinical=response(option, comment="edges"), technical=response(name="ben"))
        with pytest.raises(AirflowFailException, match="Airflow has no record of an answer as clinical"):
            run_promote(Handed(gate=GATE))
        with pytest.raises(AirflowFailException, match="nobody has rejected version 7"):
            promote.reject.function(ti=Handed(gate=GATE))
    assert promoted == []


def test_an_approval_without_a_name_promotes_nothing(monkeypatch):
    from pipeline.promotion import actions

    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(actions, "gate", None)
    keep(monkeypatch, **{**YES, "clinical": response(name=None)})
    with pytest.raises(AirflowFailException, match="the clinical reviewer must be named"):
        run_promote(Handed(gate=GATE))


@pytest.mark.parametrize(
    ("name", "comment", "by"),
    [("ada", "edges", "ada (clinical)"), (None, None, "nobody")],
)
def test_a_no_is_in_the_record_before_any_other_task_runs(dags, monkeypatch, promoted, name, comment, by):  # noqa: F811
    from pipeline import ledger

    said = []
    monkeypatch.setattr(ledger, "reject", lambda version, *, by, reason: said.append((version, by, reason)))
    ask = dags["promote"].get_task("review.clinical")
    monkeypatch.setattr(ask, "do_branch", lambda context, following: following)
    event = response("Reject", name, comment) | {"responded_at": AT}
    assert ask.execute_complete({"ti": Handed(gate=GATE)}, event) == ["reject"]
    assert said == [("7", by, comment or "no answer as clinical within 7 days")]
    assert ask.execute_complete({"ti": Handed(gate=GATE)}, {**event, "chosen_options": ["Approve"]}) == [
        "review.technical"
    ]
    assert len(said) == 1


@pytest.mark.parametrize("change", [{"version": "8"}, {"champion": "3"}, {"verdict": "PASS "}, {"seal": {}}])
def test_a_result_of_the_gate_that_was_rewritten_is_noticed(promoted, monkeypatch, change):
    import promote

    keep(monkeypatch, **YES)
    handed = Handed(gate=GATE)
    handed.written["gate"] |= change
    for function in (promote.triage.function, promote.promote.function, promote.reject.function):
        with pytest.raises(
            AirflowFailException, match="the XCom of task 'gate' is not what the task handed on"
        ):
            function(ti=handed)
    assert promoted == []


def test_a_gate_that_was_marked_success_decides_nothing(promoted, monkeypatch):
    import promote

    keep(monkeypatch, **YES)
    for function in (promote.triage.function, promote.promote.function, promote.tell.function):
        with pytest.raises(AirflowFailException, match="task 'gate' of this run has not run"):
            function(ti=Handed())


def test_what_another_run_handed_on_is_not_taken(promoted):
    other = Handed(gate=GATE)
    other.run_id = "manual__2"
    with pytest.raises(AirflowFailException, match="written by hand"):
        run_promote(other)


def test_nobody_answers_for_a_role_that_they_are_not_named_for(promoted, monkeypatch):
    keep(monkeypatch, **YES)
    for named in (["ann", "eva"], []):
        with pytest.raises(
            AirflowFailException, match="ada answered as clinical and is not named for it: see"
        ):
            run_promote(Handed(gate=GATE | {"accounts": {"clinical": named}}))
    assert promoted == []
    run_promote(Handed(gate=GATE | {"accounts": {"clinical": ["ann", "ada"]}}))
    assert len(promoted) == 1


def test_an_airflow_that_does_not_answer_is_asked_again(promoted, monkeypatch):
    import people

    def down(dag_id, run_id):
        raise ResourceError("Airflow does not answer")

    monkeypatch.setattr(people, "_airflow", lambda: SimpleNamespace(responses=down))
    with pytest.raises(AirflowException, match="does not answer") as raised:
        run_promote(Handed(gate=GATE))
    assert type(raised.value) is Outage and promoted == []


def test_the_rejection_of_what_nobody_rejected_is_not_recorded(promoted, monkeypatch):
    import promote

    keep(monkeypatch, **YES)
    with pytest.raises(AirflowFailException, match="nobody has rejected version 7"):
        promote.reject.function(ti=Handed(gate=GATE))


def test_the_question_says_who_started_the_retraining_and_comes_from_no_template(dags):  # noqa: F811
    ask = dags["promote"].get_task("review.clinical")
    subject, body = ask.question(Handed(gate=GATE | {"table_markdown": "{{ 7 * 7 }}"}))
    assert subject == "Shall version 7 become the champion?"
    assert "Its retraining was started by eve." in body and "{{ 7 * 7 }}" in body
    assert "You answer as **clinical**: Reads films." in body
    _, body = ask.question(Handed(gate=GATE | {"started_by": None, "champion": "3"}))
    assert "was started by nobody: the schedule did." in body and "against champion **3**" in body
    _, body = ask.question(Handed(gate=GATE | {"refused": [{"version": "5"}, {"version": "6"}]}))
    assert body.startswith("The gates refused version 5 and 6, which did better")


def by(name, kind):
    return SimpleNamespace(triggering_user_name=name, run_type=kind)


def event(*names, **extra):
    return SimpleNamespace(extra={**extra, "started_by": list(names)} if names else extra)


def test_the_starter_of_a_retraining_travels():
    from people import starter

    assert starter(by("ada", "manual"), []) == "ada"
    assert starter(by(None, "scheduled"), []) is None
    assert starter(by(None, "asset_triggered"), [event("ben", "admin"), event("ada")]) == "ada, admin, ben"
    for run, events in (
        (by(None, "asset_triggered"), []),
        (by(None, "asset_triggered"), [event("ada"), event(reason="x")]),
        (by(None, "scheduled"), [event(from_rest_api=True)]),
        (by(None, "manual"), []),
    ):
        with pytest.raises(AirflowFailException, match="nobody says who started this retraining"):
            starter(run, events)


def test_a_retraining_that_nobody_says_they_started_makes_no_workspace(monkeypatch):
    import retrain

    events = {"openmed_dataset": [event(films=3)]}
    with pytest.raises(AirflowFailException, match=r"start it in Airflow or by `openmed data add`"):
        retrain.prepare.function(
            params={}, dag_run=by(None, "asset_triggered"), triggering_asset_events=events, ti=Handed()
        )


def test_several_who_started_a_retraining_may_none_of_them_approve_it():
    from pipeline import ledger

    basis = ledger.Basis("7", "PASS", None, "0", {"clinical": "Reads films."}, "ada, ben")
    for name in ("ada", "BEN"):
        with pytest.raises(BadInput, match="started the retraining of version 7"):
            basis.check_people({"clinical": name})
    basis.check_people({"clinical": "eve"})


def test_who_retrained_cannot_start_the_promotion(promoted, monkeypatch):
    import promote

    from pipeline import ledger

    registered = ledger.Entry(1, "", "registered", "7", {"started_by": "eve"}, "")
    monkeypatch.setattr(ledger, "history", lambda version=None: [registered])
    with pytest.raises(
        AirflowFailException, match="eve started the retraining of version 7 and cannot start"
    ):
        promote.gate.function(
            params={"version": "7"}, triggering_asset_events=None, dag_run=by("eve", "manual"), ti=Handed()
        )


def test_a_plan_with_other_roles_than_are_asked_stops_at_the_gate(promoted, monkeypatch):
    import promote

    from pipeline.promotion import actions, films

    judged = SimpleNamespace(version="7", verdict="PASS", reviewers={"clinical": "Reads films."})
    monkeypatch.setattr(films, "films_at_hand", lambda *_, at_any_rate: None)
    monkeypatch.setattr(actions, "check_starter", lambda versions, by: None)
    monkeypatch.setattr(actions, "judge_in_turn", lambda versions, *, workspace: (judged, []))
    said = "plan of version 7 asks clinical, the project's committed plan clinical and technical: commit"
    with pytest.raises(AirflowFailException, match=said):
        promote.gate.function(
            params={"version": "7"}, triggering_asset_events=None, dag_run=by("ada", "manual"), ti=Handed()
        )


def test_old_answers_carry_no_second_promotion(monkeypatch):
    from pipeline import ledger
    from pipeline.promotion import actions

    def entry(number, at, event, version, **content):
        return ledger.Entry(number, at, event, version, content, "")

    people = {"clinical": "ada"}
    own = entry(2, "2026-01-02T13:00:00Z", "promoted", "7", approvals=people)
    restored = entry(3, "2026-01-03T13:00:00Z", "restored", "3")
    held = entry(3, "2026-01-03T13:00:00Z", "held", "7")
    approval = ledger.Approval.of(people, None)
    for since, passes in (([own], True), ([own, restored], False), ([own, held], False), ([restored], False)):
        monkeypatch.setattr(ledger, "history", lambda version=None, since=since: since)
        if passes:
            actions._check_fresh("7", approval, AT)
            actions._check_fresh("7", approval, datetime(2027, 1, 1, tzinfo=UTC))
            continue
        with pytest.raises(BadInput, match="the answers on version 7 are older than what was decided since"):
            actions._check_fresh("7", approval, AT)
