"""Films that are asked for, their labels, and what is then said; looks that spend one error rate."""

import json

import numpy as np
import pandas as pd
import pytest

from openmed.errors import BadInput
from openmed.metrics.score_intervals import Interval
from openmed.monitoring.drift import Limits, Shift
from pipeline import monitoring as live
from pipeline.monitoring import ScoreLog
from pipeline.monitoring.asking import drawn_with
from pipeline.monitoring.judging import checks
from pipeline.monitoring.judging.judge import matched
from pipeline.monitoring.judging.looks import LABELS, LOOKS, Looks
from pipeline.monitoring.log import read_asks
from pipeline.promotion.gates.evidence import Evidence
from tests.pipeline.monitoring.test_monitoring import ROOT, crowned, film, home, run, scored  # noqa: F401

CLASSES = ("NORMAL", "PNEUMONIA")


def answer(home, asked, films, wrong=False):  # noqa: F811
    """Labels the films of a list: what the scores say, or the contrary."""
    path = home / "answered.csv"
    rows = (
        pd.read_csv(path.with_name("asked.csv")) if asked is None else pd.DataFrame(asked, columns=["sha256"])
    )
    ill = films.set_index("sha256")["score"].loc[rows["sha256"]] > 0.5
    rows.assign(label=np.where(ill.to_numpy() ^ wrong, "pneumonia", "NORMAL")).to_csv(path, index=False)
    return live.add_labels(home, path, CLASSES)


def listed(done):
    header, *lines = done.csv.splitlines()
    assert header == "sha256,label"
    return [line.rstrip(",") for line in lines]


