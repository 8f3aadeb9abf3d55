"""The DAGs of after a promotion: when they run, what they emit, and what an answer can be."""

from datetime import UTC, datetime
from types import SimpleNamespace

import host
import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from openmed.errors import BadInput
from pipeline.monitoring.watching import Watch
from tests.dags.runs import Handed, keep, response
from tests.dags.test_dags import ROOT, dags  # noqa: F401

TOLD = {"version": "3", "sentence": "Version 3 drifts.", "page": "watch.html", "accounts": {}}


@pytest.fixture
def untouched(monkeypatch):
    """Tasks set these two; they are put back after the test."""
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")


def test_scoring_runs_by_hand_or_by_the_schedule_that_is_set(dags, monkeypatch):  # noqa: F811
    import importlib

    import score

    assert dags["score"].schedule is None
    assert dags["score"].params.dump() == {"films": str(ROOT / ".openmed/incoming")}
    monkeypatch.setenv("OPENMED_SCORE_SCHEDULE", "0 * * * *")
    monkeypatch.setenv("OPENMED_INCOMING", "/archive/today")
    again = importlib.reload(score)
    assert again.dag.schedule.expression == "0 * * * *"
    assert again.dag.params.dump() == {"films": "/archive/today"}


def test_a_hold_is_announced_and_starts_the_question(dags):  # noqa: F811
    announced = dags["score"].get_task("announce").outlets
    awaited = dags["hold"].timetable.asset_condition.objects
    assert [asset.name for asset in announced] == [asset.name for asset in awaited] == ["openmed_hold"]
    assert [asset.name for asset in dags["hold"].get_task("retrain").outlets] == ["openmed_dataset"]


def test_silence_keeps_the_hold(dags):  # noqa: F811
    import hold

    ask = dags["hold"].get_task("ask")
    assert ask.defaults == [hold.KEEP] and ask.response_timeout == hold.ANSWER_WITHIN
    assert ask.options_mapping == {hold.KEEP: "keep", hold.RELEASE: "release", hold.RETRAIN: "retrain"}


@pytest.mark.parametrize("verdict", ["PASS", "FAIL", "WARNING", "INSUFFICIENT EVIDENCE"])
def test_only_a_champion_outside_its_plan_is_announced(verdict):
    import score

    assert score.outside.function(ti=Handed(watch={"verdict": verdict})) is (verdict == "FAIL")


@pytest.mark.parametrize(
    ("verdict", "news", "asks"), [("WARNING", True, True), ("WARNING", False, False), ("FAIL", True, False)]
)
def test_a_warning_asks_people_for_labels_once_and_holds_nothing(dags, monkeypatch, verdict, news, asks):  # noqa: F811
    import score

    from pipeline.tools import alert

    found = {"verdict": verdict, "news": news, "sentence": "label 50 films"}
    assert score.doubtful.function(ti=Handed(watch=found)) is asks
    sent = []
    monkeypatch.setattr(alert, "send_alert", sent.append)
    score.ask_for_labels.function(ti=Handed(watch=found))
    assert sent == ["OpenMed: label 50 films"]
    assert dags["score"].get_task("ask_for_labels").upstream_task_ids == {"doubtful"}
    assert dags["score"].get_task("announce").upstream_task_ids == {"outside"}


def test_a_folder_without_films_is_skipped(tmp_path):
    import score

    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(AirflowSkipException, match="holds no films"):
            score.score.function(params={"films": str(folder)})


def test_a_champion_on_hold_fails_the_scoring_at_once(tmp_path, monkeypatch, untouched):
    import score

    from pipeline import monitoring as live

    def refuse(home, folder):
        assert (home, folder) == (host.HOME, tmp_path)
        raise BadInput("version 1 is on hold")

    (tmp_path / "film.png").write_bytes(b"x")
    monkeypatch.setattr(live, "score_films", refuse)
    with pytest.raises(AirflowFailException, match="version 1 is on hold"):
        score.score.function(params={"films": str(tmp_path)})


def test_watching_tells_the_verdict_and_no_films(monkeypatch, untouched):
    import score

    from pipeline import monitoring as live

    found = {"version": "1", "verdict": "WARNING", "news": True, "sentence": "s", "films": 9}
    found |= {"hold": None, "page": "p"}
    rest = dict.fromkeys(
        (
            *("patients", "labelled", "share", "flagged", "referred", "checks", "shifts", "periods"),
            *("oversight", "problem"),
        )
    )
    monkeypatch.setattr(live, "watch", lambda home: Watch(**found | rest))
    ti = Handed()
    ti.task_id = "watch"
    ti.written["watch"] = score.watch.function(ti=ti)
    assert {key: value for key, value in ti.written["watch"].items() if key != "seal"} == found
    told = list(score.announce.function(ti=ti))
    assert told[0].extra == {"version": "1", "sentence": "s", "page": "p"}


