"""After a promotion: new films are scored once, the champion is watched on them, and put on hold."""

import json
import os
import shutil
import sys
import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_bytes
from openmed.inference.referral import REASONS
from pipeline import ledger, registry
from pipeline import monitoring as live
from pipeline.commands import app as cli
from pipeline.monitoring import ScoreLog, add_labels, scoring
from pipeline.settings.project import locked
from tests.conftest import ROOT, write_plan
from tests.openmed.films.stored import dicom
from tests.pipeline.conftest import SPLITS, crown, make_workspace, register

FLOORS = {"sensitivity": 0.6, "specificity": 0.4, "auc": 0.7}


def looks(count, seed, **moved):
    """Measurements as films of one hospital have them."""
    rng = np.random.default_rng(seed)
    found = {
        "mean": rng.normal(120, 18, count),
        "std": rng.normal(56, 9, count),
        "width": rng.integers(1000, 1400, count),
        "height": rng.integers(900, 1300, count),
        "bits": np.full(count, 8),
        "embedding": list(rng.normal(size=(count, 6)).astype(np.float32)),
    }
    return found | {name: change(found[name]) for name, change in moved.items()}


@pytest.fixture(scope="module")
def crowned(tmp_path_factory, migrated):
    """A state folder with a champion, whose plan judges the latest 100 films of 40 patients."""
    home, workspace = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("champion")
    shutil.copy(migrated, home / "mlflow.db")
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())["drift"] | {"replicates": 200}
    make_workspace(workspace, splits=SPLITS * 3, drift=settings)
    write_plan(workspace, ("clinical",))
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["monitoring"] = {
        "films": 100,
        "min_patients": 40,
        "drift": "large",
        "floors": FLOORS,
        "max_referred": 0.5,
    }
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    manifest = pd.read_parquet(workspace / "artifacts/validate/manifest.parquet")
    manifest = manifest.assign(**looks(len(manifest), 0))
    manifest.to_parquet(workspace / "artifacts/validate/manifest.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        crown(register(workspace).version)
    return home


@pytest.fixture
def home(crowned, tmp_path, monkeypatch):
    """A copy of it that a test may change; what is stored of the model stays where it is."""
    copy = tmp_path / "home"
    shutil.copytree(crowned, copy, ignore=shutil.ignore_patterns("mlartifacts"))
    monkeypatch.setenv("OPENMED_HOME", str(copy))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return copy


def film(seed, shape=(80, 72)):
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))[
        1
    ].tobytes()


@pytest.fixture
def incoming(tmp_path):
    """Films as they come in: PNG, DICOM, and some that are none."""
    folder = tmp_path / "incoming" / "ward 3"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"ROE^RICHARD-{number}.png").write_bytes(film(number))
    (folder / "export.dcm").write_bytes(
        dicom(np.tile(np.arange(64, dtype=np.uint8) * 3, (80, 1)), PatientID="ROE^RICHARD")
    )
    (folder / "half.png").write_bytes(film(9)[:400])
    (folder / "small.png").write_bytes(film(10, (20, 20)))
    (folder / "notes.txt").write_text("ROE^RICHARD")
    (folder / ".hidden.png").write_bytes(film(11))
    return folder.parent


def answered(home, version="1"):
    parts = [pd.read_parquet(part) for part in ScoreLog(home, version).parts()]
    return pd.concat(parts, ignore_index=True)


def scored(count, *, seed=1, sure=True, **moved):
    """Rows of the log as scoring writes them: a probability far from the threshold, or near it."""
    rng = np.random.default_rng(seed)
    score = (
        rng.permutation(np.where(np.arange(count) % 2, 0.95, 0.05)) if sure else rng.uniform(0.4, 0.6, count)
    )
    return pd.DataFrame(
        {
            "sha256": [sha256_bytes(f"{seed}-{number}".encode()) for number in range(count)],
            "patient": [f"p{seed}-{number // 2:04d}" for number in range(count)],
            "status": "scored",
            "score": score,
            "refer": pd.array([None] * count, "boolean"),
            "label": np.where(score > 0.5, "PNEUMONIA", "NORMAL"),
            "threshold": 0.5,
            "scored_at": [f"2026-01-{1 + number * 20 // count:02d}T00:00:00Z" for number in range(count)],
            **looks(count, seed, **moved),
        }
    )