def test_films_are_asked_for_once_and_their_list_tells_no_score(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    first, second = (listed(live.ask(home, 40)) for _ in range(2))
    assert len(first) == len(second) == 40 and not set(first) & set(second)
    assert first == sorted(first) and set(first) <= set(films["sha256"])
    with pytest.raises(BadInput, match="only 20 of the latest films"):
        live.ask(home, 21)
    asks = read_asks(home, "1")
    assert asks.groupby("ask")["sample"].sum().tolist()[0] == 40 and len(asks) == 200
    assert asks.loc[asks["sample"], "probability"].gt(0).all()


def test_the_same_films_are_asked_for_whatever_they_are_called(home, tmp_path):  # noqa: F811
    lists = []
    for name in ("a", "b"):
        log = ScoreLog(tmp_path / name, "1")
        films = scored(100)
        log.append(films if name == "a" else films.sample(frac=1, random_state=1))
        lists.append(live.ask(tmp_path / name, 30).csv)
    assert lists[0] == lists[1]


def test_labels_of_films_that_were_asked_for_are_weighed_and_stand_apart(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    answer(home, listed(live.ask(home, 60)), films)
    found = {check["name"]: check for check in live.watch(home).to_json()["checks"]}
    assert found["sampled sensitivity"]["verdict"] == "PASS" and "measured sensitivity" not in found
    asks = read_asks(home, "1")
    weights = 1 / asks.loc[asks["sample"]].set_index("sha256")["probability"]
    assert weights.sum() == pytest.approx(100)
    rest = films[~films["sha256"].isin(weights.index)]
    answer(home, rest["sha256"].tolist(), films)
    found = live.watch(home).to_json()
    assert {"sampled AUC", "measured AUC"} <= {check["name"] for check in found["checks"]}
    assert found["labelled"] == 100


def test_a_loss_that_only_labels_show_puts_the_champion_on_hold(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    assert live.watch(home).to_json()["hold"] is None
    answer(home, listed(live.ask(home, 60)), films, wrong=True)
    found = live.watch(home).to_json()
    assert found["verdict"] == "FAIL" and "the sampled sensitivity is" in found["hold"]


def test_an_ask_counts_once_nearly_all_its_films_have_labels():
    asks = pd.DataFrame({"ask": 1, "sha256": list("abcdefghij"), "probability": 0.5, "sample": True})
    again = asks.assign(ask=2, probability=0.8, sample=asks["sha256"] == "a")
    assert len(drawn_with(asks, set("abcdefgh"))) == 0
    assert drawn_with(asks, set("abcdefghi")).eq(0.5).all()
    assert drawn_with(pd.concat([asks, again]), set("abcdefghij")).eq(0.8).all()
    assert list(drawn_with(pd.concat([asks, again]), {"a"}).items()) == [("a", 0.8)]


@pytest.mark.parametrize("line", ["0123,NORMAL", "{},BACTERIA"])
def test_a_list_with_an_unknown_hash_or_label_is_refused(home, tmp_path, line):  # noqa: F811
    (tmp_path / "list.csv").write_text("sha256,label\n" + line.format("a" * 64) + "\n")
    with pytest.raises(BadInput, match="on line 2: correct or remove it"):
        live.add_labels(home, tmp_path / "list.csv", CLASSES)


def test_the_command_writes_a_list_that_names_the_files(home, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("OPENMED_PROJECT", str(ROOT))
    (tmp_path / "incoming").mkdir()
    for number in range(12):
        (tmp_path / f"incoming/{number}.png").write_bytes(film(number))
    live.score_films(home, tmp_path / "incoming")
    out = tmp_path / "ask.csv"
    arguments = ("live", "ask", "5", "--out", str(out), "--films", str(tmp_path / "incoming"))
    code, said, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0 and said.startswith("5 of the latest 12 films of version 1 are in ")
    rows = pd.read_csv(out, dtype=str, keep_default_na=False)
    assert list(rows.columns) == ["sha256", "label", "film"] and set(rows["label"]) == {""}
    assert rows["film"].str.fullmatch(r"\d+\.png").all()
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and "may hold labels" in err
    rows.assign(label=["NORMAL"] * 4 + [""]).to_csv(out, index=False)
    code, said, _ = run(monkeypatch, capsys, "live", "labels", str(out))
    assert (code, said) == (0, "4 labels: 4 new, 0 changed\n")
    code, said, _ = run(monkeypatch, capsys, "live", "ask", "3")
    assert code == 0 and len(said.splitlines()) == 4


def test_nothing_that_an_ask_keeps_names_a_file_or_a_patient(home):  # noqa: F811
    ScoreLog(home, "1").append(scored(100))
    live.ask(home, 10)
    parts = list((home / "scores/version-1/asks").iterdir())
    assert [part.name for part in parts] == ["00000001.parquet"]
    assert list(pd.read_parquet(parts[0]).columns) == ["sha256", "probability", "sample", "ask"]
    assert len(ScoreLog(home, "1").parts()) == 1


def test_watching_the_same_films_again_is_no_further_look(home):  # noqa: F811
    ScoreLog(home, "1").append(scored(100))
    path = home / "scores/version-1/looks.json"
    first = live.watch(home).to_json()
    kept = json.loads(path.read_text())["looks"]
    assert live.watch(home).to_json()["checks"] == first["checks"]
    assert json.loads(path.read_text())["looks"] == kept and len(kept) == 1
    ScoreLog(home, "1").append(scored(100, seed=2))
    live.watch(home).to_json()
    looks = json.loads(path.read_text())["looks"]
    assert [look["new"] for look in looks] == [100, 100] and looks[1]["error"] < looks[0]["error"]


def test_looks_of_all_kinds_together_stay_within_the_rate(tmp_path):
    looks, total = Looks(tmp_path / "looks.json"), 0.0
    for number in range(300):
        names = {f"{each:016d}" for each in range(number * 10, number * 10 + 50)}
        total += looks.error(LABELS, ("measured", "sampled")[number % 2], names, 100, 0.05)
        total += looks.error(LOOKS, "films", names, 100, 0.05)
        again = looks.error(LOOKS, "films", names, 100, 0.05)
        assert again == looks.error(LOOKS, "films", set(names), 100, 0.05)
    assert 0.04 < total < 0.05
    looks.save()
    assert Looks(tmp_path / "looks.json").error(LOOKS, "films", names, 100, 0.05) == again


def test_a_later_look_asks_more_of_the_same_drift():
    shift = Shift("brightness", "sd", Interval(0.9, 0.8, 1.0), Limits(0.25, 0.75), "large")
    verdicts = [
        next(checks.drift_checks([shift], "large", error, 0.95)).verdict for error in (0.02, 1e-3, 1e-5)
    ]
    assert verdicts == ["FAIL", "PASS", "PASS"]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_films_of_the_training_are_taken_at_the_share_of_the_new_ones(share):
    films = pd.DataFrame(
        {"sha256": [f"{k:04d}" for k in range(1000)], "label": ["PNEUMONIA"] * 740 + ["NORMAL"] * 260}
    )
    taken = matched(films, "PNEUMONIA", share)
    assert (taken["label"] == "PNEUMONIA").mean() == pytest.approx(share, abs=0.005)
    counts = taken["label"].value_counts()
    assert counts["PNEUMONIA"] == 740 or counts["NORMAL"] == 260
    assert len(matched(films, "PNEUMONIA", np.nan)) == len(matched(films[:740], "PNEUMONIA", share)) + 260


def test_referrals_that_a_changed_share_explains_warn_and_do_not_hold():
    films = pd.DataFrame({"patient": [f"p{k}" for k in range(200)], "refer": [True] * 80 + [False] * 120})
    for refers, share, verdict in (((0.05, 0.6), 0.7, "WARNING"), ((0.05, 0.6), 0.1, "FAIL")):
        assert checks.referral_check(refers, films, 0.2, share, 0.001).verdict == verdict
    assert checks.referral_check(refers, films, 0.4, 0.1, 0.001).verdict == "PASS"


def test_plans_of_before_are_watched_with_an_error_rate_and_their_floors_alone(home):  # noqa: F811
    plan = Evidence.of("1").plan.protocol.monitoring
    assert (plan.max_losses, plan.error_rate) == (None, 0.05)