def test_a_release_needs_a_reason(dags, monkeypatch, untouched):  # noqa: F811
    import hold
    from people import Answer

    from pipeline import ledger

    monkeypatch.setattr(ledger, "on_hold", dict)
    ask, handed = dags["hold"].get_task("ask"), Handed(tell=TOLD)
    with pytest.raises(BadInput, match="a release needs a reason: say why"):
        ask.check(Answer.of(response(hold.RELEASE, comment=" "), "hold", {}), handed)
    ask.check(Answer.of(response(hold.RELEASE, comment="checked"), "hold", {}), handed)
    ask.check(Answer.of(response(hold.KEEP), "hold", {}), handed)


def test_the_message_is_sent_beside_the_question_not_before_it(dags, monkeypatch):  # noqa: F811
    import hold

    from pipeline.tools import alert

    sent = []
    monkeypatch.setattr(alert, "send_alert", sent.append)
    hold.alert.function(ti=Handed(tell={"version": "3", "sentence": "Version 3 drifts."}))
    assert sent == ["OpenMed: version 3 is on hold. Version 3 drifts."]
    assert dags["hold"].get_task("ask").upstream_task_ids == {"tell"}
    assert dags["hold"].get_task("alert").downstream_task_ids == set()


def test_people_are_told_of_the_newest_hold(monkeypatch, untouched):
    import hold

    from pipeline.promotion import actions

    def event(version, day):
        extra = {"version": version, "sentence": f"Version {version} drifts.", "page": "watch.html"}
        return SimpleNamespace(extra=extra, timestamp=datetime(2026, 1, day, tzinfo=UTC))

    ti = SimpleNamespace(dag_id="hold", run_id="r", task_id="tell")
    events = {"openmed_hold": [event("3", 2), event("2", 1)]}
    monkeypatch.setattr(actions, "accounts", lambda version: {"hold": [f"ward of {version}"]})
    told = hold.tell.function(triggering_asset_events=events, ti=ti)
    assert told.pop("seal")
    assert told == TOLD | {"accounts": {"hold": ["ward of 3"]}}
    with pytest.raises(AirflowFailException, match="no hold was announced"):
        hold.tell.function(triggering_asset_events={}, ti=ti)


def test_the_answer_is_carried_out_in_the_name_of_who_gave_it(monkeypatch, untouched):
    import hold

    from pipeline import ledger

    def release(version, *, by, reason):
        return ledger.Entry(9, "", "released", version, {"by": by, "reason": reason}, "")

    monkeypatch.setattr(ledger, "release", release)
    held = ledger.Entry(8, "2026-01-01T00:00:00Z", "held", "3", {"by": "monitoring", "reason": "drift"}, "")
    monkeypatch.setattr(ledger, "on_hold", lambda: {"3": held})
    handed = Handed(tell=TOLD)
    keep(monkeypatch, ask=response(hold.RELEASE, comment="checked"))
    done = hold.release.function(ti=handed)
    assert (done["version"], done["content"]) == ("3", {"by": "ada", "reason": "checked"})
    keep(monkeypatch, ask=response(hold.KEEP, name=None))
    assert (
        hold.keep.function(ti=handed) == "The hold of version 3 is left as it is, by nobody: no answer came."
    )
    keep(monkeypatch, ask=response(hold.RETRAIN))
    event = next(hold.retrain.function(ti=handed))
    assert event.extra == {"reason": "version 3 is on hold", "started_by": ["ada"]}


def test_what_nobody_answered_is_not_done_whatever_the_states_say(monkeypatch):
    import hold

    handed = Handed(tell=TOLD)
    keep(monkeypatch)
    for function in (
        hold.keep.function,
        hold.release.function,
        lambda ti: next(hold.retrain.function(ti=ti)),
    ):
        with pytest.raises(AirflowFailException, match="Airflow's record has no answer"):
            function(ti=handed)
    keep(monkeypatch, ask=response(hold.KEEP))
    with pytest.raises(
        AirflowFailException, match="has the answer 'Keep the hold': a state or an XCom was set"
    ):
        hold.release.function(ti=handed)


def test_an_answer_releases_no_later_hold(monkeypatch, untouched):
    import hold

    from pipeline import ledger

    held = ledger.Entry(8, "2026-01-02T12:00:01Z", "held", "3", {"by": "monitoring", "reason": "drift"}, "")
    monkeypatch.setattr(ledger, "on_hold", lambda: {"3": held})
    keep(monkeypatch, ask=response(hold.RELEASE, comment="checked"))
    with pytest.raises(AirflowFailException, match="version 3 was put on hold again after this answer"):
        hold.release.function(ti=Handed(tell=TOLD))