def test_every_film_is_answered_once_and_the_answer_is_the_models(home, incoming):
    done = vars(live.score_films(home, incoming))
    assert done == {
        "version": "1",
        "films": 8,
        "scored": 6,
        "flagged": done["flagged"],
        "referred": 0,
        "unusable": 2,
        "unreadable": 0,
        "known": 0,
        "log": str(home / "scores" / "version-1"),
    }
    table = answered(home).set_index("sha256")
    model = registry.load("models:/openmed-cxr/1")
    for number in range(5):
        content = film(number)
        square = cv2.resize(
            cv2.imdecode(np.frombuffer(content, np.uint8), 0), (32, 32), interpolation=cv2.INTER_AREA
        )
        row = table.loc[sha256_bytes(content)]
        assert row["score"] == pytest.approx(model.predict(square[None])[0, 1], abs=1e-6)
        assert row["label"] == ("PNEUMONIA" if row["score"] >= row["threshold"] else "NORMAL")
    assert done["flagged"] == (table["label"] == "PNEUMONIA").sum()
    assert (table["model_sha256"] == registry.model_digest("1")).all()
    again = vars(live.score_films(home, incoming))
    assert (again["scored"], again["unusable"], again["known"]) == (0, 0, 8)
    (incoming / "new.png").write_bytes(film(77))
    more = vars(live.score_films(home, incoming))
    assert (more["scored"], more["known"]) == (1, 8) and len(answered(home)) == 9


def test_unusable_films_are_logged_with_the_reason_and_nothing_names_a_patient(home, incoming):
    live.score_films(home, incoming)
    table = answered(home)
    bad = table[table["status"] == "unusable"]
    assert sorted(bad["reason"]) == ["only 20 x 20 pixels", "the film is not a whole PNG image"]
    assert bad[["score", "label", "threshold"]].isna().all(axis=None)
    assert table["patient"].str.fullmatch(r"p[0-9a-f]{16}").all()
    for path in (home / "scores").rglob("*"):
        assert path.is_dir() or b"ROE" not in path.read_bytes()
    assert "ROE" not in table.to_csv() and "ward" not in table.to_csv()


@pytest.fixture
def knowing(store, tmp_path):
    """A champion with feature statistics, and its state folder."""
    workspace = make_workspace(tmp_path / "knowing", splits=SPLITS * 3, unlike_share=0.1)
    crown(register(workspace).version)
    return store


def test_unlike_films_are_referred_and_the_page_counts_the_reasons(knowing, tmp_path):
    model = registry.load("models:/openmed-cxr/1")
    films = {f"{number}.png": film(number, (40, 36)) for number in range(30)}
    step = np.kron([[20, 220], [40, 60]], np.ones((40, 40))).astype(np.uint8)
    films["step.png"] = cv2.imencode(".png", step)[1].tobytes()
    films["black.png"] = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    (tmp_path / "incoming").mkdir()
    for name, content in films.items():
        (tmp_path / "incoming" / name).write_bytes(content)
    done = vars(live.score_films(knowing, tmp_path / "incoming"))
    table = answered(knowing).set_index("sha256")
    assert done["unusable"] == 1
    assert table.loc[sha256_bytes(films["black.png"]), "reason"] == "the film is blank"
    row = table.loc[sha256_bytes(films["step.png"])]
    assert bool(row["refer"]) and row["reason"] in REASONS
    for name in list(films)[:30]:
        square = cv2.resize(
            cv2.imdecode(np.frombuffer(films[name], np.uint8), 0), (32, 32), interpolation=cv2.INTER_AREA
        )
        unlike = model.assess(square[None])[1] > model.spec.novelty.limit
        assert table.loc[sha256_bytes(films[name]), "refer"] == unlike[0]
    counts = table.loc[table["refer"].eq(True).fillna(False), "reason"].value_counts().to_dict()
    result = live.watch(knowing).to_json()
    assert result["referred"] == counts and sum(counts.values()) == done["referred"]
    page = (knowing / "watch/watch.html").read_text()
    for reason, count in counts.items():
        assert f'<td>{reason}</td><td class="n">{count}</td>' in page


def test_the_page_shows_how_often_readers_overrule_and_when_the_log_is_broken(home, incoming):
    live.score_films(home, incoming)
    path = incoming / "ward 3/ROE^RICHARD-0.png"
    label = answered(home).set_index("sha256").loc[sha256_bytes(film(0)), "label"]
    live.note(home, str(path), "NORMAL" if label == "PNEUMONIA" else "PNEUMONIA", "Dr Adams")
    (use,) = live.watch(home).to_json()["oversight"]["models"]
    assert (use["answers"], use["decided"], use["overruled"]) == (6, 1, 1)
    assert use["share"]["low"] == pytest.approx(0.2065, abs=1e-4)
    page = (home / "watch/watch.html").read_text()
    assert '<td>models:/openmed-cxr/1</td><td class="n">20' in page and "1.000 (0.207 to 1.000)" in page
    assert "Dr Adams" not in page and "ROE" not in page
    (day,) = (home / "answers").glob("*.jsonl")
    day.write_bytes(b"\n".join(day.read_bytes().splitlines()[:-1]) + b"\n")
    result = live.watch(home).to_json()
    assert "the end of" in result["oversight"]["problem"] and result["oversight"]["models"] == []
    assert "The log of answers is not what was written" in (home / "watch/watch.html").read_text()


