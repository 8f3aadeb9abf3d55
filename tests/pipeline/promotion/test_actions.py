import html
import json
import re
import shutil
import sqlite3
import threading
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json, write_json
from openmed.gates.gate import FAIL, INSUFFICIENT, NOT_SHOWN, OUTSIDE_PLAN, PASS, Gate
from openmed.metrics.intervals import judged_intervals
from pipeline import ledger, registry
from pipeline.ledger import decisions
from pipeline.promotion import actions as promotion
from pipeline.promotion import review
from pipeline.promotion.gates.comparison import CHAMPION as CHAMPION_ROLE
from pipeline.promotion.gates.comparison import difference_gates
from pipeline.promotion.gates.evidence import Evidence, confidence_of_look
from pipeline.promotion.gates.verdict import joint_verdict
from pipeline.registry import scoring
from pipeline.tracking import versions
from pipeline.tracking.store import connect
from tests.pipeline.conftest import crown, make_workspace, register, roll_back

NO_FLOORS = {"auc": 0.0, "sensitivity": 0.0, "specificity": 0.0}
CHAMPION, BETTER, WORSE, FAILED, UNKNOWN, OVERLAPPING, SWALLOWED = "1234567"


@pytest.fixture(scope="module")
def ground(tmp_path_factory, migrated):
    """A registry with a champion and challengers of every kind, each registered beside it."""
    root = tmp_path_factory.mktemp("ground")
    home = root / "home"
    home.mkdir()
    shutil.copy(migrated, home / "mlflow.db")
    shaping = ["train"] * 4 + ["validation"] * 2 + ["calibration"] * 2
    overlapping, inside = (["test"] * 8 + shaping + [rest] * 24 for rest in ("test", "left_out"))
    kinds = [
        {},
        {"seed": 1, "films_seed": 1},
        {"seed": 2, "films_seed": 1, "good": False, "floors": NO_FLOORS},
        {"seed": 3, "films_seed": 1, "good": False},
        {"seed": 4, "films_seed": 1},
        {"seed": 5, "splits": overlapping},
        {"seed": 6, "splits": inside},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for number, kind in enumerate(kinds, start=1):
            workspace = make_workspace(root / str(number), ("vit",), **kind)
            if str(number) == UNKNOWN:
                _claim_that_nan_passes(workspace / "artifacts/evaluate/vit/gates.json")
            assert register(workspace, f"run-{number}").version == str(number)
            if number == 1:
                write_json(root / "first.json", promotion.show("1", workspace=workspace).to_json())
                record = promotion.promote(
                    "1", approved_by={"clinical": "Dr First"}, comment="", expected_champion=None
                )
                assert record.content["replaced"] is None
    shutil.copy(home / "mlflow.db", root / "snapshot.db")
    shutil.copytree(home / "record.git", root / "snapshot.git")
    return root


def _claim_that_nan_passes(path):
    content = read_json(path)
    content["gates"][0] |= {"value": None, "low": None, "high": None}
    assert content["gates"][0]["verdict"] == content["verdict"] == PASS
    write_json(path, content)


@pytest.fixture
def stage(ground, monkeypatch):
    """The same registry for every test: version 1 is the champion, nothing is decided on the others."""
    monkeypatch.setenv("OPENMED_HOME", str(ground / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with sqlite3.connect(ground / "snapshot.db") as kept, sqlite3.connect(ground / "home/mlflow.db") as store:
        kept.backup(store)
    shutil.rmtree(ground / "home/record.git")
    shutil.copytree(ground / "snapshot.git", ground / "home/record.git")
    return ground


def promote(version=BETTER, by="Dr Adams", expected=CHAMPION, **more):
    return promotion.promote(
        version, approved_by={"clinical": by}, comment="looks right", expected_champion=expected, **more
    )


def aliases():
    return {name: version for name, version in versions.aliases().items() if name != "challenger"}


def test_the_gate_compares_on_the_same_films_and_its_numbers_are_right(stage):
    result = promotion.gate(BETTER)
    assert (result.verdict, result.champion, result.version) == (PASS, CHAMPION, BETTER)
    assert [gate.name for gate in result.comparison] == [
        "auc vs champion",
        "sensitivity vs champion",
        "specificity vs champion",
    ]
    films = pd.read_parquet(stage / BETTER / "artifacts/evaluate/vit/predictions.parquet")
    films = films[films["split"] == "test"].set_index("id")
    theirs = pd.read_parquet(registry.artifact(BETTER, "champion_predictions.parquet")).set_index("id")[
        "score"
    ]
    theirs = theirs.loc[films.index]
    auc = roc_auc_score(films["label"], films["score"]) - roc_auc_score(films["label"], theirs)
    flagged = theirs[films["label"] == 1] >= 0.5
    values = [gate.value for gate in result.comparison]
    assert values[0] == pytest.approx(auc) and values[1] == pytest.approx(1 - flagged.mean())
    assert (result.films_compared, result.films_left_out) == (24, 0)
    assert json.loads(json.dumps(result.to_json())) == result.to_json()


def test_the_table_is_markdown_with_every_gate_and_the_report(stage):
    result = promotion.gate(BETTER)
    table = result.table_markdown
    assert f"**Version {BETTER} (vit): PASS**" in table
    assert table.count("\n| auc") == 2 and "| gate | value | interval | required |" in table
    assert f"heat maps: {result.report}" in table and Path(result.report).is_file()


def test_the_review_page_shows_where_the_two_disagree_and_belongs_to_the_record(stage):
    judged = promotion.show(BETTER, workspace=stage / BETTER)
    page = Path(judged.review)
    text = page.read_text()
    assert "version 2 (vit) become the champion in place of version 1?" in text
    assert text.count("<article") >= 4 and text.count('alt="champion, film') == text.count("<article")
    assert "New misses: the champion flags them" in text
    assert judged.review in judged.table_markdown and "http" not in text.replace("data:image", "")
    films = pd.read_parquet(stage / BETTER / "artifacts/evaluate/vit/predictions.parquet")
    assert not any(patient in text for patient in films["patient"])
    assert ledger.history(BETTER)[-1].content["model_sha256"] == judged.model_sha256
    assert registry.verify(BETTER)[-1].problem is None
    page.write_text(text.replace("PASS", "FAIL"))
    assert f"reviews/{page.name} of version 2 was changed" in registry.verify(BETTER)[-1].problem
    page.write_text(text)
    (page.parent / "unrecorded.html").write_text("cut off before its entry")
    assert registry.verify(BETTER)[-1].problem is None


def test_the_films_that_harm_most_stand_beside_the_question_and_belong_to_the_record(stage, monkeypatch):
    monkeypatch.setenv("OPENMED_MLFLOW_URL", "https://models.example/")
    text = promotion.show(BETTER, workspace=stage / BETTER).films_markdown
    titles = re.findall(r"\*\*(.+): (\d+)\*\*", text)
    assert titles[0][0] == "New misses: the champion flags them" and len(titles) == 4
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "![" in line]
    assert len(rows) == sum(min(3, int(count)) for _, count in titles) > 0
    run = registry.get_version(BETTER).run_id
    stored = next((stage / "home/mlartifacts" / run).rglob("reviews")).parent
    for cells in rows:
        for cell, caption in zip(cells, ("film", "this version", "champion"), strict=True):
            address, said = cell.removeprefix(f"![{caption}](https://models.example/get-artifact?").split(
                ") "
            )
            assert re.fullmatch(r"(NORMAL|PNEUMONIA), film \w+" if caption == "film" else r"\d\.\d{3}", said)
            query = parse_qs(address)
            assert query["run_uuid"] == [run]
            shown = cv2.imread(str(stored / query["path"][0])).astype(int)
            colour = np.ptp(shown, axis=2).max()
            assert shown.shape == (220, 198, 3) and (colour < 10 if caption == "film" else colour > 60)
    picture = stored / query["path"][0]
    before = picture.read_bytes()
    picture.write_bytes(before[:-1] + b"!")
    assert f"reviews/{picture.name} of version 2 was changed" in registry.verify(BETTER)[-1].problem
    picture.write_bytes(before)
    assert registry.verify(BETTER)[-1].problem is None


def test_every_film_on_which_the_two_disagree_is_on_the_page(stage, monkeypatch):
    monkeypatch.setattr(review, "_SHOWN", 1)
    text = Path(promotion.show(BETTER, workspace=stage / BETTER).review).read_text()
    totals = [int(found) for found in re.findall(r'<span class="soft">\((\d+)\)</span></h3>', text)]
    assert len(totals) == 4 and max(totals) > 1
    assert text.count("<article") == sum(total > 0 for total in totals)
    assert text.count(" · film ") == sum(totals)


def test_without_a_champion_the_page_shows_what_the_model_gets_wrong(stage):
    text = Path(json.loads((stage / "first.json").read_text())["review"]).read_text()
    assert "Films that it gets wrong" in text and "champion, film" not in text


def test_the_first_model_needs_no_champion_to_be_compared_with(stage):
    result = read_json(stage / "first.json")
    assert (result["verdict"], result["champion"], result["comparison"]) == (PASS, None, [])
    assert "There is no champion to compare with." in result["table_markdown"]


def test_the_champion_is_judged_by_its_floors_alone(stage):
    assert promotion.gate(CHAMPION).note == "This version is the champion."


@pytest.mark.parametrize(
    ("version", "verdict"), [(WORSE, OUTSIDE_PLAN), (FAILED, FAIL), (SWALLOWED, INSUFFICIENT)]
)
def test_a_version_that_does_not_pass_cannot_be_promoted(stage, version, verdict):
    assert promotion.gate(version).verdict == verdict
    with pytest.raises(BadInput, match=f"version {version} cannot be promoted: its gate says {verdict}"):
        promote(version)
    assert aliases() == {"champion": CHAMPION}


def test_a_loss_that_few_films_cannot_show_is_left_to_the_reviewers_where_the_plan_says_so(stage):
    found = promotion.gate(WORSE).comparison[0]
    assert (found.verdict, found.value < found.floor < found.high) == (NOT_SHOWN, True)


def compared(stage, apart, *, left_to_people, films=400):
    """Verdicts on sensitivity and AUC of a model that misses a share more of the films than another."""
    evidence = Evidence.of(BETTER)
    evaluation = evidence.plan.protocol.evaluation.model_copy(update={"reviewers_decide": left_to_people})
    protocol = evidence.plan.protocol.model_copy(update={"evaluation": evaluation})
    evidence.__dict__["plan"] = evidence.plan.model_copy(update={"protocol": protocol})
    label = np.arange(films) % 2
    missed = (label == 1) & (np.arange(films) < apart * films)
    good = np.where(label == 1, 0.9, 0.1)
    table = pd.DataFrame({"label": label, "score": np.where(missed, 0.2, good), "score_other": good})
    table["patient"] = [f"p{number}" for number in range(films)]
    margins = {"sensitivity": 0.05, "auc": 0.02}
    gates = difference_gates(evidence, table, 0.5, CHAMPION_ROLE, margins)
    return {gate.name.split()[0]: gate for gate in gates}


def test_a_comparison_must_be_shown_or_is_left_to_people_but_never_when_the_loss_is_sure(stage):
    strict = compared(stage, 0.0, left_to_people=(), films=60)["sensitivity"]
    assert strict.verdict == INSUFFICIENT
    assert re.search(r"; about \d+ films instead of 30 would show it of an equal model\.$", strict.reason)
    assert compared(stage, 0.0, left_to_people=(), films=400)["sensitivity"].verdict == PASS
    left = compared(stage, 0.0, left_to_people=("sensitivity",), films=60)["sensitivity"]
    assert left.verdict == NOT_SHOWN
    unsure = compared(stage, 0.07, left_to_people=("sensitivity",), films=60)["sensitivity"]
    assert unsure.value < -0.05 and unsure.verdict == NOT_SHOWN
    assert compared(stage, 0.07, left_to_people=(), films=60)["sensitivity"].verdict == FAIL
    sure = compared(stage, 0.25, left_to_people=("sensitivity",))["sensitivity"]
    assert sure.verdict == FAIL
    unknown = compared(stage, 0.0, left_to_people=("sensitivity", "auc"), films=1)
    assert {gate.verdict for gate in unknown.values()} == {FAIL}


def test_a_gate_that_says_pass_without_numbers_is_found(stage):
    for use in (promotion.gate, promote):
        with pytest.raises(IntegrityError, match=r"gates\.json of version 5 says"):
            use(UNKNOWN)


def test_films_that_shaped_the_champion_are_left_out_of_the_comparison(stage):
    result = promotion.gate(OVERLAPPING)
    assert (result.films_compared, result.films_left_out) == (24, 8)
    assert result.verdict == PASS and "8 were left out" in result.note
    swallowed = promotion.gate(SWALLOWED)
    assert (swallowed.films_compared, swallowed.comparison) == (0, [])
    assert "8 of 8 test films have shaped champion 1" in swallowed.note


@pytest.mark.parametrize(
    ("own", "comparison", "verdict"),
    [
        ([PASS, PASS], [], PASS),
        ([PASS], [PASS, NOT_SHOWN], PASS),
        ([PASS], [PASS, INSUFFICIENT], INSUFFICIENT),
        ([PASS], [PASS, FAIL], FAIL),
        ([PASS], ["?"], FAIL),
        ([PASS], None, INSUFFICIENT),
        ([PASS, FAIL], [PASS], FAIL),
        ([FAIL, OUTSIDE_PLAN], None, FAIL),
        ([PASS, OUTSIDE_PLAN, INSUFFICIENT], [PASS], OUTSIDE_PLAN),
        ([PASS, INSUFFICIENT], [PASS], INSUFFICIENT),
    ],
)
def test_all_own_gates_must_pass_and_the_comparison_must_not_fail(own, comparison, verdict):
    own, comparison = (each and [Gate.plain("", word, "") for word in each] for each in (own, comparison))
    assert joint_verdict(own, comparison) == verdict


def test_a_champion_that_changed_since_the_registration_asks_for_a_new_comparison(stage):
    promote(BETTER)
    result = promotion.gate(OVERLAPPING)
    assert result.verdict == INSUFFICIENT and result.comparison == []
    assert result.note.startswith("Version 6 was registered without scores of champion 2: retrain, or")
    again = promotion.gate(OVERLAPPING, workspace=stage / OVERLAPPING)
    assert again.verdict != INSUFFICIENT and again.films_compared == 32
    other = promotion.gate(OVERLAPPING, workspace=stage / BETTER)
    assert other.verdict == INSUFFICIENT and "no scores for 32 of 32 test films" in other.note


def test_a_version_registered_before_there_was_a_champion_must_be_compared_with_it(stage):
    promote()
    assert "registered without scores of champion 2" in promotion.gate(CHAMPION).note


def test_a_champion_that_cannot_be_scored_or_looks_for_something_else_stops_the_gate(stage, monkeypatch):
    real = scoring.read_json

    def edited(changes):
        return lambda path: real(path) | changes

    monkeypatch.setattr(scoring, "read_json", edited({"problem": "it is broken"}))
    result = promotion.gate(BETTER)
    assert result.verdict == INSUFFICIENT and "without scores of champion 1" in result.note
    monkeypatch.setattr(scoring, "read_json", edited({"positive": "FRACTURE"}))
    said = "looks for FRACTURE, which this version does not: they cannot be compared"
    assert said in promotion.gate(BETTER).note
    gone = registry.Unscored(CHAMPION, "it is lost")
    monkeypatch.setattr(registry, "score_earlier", lambda workspace, version: gone)
    monkeypatch.setattr(scoring, "read_json", edited({"problem": "it is broken"}))
    assert "could not be scored (it is lost)" in promotion.gate(BETTER, workspace=stage).note


def test_a_promotion_moves_the_alias_and_records_who_why_and_what_before(stage):
    record = promote()
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    assert (record.event, record.version, record.by) == ("promoted", BETTER, "Dr Adams (clinical)")
    assert record.content["replaced"] == CHAMPION
    found = registry.get_version(BETTER)
    assert found.approved_by == "Dr Adams (clinical)" and found.approved_at.endswith("Z")
    assert found.tags["comment"] == "looks right" and found.aliases[0] == "champion"
    promoted, moved = ledger.history(BETTER)[-2:]
    assert (promoted.event, moved.event, promoted.content["approvals"]) == (
        "promoted",
        "moved",
        {"clinical": "Dr Adams"},
    )
    assert promoted.content["model_sha256"] == promotion.gate(BETTER).model_sha256


def test_a_retried_promotion_changes_nothing(stage):
    assert promote() == promote()
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    with pytest.raises(BadInput, match=r"is the champion already, by Dr Adams \(clinical\)"):
        promote(by="Dr Brown", expected=BETTER)


def calls_of_a_promotion(monkeypatch, kill_at=None, promote=promote):
    """Counts what a promotion writes to the store, and cuts it off before one of the writes."""
    from mlflow import MlflowClient

    calls = []

    def counted(real):
        def write(*args, **kwargs):
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            calls.append(1)
            return real(*args, **kwargs)

        return write

    names = ("set_model_version_tag", "set_registered_model_tag", "set_registered_model_alias")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        if kill_at is None:
            promote()
        else:
            with pytest.raises(KeyboardInterrupt):
                promote()
    return len(calls)


WRITES = 10  # entry and head, two aliases, four tags, entry and head


def test_a_promotion_writes_the_entry_first(stage, monkeypatch):
    assert calls_of_a_promotion(monkeypatch) == WRITES


@pytest.mark.parametrize("write", [0, 1, 5, 9])
def test_a_promotion_that_was_killed_is_finished_by_its_retry(stage, monkeypatch, write):
    calls_of_a_promotion(monkeypatch, kill_at=write)
    record = promote()
    assert record.content["replaced"] == CHAMPION and record.content["comment"] == "looks right"
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    assert [entry.event for entry in ledger.history(BETTER)] == ["registered", "promoted", "moved"]
    assert [link.problem for link in registry.verify(BETTER)] == [None] * 12


@pytest.mark.parametrize("write", range(1, WRITES))
def test_a_move_killed_before_any_of_its_writes_is_finished_by_whoever_comes_next(stage, monkeypatch, write):
    calls_of_a_promotion(monkeypatch, kill_at=write, promote=lambda: crown(BETTER, CHAMPION))
    with decisions._deciding():
        pass
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    assert [entry.event for entry in ledger.history(BETTER)] == ["registered", "promoted", "moved"]
    assert registry.get_version(BETTER).decision == "promoted"


def test_a_promotion_killed_halfway_is_finished_by_the_next_decision(stage, monkeypatch):
    calls_of_a_promotion(monkeypatch, kill_at=4)
    with pytest.raises(BadInput, match="was reviewed against champion 1, but the champion is 2 by now"):
        promote(OVERLAPPING, by="Dr Brown", workspace=stage / OVERLAPPING)
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    assert registry.get_version(BETTER).approved_by == "Dr Adams (clinical)"


def test_of_eight_racing_promotions_one_wins_and_seven_are_told(stage):
    start, outcome = threading.Barrier(8), []

    def race(version, person):
        start.wait()
        try:
            outcome.append(promote(version, by=person))
        except BadInput as error:
            outcome.append(error)

    racers = [(version, f"Dr {number}") for number in range(4) for version in (BETTER, OVERLAPPING)]
    threads = [threading.Thread(target=race, args=racer) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [record for record in outcome if isinstance(record, ledger.Entry)]
    assert len(outcome) == 8 and sum(isinstance(error, BadInput) for error in outcome) == 7
    assert aliases() == {"champion": winner.version, "previous": CHAMPION}
    assert [entry.event for entry in ledger.history()][-2:] == ["promoted", "moved"]
    assert sum(entry.event == "promoted" for entry in ledger.history()) == 2
    (loser,) = {BETTER, OVERLAPPING} - {winner.version}
    assert registry.get_version(loser).approved_by is None
    assert registry.get_version(winner.version).approved_by == winner.by


def test_a_champion_moved_behind_our_back_stops_everything_until_a_person_puts_it_back(stage):
    promote()
    with connect() as client:
        client.set_registered_model_alias(registry.MODEL_NAME, "champion", WORSE)
    moved = "the alias champion points to version 3, but the record of decisions says version 2"
    for use in (
        ledger.champion,
        lambda: registry.load("models:/openmed-cxr@champion"),
        lambda: promote(OVERLAPPING, expected=WORSE),
        lambda: roll_back("bad", "Dr Adams"),
    ):
        with pytest.raises(IntegrityError, match=moved):
            use()
    assert moved in registry.verify(BETTER)[-1].problem
    entry = ledger.repair(by="Dr Adams", reason="someone played with the web page")
    assert entry.content["found"] == {"champion": WORSE, "previous": CHAMPION}
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    assert registry.verify(BETTER)[-1].problem is None
    with pytest.raises(BadInput, match="nothing to repair"):
        ledger.repair(by="Dr Adams", reason="again")


def test_the_champion_moves_only_from_where_it_was_expected(stage):
    with pytest.raises(BadInput, match="the champion is version 1 by now, not none: compare 2 again"):
        crown(BETTER, None)


def test_a_promotion_against_another_champion_than_reviewed_is_refused(stage):
    with pytest.raises(BadInput, match="was reviewed against champion None, but the champion is 1"):
        promote(expected=None)
    with pytest.raises(BadInput, match="the clinical reviewer must be named"):
        promote(by=" ")
    with pytest.raises(BadInput, match="has no version 99"):
        promote("99")
    assert aliases() == {"champion": CHAMPION}


def test_every_role_of_the_plan_says_yes_each_by_another_person_who_did_not_start_the_run():
    roles = {"clinical": "Reads films.", "technical": "Runs the pipeline."}
    basis = ledger.Basis("2", PASS, None, "0" * 64, roles, "Ms Engineer")
    for approvals, problem in (
        ({}, "needs the yes of every role: clinical and technical is missing"),
        ({"clinical": "Dr Adams"}, "technical is missing"),
        ({"clinical": "Dr Adams", "technical": " Dr  Adams"}, "needs another person in each role"),
        ({"clinical": "Dr Adams", "technical": "Ms Engineer"}, "Ms Engineer started the retraining"),
        ({"clinical": "Dr Adams", "technical": "Ms Brown", "boss": "Mr C"}, "knows no role boss"),
    ):
        with pytest.raises(BadInput, match=problem):
            basis.check(ledger.Approval.of(approvals, ""), None, None)
    basis.check(ledger.Approval.of({"clinical": "Dr Adams", "technical": "Ms Brown"}, ""), None, None)


def test_a_promotion_without_all_approvals_or_of_another_model_is_refused(stage):
    with pytest.raises(BadInput, match="clinical is missing"):
        promotion.promote(BETTER, approved_by={}, comment="", expected_champion=CHAMPION)
    with pytest.raises(IntegrityError, match="is not the one that was reviewed"):
        promote(expected_model="0" * 64)
    assert promote(expected_model=promotion.gate(BETTER).model_sha256).version == BETTER


def test_a_rejected_version_stays_rejected_and_the_champion_stays(stage):
    assert versions.aliases()["challenger"] == SWALLOWED
    record = ledger.reject(SWALLOWED, by="Dr Adams", reason="heat maps off the lung")
    assert "challenger" not in versions.aliases() and aliases() == {"champion": CHAMPION}
    assert registry.get_version(SWALLOWED).decision == "rejected"
    assert ledger.reject(SWALLOWED, by="Dr Adams", reason="again") == record
    ledger.reject(BETTER, by="Dr Adams", reason="no")
    with pytest.raises(BadInput, match="version 2 was rejected by Dr Adams"):
        promote()
    with pytest.raises(BadInput, match="needs a reason"):
        ledger.reject(FAILED, by="Dr Adams", reason=" ")
    with pytest.raises(BadInput, match="is the champion: roll back"):
        ledger.reject(CHAMPION, by="Dr Adams", reason="no")


def test_rejecting_leaves_a_newer_challenger_alone(stage):
    ledger.reject(BETTER, by="gate", reason="no")
    assert versions.aliases()["challenger"] == SWALLOWED


def test_a_rollback_puts_the_previous_champion_back_and_goes_no_further_than_there_is(stage):
    promote()
    with pytest.raises(BadInput, match="needs a reason"):
        roll_back(" ", "Dr Adams")
    record = roll_back("misses apical opacities", "Dr Adams")
    assert (record.version, record.content["replaced"]) == (CHAMPION, BETTER)
    assert aliases() == {"champion": CHAMPION}
    assert registry.get_version(BETTER).decision == "rolled back"
    assert registry.get_version(BETTER).tags["reason"] == "misses apical opacities"
    with pytest.raises(BadInput, match="no previous champion"):
        roll_back("again", "Dr Adams")
    # The model taken off can be let through again, by a new decision.
    assert promote(by="Dr Brown").content["approvals"] == {"clinical": "Dr Brown"}


def test_each_rollback_goes_one_step_back(stage):
    promote()
    promote(OVERLAPPING, expected=BETTER, workspace=stage / OVERLAPPING)
    assert aliases() == {"champion": OVERLAPPING, "previous": BETTER}
    roll_back("first", "Dr Adams")
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}
    roll_back("second", "Dr Adams")
    assert aliases() == {"champion": CHAMPION}


def test_changed_weights_are_neither_gated_promoted_nor_rolled_back_to(stage):
    promote()
    model = registry.get_version(CHAMPION).tags["model_id"]
    path = stage / f"home/mlartifacts/models/{model}/artifacts/data/model/weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(IntegrityError, match=r"weights\.safetensors of version 1 was changed"):
            roll_back("bad", "Dr Adams")
        with pytest.raises(IntegrityError):
            promotion.gate(CHAMPION)
    finally:
        path.write_bytes(content)
    assert aliases() == {"champion": BETTER, "previous": CHAMPION}


def test_changed_evidence_is_refused(stage):
    path = registry.artifact(FAILED, "gates.json")
    content = path.read_text()
    path.write_text(content.replace(FAIL, PASS))
    try:
        with pytest.raises(IntegrityError, match=r"gates\.json of version 4 was changed"):
            promotion.gate(FAILED)
    finally:
        path.write_text(content)


def test_settings_that_are_missing_are_named(stage, tmp_path, monkeypatch):
    broken = tmp_path / "params.yaml"
    params = yaml.safe_load(registry.artifact(BETTER, "params.yaml").read_text())
    broken.write_text(yaml.safe_dump(params | {"promotion": {}}))
    real = registry.Files.get
    monkeypatch.setattr(
        registry.Files, "get", lambda files, path: broken if path == "params.yaml" else real(files, path)
    )
    with pytest.raises(
        BadInput, match=r"params\.yaml of version 2 lacks settings of the comparison: 'margins'"
    ):
        promotion.gate(BETTER)


def test_when_the_gates_refuse_the_first_candidate_the_next_one_is_judged(stage):
    judged, refused = promotion.judge_in_turn([FAILED, BETTER, WORSE])
    assert (judged.version, judged.verdict) == (BETTER, PASS)
    assert [(each.version, each.verdict) for each in refused] == [(FAILED, FAIL)]
    decided = ledger.history(FAILED)[-1]
    assert (decided.event, decided.by) == (ledger.REJECTED, "gate")
    assert decided.reason == refused[0].grounds
    assert "AUC is 0.000, below the required" in decided.reason
    assert [ledger.history(each)[-1].event for each in (BETTER, WORSE)] == ["registered"] * 2


def test_the_page_for_reviewers_names_those_that_were_refused_before(stage):
    judged, refused = promotion.judge_in_turn([FAILED, BETTER], workspace=stage / BETTER)
    page = html.unescape(Path(judged.review).read_text())
    section = page[page.index("Judged before it and refused") :]
    assert f"Version {FAILED} (vit): FAIL. {refused[0].grounds}." in section
    alone = promotion.show(BETTER, workspace=stage / BETTER)
    assert "refused" not in Path(alone.review).read_text()


def test_the_last_candidate_of_all_is_left_to_whoever_asks_for_the_decision(stage):
    judged, refused = promotion.judge_in_turn([FAILED, WORSE])
    assert (judged.version, judged.verdict) == (WORSE, OUTSIDE_PLAN) and judged.grounds
    assert [each.version for each in refused] == [FAILED]
    assert ledger.history(WORSE)[-1].event == "registered" and ledger.champion() == CHAMPION


def test_judging_in_turn_again_after_a_kill_writes_nothing_twice(stage):
    first = promotion.judge_in_turn([FAILED, BETTER])
    before = ledger.history()
    again = promotion.judge_in_turn([FAILED, BETTER])
    assert again == first and ledger.history() == before


def redrawn(stage, tmp_path):
    """Registers a version whose training films judged the champion."""
    drawn = ["test"] * 16 + ["train"] * 12 + ["validation"] * 6 + ["calibration"] * 6
    workspace = make_workspace(tmp_path / "redrawn", ("vit",), seed=8, splits=drawn)
    return register(workspace, "run-redrawn").version


def test_test_films_that_were_drawn_anew_are_outside_the_plan(stage, tmp_path):
    (found,) = (gate for gate in promotion.gate(redrawn(stage, tmp_path)).gates if gate.name == "looks")
    assert found.verdict == OUTSIDE_PLAN
    assert found.reason.startswith("24 of the 24 films that judged champion 1 teach or tune this version")


def test_a_test_set_of_mostly_the_same_patients_continues_the_count_and_limits_get_surer(stage):
    first = promotion.gate(CHAMPION)
    assert looks_at(CHAMPION) == 1 and first.gates[0].low > 0
    # Eight films more are another set by its hash, and the same patients.
    again = promotion.gate(OVERLAPPING)
    (looks,) = (gate for gate in again.gates if gate.name == "looks")
    assert looks.value == 2 and "limits are at 98.33% confidence" in looks.reason
    test = Evidence.of(OVERLAPPING).test
    own = judged_intervals(
        test["label"] == 1,
        test["score"],
        test["patient"],
        Evidence.of(OVERLAPPING).spec.threshold,
        1 - 0.1 / 6,
    )
    assert again.gates[0].low == pytest.approx(own["auc"].low)


def test_all_looks_together_spend_no_more_than_one_error_rate():
    spent = [(1 - confidence_of_look(0.95, look)) / 2 for look in range(1, 200)]
    assert spent[0] == pytest.approx(0.025) and sum(spent) < 0.05
    assert all(later < earlier for earlier, later in pairwise(spent))


def looks_at(version):
    (found,) = (gate for gate in promotion.gate(version).gates if gate.name == "looks")
    return found.value


def test_every_candidate_that_is_judged_is_a_look_at_the_test_films(stage, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("vit", "resnet50"), seed=9, films_seed=7)
    versions = register(workspace, "run-looks").versions
    assert looks_at(versions["vit"]) == 1
    ledger.reject(versions["vit"], by="gate", reason="for the test")
    assert looks_at(versions["resnet50"]) == 2
    later = make_workspace(tmp_path / "later", ("vit",), seed=10, films_seed=7)
    assert looks_at(register(later, "run-later").version) == 2
    assert looks_at(versions["resnet50"]) == 2
