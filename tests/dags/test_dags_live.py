"""The DAGs of after a promotion: when they run, what they emit, and what an answer can be."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from openmed.errors import BadInput
from pipeline.monitoring.watching import Watch
from tests.dags.test_dags import Handed, dags  # noqa: F401


@pytest.fixture
def untouched(monkeypatch):
    """Tasks set these two; they are put back after the test."""
    for name in ("OPENMED_PROJECT", "OPENMED_HOME"):
        monkeypatch.setenv(name, "")


def test_scoring_runs_by_hand_or_by_the_schedule_that_is_set(dags, monkeypatch):  # noqa: F811
    import importlib

    import score

    assert dags["score"].schedule is None
    assert dags["score"].params.dump() == {"films": str(score.HOME / "incoming")}
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
        assert (home, folder) == (score.HOME, tmp_path)
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
        ("patients", "labelled", "share", "flagged", "referred", "checks", "shifts", "periods", "oversight")
    )
    monkeypatch.setattr(live, "watch", lambda home: Watch(**found | rest))
    assert score.watch.function() == found
    told = list(score.announce.function(ti=Handed(watch=found)))
    assert told[0].extra == {"version": "1", "sentence": "s", "page": "p"}


def answer(option, comment=None, name="ada"):
    user = name and {"id": "1", "name": name}
    return {"chosen_options": [option], "responded_by_user": user, "params_input": {"comment": comment}}


def test_a_release_needs_a_reason(dags):  # noqa: F811
    import hold

    ask = dags["hold"].get_task("ask")
    with pytest.raises(BadInput, match="a release needs a reason: say why"):
        hold.HoldOperator.check(ask, answer(hold.RELEASE, " "), None)
    hold.HoldOperator.check(ask, answer(hold.RELEASE, "checked"), None)
    hold.HoldOperator.check(ask, answer(hold.KEEP), None)


def test_the_message_is_sent_beside_the_question_not_before_it(dags, monkeypatch):  # noqa: F811
    import hold

    from pipeline.tools import alert

    sent = []
    monkeypatch.setattr(alert, "send_alert", sent.append)
    hold.alert.function(ti=Handed(tell={"version": "3", "sentence": "Version 3 drifts."}))
    assert sent == ["OpenMed: version 3 is on hold. Version 3 drifts."]
    assert dags["hold"].get_task("ask").upstream_task_ids == {"tell"}
    assert dags["hold"].get_task("alert").downstream_task_ids == set()


def test_people_are_told_of_the_newest_hold():
    import hold

    def event(version, day):
        extra = {"version": version, "sentence": f"Version {version} drifts.", "page": "watch.html"}
        return SimpleNamespace(extra=extra, timestamp=datetime(2026, 1, day, tzinfo=UTC))

    told = hold.tell.function(triggering_asset_events={"openmed_hold": [event("3", 2), event("2", 1)]})
    assert told == {"version": "3", "sentence": "Version 3 drifts.", "page": "watch.html"}
    with pytest.raises(AirflowFailException, match="no hold was announced"):
        hold.tell.function(triggering_asset_events={})


def test_the_answer_is_carried_out_in_the_name_of_who_gave_it(monkeypatch, untouched):
    import hold

    from pipeline import ledger

    def release(version, *, by, reason):
        return ledger.Entry(9, "", "released", version, {"by": by, "reason": reason}, "")

    monkeypatch.setattr(ledger, "release", release)
    handed = Handed(tell={"version": "3"}, ask_answer=answer(hold.RELEASE, "checked"))
    done = hold.release.function(ti=handed)
    assert (done["version"], done["content"]) == ("3", {"by": "ada", "reason": "checked"})
    silent = Handed(tell={"version": "3"}, ask_answer=answer(hold.KEEP, name=None))
    assert hold.keep.function(ti=silent) == "Version 3 stays on hold, by nobody: no answer came."
    event = next(hold.retrain.function(ti=handed))
    assert event.extra == {"reason": "version 3 is on hold"}