def test_a_log_that_was_written_anew_since_the_last_watch_is_named(home, incoming):
    live.score_films(home, incoming)
    before = live.watch(home).to_json()["oversight"]
    assert before["problem"] is None and live.watch(home).oversight.head == before["head"]
    shutil.rmtree(home / "answers")
    (incoming / "new.png").write_bytes(film(77))
    assert live.score_films(home, incoming).scored == 1
    assert f"not go on from {before['head'][:16]}" in live.watch(home).oversight.problem
    # The next one goes on from there, and its page keeps it.
    assert live.watch(home).oversight.problem is None
    assert "the log did not go on from what" in (home / "watch/watch.html").read_text()


def test_answers_from_before_reasons_are_counted_as_unclear(home):
    rows = scored(120).assign(refer=pd.array([True] * 20 + [False] * 100, "boolean"))
    ScoreLog(home, "1").append(rows)
    assert sum(live.watch(home).to_json()["referred"].values()) <= 20


def test_a_zip_and_a_folder_of_the_same_films_are_the_same_films(home, incoming, tmp_path):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        for path in sorted(incoming.rglob("*.png")):
            archive.write(path, path.relative_to(incoming))
    assert live.score_films(home, tmp_path / "films.zip").scored == 5
    assert live.score_films(home, incoming).known == 7


def test_a_killed_run_goes_on_where_it_was(home, incoming, monkeypatch):
    monkeypatch.setattr(scoring, "_PART_FILMS", 3)
    append, calls = ScoreLog.append, []

    def killed(self, films):
        calls.append(len(films))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return append(self, films)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreLog, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            live.score_films(home, incoming)
    assert len(answered(home)) == 3
    rest = vars(live.score_films(home, incoming))
    assert rest["known"] == 3 and rest["scored"] + rest["unusable"] == 5
    assert not answered(home)["sha256"].duplicated().any()


def test_a_file_that_was_scored_is_read_again_only_when_it_was_written_to(home, incoming, monkeypatch):
    for path in incoming.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    live.score_films(home, incoming)
    read, reader = [], scoring._read
    monkeypatch.setattr(scoring, "_read", lambda film, *rest: read.append(film.name) or reader(film, *rest))
    assert live.score_films(home, incoming).known == 8 and read == []
    (incoming / "ward 3/ROE^RICHARD-0.png").write_bytes(film(123))
    more = vars(live.score_films(home, incoming))
    assert (more["scored"], more["known"], read) == (1, 7, ["ward 3/ROE^RICHARD-0.png"])


def test_a_file_that_cannot_be_read_is_tried_again(home, incoming):
    gone = incoming / "gone.png"
    gone.symlink_to(incoming / "absent.png")
    done = vars(live.score_films(home, incoming))
    assert (done["scored"], done["unreadable"], done["known"]) == (6, 1, 0)
    (incoming / "absent.png").write_bytes(film(50))
    done = vars(live.score_films(home, incoming))
    assert (done["scored"], done["unreadable"]) == (1, 0)


@pytest.mark.parametrize("name", ["absent", "films.csv", "empty"])
def test_a_source_without_films_is_refused(home, tmp_path, name):
    (tmp_path / "films.csv").write_text("path,label,patient\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no folder and no \.zip|holds no film"):
        live.score_films(home, tmp_path / name)


def test_without_a_champion_nothing_is_scored_or_watched(store, incoming):
    with pytest.raises(BadInput, match="there is no champion to score films with"):
        live.score_films(store, incoming)
    with pytest.raises(BadInput, match="there is no champion to watch"):
        live.watch(store).to_json()


def test_too_few_patients_decide_nothing(home):
    ScoreLog(home, "1").append(scored(60, sure=False))
    found = live.watch(home).to_json()
    assert (found["verdict"], found["checks"], found["hold"]) == ("INSUFFICIENT EVIDENCE", [], None)
    assert found["sentence"] == (
        "Version 1 on its latest 60 films of 30 patients cannot be judged yet: the plan asks for 40 patients."
    )
    assert found["sentence"] in (home / "watch/watch.html").read_text()


def test_films_like_those_of_its_training_leave_the_champion_in_place(home):
    for seed in (2, 3, 1):
        ScoreLog(home, "1").append(scored(50 if seed == 2 else 100, seed=seed))
    found = live.watch(home).to_json()
    assert (found["verdict"], found["films"], found["hold"]) == ("PASS", 100, None)
    assert [check["name"] for check in found["checks"]] == [
        *(f"drift of {name}" for name in ("bits", "brightness", "contrast", "resolution", "embedding")),
        *(f"expected {name}" for name in ("AUC", "sensitivity", "specificity")),
    ]
    assert [period["films"] for period in found["periods"]] == [50, 100, 100]
    assert found["sentence"].endswith(
        "change plan; no film has a label, so its performance was not measured."
    )
    assert json.loads((home / "watch/watch.json").read_text())["verdict"] == "PASS"


def test_films_that_are_harder_to_tell_ask_for_labels_and_hold_nothing(home, incoming):
    ScoreLog(home, "1").append(scored(100, sure=False))
    found = live.watch(home).to_json()
    warned = [check for check in found["checks"] if check["verdict"] == "WARNING"]
    assert "expected AUC" in {check["name"] for check in warned} and "Labels decide." in warned[0]["reason"]
    assert (found["verdict"], found["hold"], ledger.on_hold()) == ("WARNING", None, {})
    assert found["sentence"].startswith(
        "Version 1 on its latest 100 films of 50 patients may be outside the limits"
    )
    assert found["sentence"].endswith("Nothing is held by that; label 50 films: openmed live ask 50.")
    assert "label 50 films: openmed live ask 50." in (home / "watch/watch.html").read_text()
    assert found["news"] and not live.watch(home).to_json()["news"]
    assert live.score_films(home, incoming).scored == 6


def test_films_that_look_otherwise_put_the_champion_on_hold(home, incoming):
    ScoreLog(home, "1").append(scored(100, mean=lambda grey: grey + 60))
    found = live.watch(home).to_json()
    assert found["verdict"] == "FAIL" and "in brightness the films lie" in found["hold"]
    with pytest.raises(BadInput, match="version 1, the champion, is on hold since"):
        live.score_films(home, incoming)
    # Watching again neither forgets nor repeats it.
    assert live.watch(home).to_json()["hold"] == found["hold"]
    assert [entry.event for entry in ledger.history("1")].count("held") == 1
    assert any("put on hold by monitoring" in what for _, what in ledger.story("1"))
    ledger.release("1", by="Dr Adams", reason="a new detector, checked by hand")
    # What a person has looked at does not hold it again.
    assert live.watch(home).to_json()["verdict"] == "INSUFFICIENT EVIDENCE"
    assert live.score_films(home, incoming).scored == 6
    assert ledger.champion() == "1"


def test_of_films_that_are_nearly_all_ill_no_specificity_is_expected(home):
    films = scored(100).assign(score=0.97)
    ScoreLog(home, "1").append(films)
    found = live.watch(home).to_json()
    missing = [check for check in found["checks"] if check["verdict"] == "INSUFFICIENT EVIDENCE"]
    assert [check["name"] for check in missing] == ["expected AUC", "expected specificity"]
    assert "it rests on 2 films, and 20 are needed" in missing[0]["reason"]
    assert found["verdict"] == "INSUFFICIENT EVIDENCE" and found["hold"] is None


def test_labels_show_what_the_probabilities_hide(home):
    table = scored(100)
    ScoreLog(home, "1").append(table)
    assert live.watch(home).to_json()["verdict"] == "PASS"
    truth = np.where(table["score"] > 0.5, "NORMAL", "PNEUMONIA")
    live.log._write_labels(home, dict(zip(table["sha256"], truth, strict=True)))
    found = live.watch(home).to_json()
    failed = {check["name"] for check in found["checks"] if check["verdict"] == "FAIL"}
    assert failed == {"measured sensitivity", "measured specificity", "measured AUC"}
    assert found["labelled"] == 100 and found["hold"]


def test_a_drift_that_the_plan_calls_moderate_is_no_large_one(home):
    ScoreLog(home, "1").append(scored(100, mean=lambda grey: grey + 12))
    found = live.watch(home).to_json()
    moved = next(shift for shift in found["shifts"] if shift["aspect"] == "brightness")
    assert moved["verdict"] == "moderate" and found["verdict"] == "PASS"


def test_labels_are_told_by_the_content_of_the_film(home, incoming, tmp_path):
    live.score_films(home, incoming)
    for name, number in (("NORMAL", 0), ("PNEUMONIA", 1)):
        (tmp_path / "truth" / name).mkdir(parents=True)
        (tmp_path / "truth" / name / "another name.png").write_bytes(film(number))
    classes = ("NORMAL", "PNEUMONIA")
    assert live.add_labels(home, tmp_path / "truth", classes) == {"films": 2, "new": 2, "changed": 0}
    assert live.log.labels(home)[sha256_bytes(film(1))] == "PNEUMONIA"
    (tmp_path / "truth/PNEUMONIA/another name.png").rename(tmp_path / "truth/NORMAL/third.png")
    assert live.add_labels(home, tmp_path / "truth", classes) == {"films": 2, "new": 0, "changed": 1}
    (tmp_path / "truth/PNEUMONIA/again.png").write_bytes(film(0))
    with pytest.raises(BadInput, match="holds one film as"):
        live.add_labels(home, tmp_path / "truth", classes)


def test_a_damaged_log_is_found(home):
    path = ScoreLog(home, "1").append(scored(100))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(IntegrityError, match="restore it from the backup"):
        live.watch(home).to_json()


def test_a_version_on_hold_cannot_become_the_champion(home, crowned, tmp_path):
    shutil.copytree(crowned / "mlartifacts", home / "mlartifacts")
    second = register(make_workspace(tmp_path / "second", seed=3), run_key="run-2").version
    held = ledger.hold(second, by="Dr Adams", reason="wrong scanner")
    assert (held.version, held.reason) == (second, "wrong scanner")
    with pytest.raises(BadInput, match=r"version 2 is on hold \(wrong scanner\): release it first"):
        crown(second, expected="1")
    ledger.release(second, by="Dr Baker", reason="checked")
    crown(second, expected="1")
    assert ledger.champion() == second


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda: ledger.hold("1", by="ada", reason=" "), "a hold needs a reason"),
        (lambda: ledger.hold("1", by="", reason="why"), "must be named"),
        (lambda: ledger.hold("9", by="ada", reason="why"), "has no version 9"),
        (lambda: ledger.release("1", by="ada", reason=""), "a release needs a reason"),
        (lambda: ledger.release("1", by="ada", reason="why"), "version 1 is not on hold"),
    ],
)
def test_holds_and_releases_that_say_too_little_are_refused(home, act, problem):
    with pytest.raises(BadInput, match=problem):
        act()


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["openmed", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_the_commands_score_label_watch_hold_and_release(home, incoming, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENMED_PROJECT", str(ROOT))
    code, out, _ = run(monkeypatch, capsys, "live", "score", str(incoming))
    assert (
        code == 0
        and out.startswith("version 1 scored 6 films: ")
        and "2 unusable, 0 unreadable, 0 known" in out
    )
    code, out, _ = run(monkeypatch, capsys, "live", "score", str(incoming), "--json")
    assert code == 0 and json.loads(out)["known"] == 8
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "truth" / name).mkdir(parents=True)
        (tmp_path / "truth" / name / "a.png").write_bytes(film(len(name)))
    code, out, _ = run(monkeypatch, capsys, "live", "labels", str(tmp_path / "truth"))
    assert (code, out) == (0, "2 labels: 2 new, 0 changed\n")
    ScoreLog(home, "1").append(scored(100, mean=lambda grey: grey + 60))
    code, out, _ = run(monkeypatch, capsys, "live", "watch")
    assert code == 0 and out.startswith("FAIL: Version 1") and "It is on hold" in out
    code, _, err = run(monkeypatch, capsys, "live", "score", str(incoming))
    assert code == 2 and "is on hold since" in err
    code, out, _ = run(monkeypatch, capsys, "registry", "list", "--json")
    assert json.loads(out)[0]["hold"].startswith("Version 1 on its latest")
    code, out, _ = run(monkeypatch, capsys, "registry", "release", "1", "--by", "ada", "--reason", "checked")
    assert (code, out) == (0, "version 1 is off hold, by ada\n")
    code, out, _ = run(monkeypatch, capsys, "registry", "hold", "1", "--by", "ada", "--reason", "no")
    assert code == 0 and out.startswith("version 1 is on hold since ")


def test_labels_are_kept_while_films_are_being_scored(home, tmp_path):
    listed = tmp_path / "labels.csv"
    listed.write_text(f"sha256,label\n{'a' * 64},PNEUMONIA\n")
    with locked("scores"):
        assert add_labels(home, listed, ("NORMAL", "PNEUMONIA"))["new"] == 1
