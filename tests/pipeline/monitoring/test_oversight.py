"""Every answer of a registered version is in the log, no patient is, and readers' decisions are counted."""

import json
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_bytes
from openmed.inference.answers import FilmAnswer
from openmed.oversight.answer_log import AnswerLog, answer_journal, login
from pipeline import ledger, registry
from pipeline import monitoring as live
from pipeline.monitoring import ScoreLog
from pipeline.monitoring.oversight import look_after, note_head
from pipeline.tracking.store import connect
from tests.openmed.films.stored import dicom
from tests.pipeline.conftest import crown

ALIAS, VERSION = "models:/openmed-cxr@champion", "models:/openmed-cxr/1"
PATIENT = "ROE^RICHARD"


@pytest.fixture
def home(shared, tmp_path, monkeypatch):
    """A copy of the shared state folder, with a champion; what is stored of the model stays where it is."""
    copy = tmp_path / "home"
    shutil.copytree(shared[0], copy, ignore=shutil.ignore_patterns("mlartifacts", "answers"))
    monkeypatch.setenv("OPENMED_HOME", str(copy))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    crown("1")
    return copy


@pytest.fixture
def films(tmp_path):
    """Two films whose names, and the header of one, name a patient."""
    folder = tmp_path / "incoming" / "ward 3"
    folder.mkdir(parents=True)
    grey = np.random.default_rng(5).integers(0, 256, (80, 72), dtype=np.uint8)
    (folder / f"{PATIENT}.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    (folder / f"{PATIENT}.dcm").write_bytes(dicom(255 - grey, PatientID=PATIENT, PatientName=PATIENT))
    return sorted(folder.iterdir())


def served(address=ALIAS):
    import mlflow

    with connect():
        return mlflow.pyfunc.load_model(address)


def entries(home):
    return list(answer_journal(home).entries())


def written(home):
    return b"".join(path.read_bytes() for path in (home / "answers").rglob("*"))


def test_each_way_of_asking_is_logged_once_and_says_what_was_answered(home, films, openmed):
    code, out, _ = openmed("predict", ALIAS, *films, "--json")
    assert code == 0
    told = [json.loads(line) for line in out.splitlines()]
    row = served().predict(pd.DataFrame({"image": [film.read_bytes() for film in films]}))
    live.score_films(home, films[0].parent)
    kept = entries(home)
    digests = [sha256_bytes(film.read_bytes()) for film in films]
    assert [entry["way"] for entry in kept] == ["predict"] * 2 + ["serving"] * 2 + ["score"] * 2
    assert [entry["film"] for entry in kept[:4]] == digests * 2
    assert {entry["film"] for entry in kept[4:]} == set(digests)
    assert {entry["model"] for entry in kept} == {VERSION}, "an alias says nothing later"
    assert [entry["login"] for entry in kept] == [login()] * 2 + [None] * 2 + [login()] * 2
    model = registry.load(VERSION)
    for entry in kept:
        film = films[digests.index(entry["film"])]
        answer = told[digests.index(entry["film"])]
        for name in ("label", "thresholds", "refer", "reason"):
            assert entry[name] == answer[name], name
        assert entry["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)
        pixels = cv2.imdecode(np.frombuffer(film.read_bytes(), np.uint8), 0)
        if pixels is not None:
            square = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
            expected = model.predict(square[None])[0, 1]
            assert entry["probabilities"]["PNEUMONIA"] == pytest.approx(expected, abs=1e-6)
        assert datetime.now(UTC) - datetime.fromisoformat(entry["at"]) < timedelta(minutes=10)
    assert list(row["label"]) == [entry["label"] for entry in kept[2:4]]


def test_no_patient_name_or_path_is_in_the_log_and_its_owner_alone_can_read_it(home, films, openmed):
    openmed("predict", VERSION, *films)
    served().predict(pd.DataFrame({"image": [film.read_bytes() for film in films]}))
    live.score_films(home, films[0].parent)
    openmed("live", "note", films[0], "--decision", "NORMAL", "--by", "Dr Adams")
    content = written(home)
    for name in (PATIENT, "ROE", "RICHARD", "ward", "incoming", ".png", ".dcm", str(home)):
        assert name.encode() not in content
    assert len(entries(home)) == 7
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (home / "answers").iterdir()}
    assert modes == {0o600} and stat.S_IMODE((home / "answers").stat().st_mode) == 0o700


def test_an_answer_that_cannot_be_logged_is_not_given(home, films, openmed, monkeypatch):
    from mlflow.exceptions import MlflowException

    model = served()
    (home / "answers").rename(home / "gone")
    (home / "answers").write_text("in the way")
    code, out, error = openmed("predict", VERSION, films[1])
    assert (code, out) == (4, "") and "answers cannot be read or written" in error
    with pytest.raises(MlflowException, match="answers cannot be read or written") as refused:
        model.predict(pd.DataFrame({"image": [films[1].read_bytes()]}))
    assert refused.value.get_http_status_code() == 503
    with pytest.raises(ResourceError, match="answers cannot be read or written"):
        live.score_films(home, films[0].parent)
    assert ScoreLog(home, "1").parts() == []
    with pytest.raises(ResourceError, match="answers cannot be read or written"):
        served()
    (home / "answers").unlink()
    assert openmed("predict", VERSION, films[1])[0] == 0 and len(entries(home)) == 1


def test_a_request_with_a_bad_film_is_refused_and_logs_nothing(home, films):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="row 1 is not"):
        served().predict(pd.DataFrame({"image": [films[1].read_bytes(), b"no film"]}))
    assert entries(home) == []


def test_a_version_that_does_not_know_its_state_folder_is_not_served(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    with connect():
        pass
    monkeypatch.delenv("OPENMED_HOME")
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    try:
        with pytest.raises(BadInput, match="is known: set OPENMED_HOME to the state folder"):
            mlflow.pyfunc.load_model(VERSION)
        (tmp_path / "dvc.yaml").write_text("stages: {}\n")
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
        film = cv2.imencode(".png", np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))[1].tobytes()
        mlflow.pyfunc.load_model(VERSION).predict(pd.DataFrame({"image": [film]}))
        assert len(entries(tmp_path / ".openmed")) == 1
    finally:
        mlflow.set_tracking_uri(None)


def test_what_is_not_the_version_alone_has_another_name_and_a_folder_is_not_logged(
    home, shared, films, openmed
):
    folder = shared[1] / "artifacts/evaluate/resnet50/model"
    assert openmed("predict", folder, films[0])[0] == 0
    assert not (home / "answers").exists()
    openmed("predict", VERSION, films[0], "--threshold", "0.25")
    openmed("predict", VERSION, films[0], "--tta", "--threshold", "0.25")
    openmed("predict", ALIAS, films[0], "--with", folder, "--threshold", "0.5")
    weights = json.loads((folder / "model.json").read_text())["weights_sha256"][:16]
    assert [entry["model"] for entry in entries(home)] == [
        f"{VERSION} at 0.25",
        f"{VERSION} with views at 0.25",
        f"{VERSION} + weights {weights} at 0.5",
    ]
    assert str(folder).encode() not in written(home)


def said(label="PNEUMONIA", refer=None):
    both = {"NORMAL": 0.2, "PNEUMONIA": 0.8}
    return FilmAnswer(
        0.8, label, 0.5, both, {"PNEUMONIA": 0.5}, refer, "no class stands out" if refer else None
    )


def digest(number):
    return sha256_bytes(str(number).encode())


@pytest.fixture
def log(tmp_path):
    """The log of a state folder with 30 answers of version 1, the last 5 of them referrals."""
    first = AnswerLog(answer_journal(tmp_path), VERSION, "score", "openmed")
    first.keep([digest(number) for number in range(30)], [said()] * 25 + [said(refer=True)] * 5)
    return tmp_path


def test_how_often_readers_overrule_is_counted_for_each_model_with_an_interval(log):
    for number in range(12):
        live.note(log, digest(number), "NORMAL" if number < 3 else "PNEUMONIA", "Dr Adams")
    live.note(log, digest(12), "refer", "Dr Adams")
    live.note(log, digest(0), "PNEUMONIA", "Dr Baker")  # the last decision counts
    live.note(log, digest(26), "normal", "Dr Baker")  # the model had left it to the reader
    other = AnswerLog(answer_journal(log), "models:/openmed-cxr/2", "serving", None)
    other.keep([digest(1)], [said("NORMAL")])
    live.note(log, digest(1), "NORMAL", "Dr Adams")
    first, second = live.read_log(log).models
    assert (first.model, first.answers, first.referred) == (VERSION, 30, 5)
    assert (first.decided, first.overruled, first.left) == (13, 3, 1)
    assert (second.answers, second.decided, second.overruled) == (1, 1, 0)
    expected = binomtest(3, 13).proportion_ci(0.95, method="wilson")
    assert first.share.value == 3 / 13
    assert (first.share.low, first.share.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    kept = entries(log)
    assert first.since == kept[0]["at"] and second.since == kept[-2]["at"]
    assert live.read_log(log).decisions == 16


def test_a_decision_is_about_the_latest_answer_and_names_who_decided(log, openmed, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(log))
    monkeypatch.setenv("LOGNAME", "somebody else")
    other = AnswerLog(answer_journal(log), "models:/openmed-cxr/2", "serving", None)
    other.keep([digest(3)], [said("NORMAL")])
    code, out, _ = openmed(
        "live", "note", digest(3).upper(), "--decision", "pneumonia", "--by", "Dr  Adams", "--json"
    )
    done = json.loads(out)
    assert code == 0 and done == {
        "film": digest(3),
        "model": "models:/openmed-cxr/2",
        "label": "NORMAL",
        "refer": None,
        "decision": "PNEUMONIA",
        "by": "Dr Adams",
        "login": login(),
        "overrules": True,
    }
    assert login() != "somebody else"
    last = entries(log)[-1]
    assert last["event"] == "decided" and last["by"] == "Dr Adams"
    code, out, _ = openmed("live", "log", digest(3))
    assert code == 0 and [line.split("  ")[1] for line in out.splitlines()] == [
        "answered",
        "answered",
        "decided",
    ]


@pytest.mark.parametrize(
    ("film", "decision", "by", "message"),
    [
        (digest(99), "NORMAL", "Dr Adams", "no answer to a film with the SHA-256"),
        (digest(0), "HEALTHY", "Dr Adams", "a decision is one of NORMAL, PNEUMONIA, refer, not HEALTHY"),
        (digest(0), "NORMAL", " ", "the reader must be named"),
        (digest(0), "NORMAL", "Dr\x1b[2K Adams", "holds characters that cannot be shown"),
        ("film.png", "NORMAL", "Dr Adams", "is no SHA-256 of 64 hex digits, and as a file cannot be read"),
    ],
)
def test_a_decision_that_is_about_nothing_or_of_nobody_is_refused(log, film, decision, by, message):
    before = written(log)
    with pytest.raises(BadInput, match=message):
        live.note(log, film, decision, by)
    assert written(log) == before


def test_a_name_cannot_pass_for_an_answer(log):
    live.note(log, digest(0), "NORMAL", '","event":"answered","film":"' + digest(99))
    with pytest.raises(BadInput, match="no answer to a film"):
        live.note(log, digest(99), "NORMAL", "Dr Adams")
    assert live.read_log(log).models[0].answers == 30


def test_the_command_tells_what_is_in_the_log_and_ends_with_3_when_it_was_changed(log, openmed, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(log))
    live.note(log, digest(0), "NORMAL", "Dr Adams")
    code, out, _ = openmed("live", "log")
    assert code == 0 and f"{VERSION}, since " in out
    assert "30 answers, 5 referred; readers decided 1 too and overruled 1: 1.000 [0.207, 1.000]" in out
    head = json.loads(openmed("live", "log", "--json")[1])["head"]
    assert head in out
    live.note(log, digest(1), "NORMAL", "Dr Adams")
    assert openmed("live", "log", "--head", head)[0] == 0
    code, _, error = openmed("live", "log", "--head", "f" * 64)
    assert code == 3 and "never ended with ffff" in error
    (day,) = answer_journal(log).days()
    day.write_bytes(day.read_bytes().replace(b'"label":"PNEUMONIA"', b'"label":"NORMAL"', 1))
    code, out, error = openmed("live", "log")
    assert (code, out) == (3, "") and "line 2 of" in error and "changed, added or removed" in error


def test_days_are_deleted_when_the_plan_says_so_but_never_of_a_broken_log(log):
    journal = answer_journal(log)
    live.note(log, digest(0), "NORMAL", "Dr Adams")
    (today,) = journal.days()
    assert look_after(log, 184).deleted == [] and today.exists()
    day = datetime.now(UTC).date()
    ago = (195, 6, 5, 4, 3, 2, 1)
    old, sixth, *later = (journal.folder / f"{day - timedelta(days=back):%Y-%m-%d}.jsonl" for back in ago)
    lines = today.read_bytes().splitlines(keepends=True)
    old.write_bytes(b"".join(lines[:10]))
    for path, line in zip(later, lines[10:], strict=False):
        path.write_bytes(line)
    today.write_bytes(b"".join(lines[15:]))
    assert look_after(log, None).deleted == [] and old.exists()
    # The seventh-last day of the log is the old one itself: nothing but the clock says that it is old.
    assert look_after(log, 184).deleted == [] and old.exists()
    sixth.write_bytes(lines[9])
    old.write_bytes(b"".join(lines[:8]))
    assert "was changed, added or removed" in look_after(log, 184).problem and old.exists()
    old.write_bytes(b"".join(lines[:9]))
    state = look_after(log, 184)
    assert state.deleted == [old.stem] and state.problem is None and not old.exists()
    assert state.models[0].answers == 21 and live.read_log(log).deleted == [old.stem]


def keep_one(log, number):
    AnswerLog(answer_journal(log), VERSION, "score", "openmed").keep([digest(number)], [said()])


def test_a_log_whose_end_was_cut_off_is_held_against_the_record(home, openmed):
    for number in range(3):
        keep_one(home, number)
    cut = home.with_name("cut")
    shutil.copytree(home / "answers", cut)
    keep_one(home, 3)
    note_head(home, "1", state := look_after(home, None))
    keep_one(home, 4)
    note_head(home, "1", look_after(home, None))  # once a day
    (noted,) = ledger.history("1")[-1:]
    assert (noted.event, noted.content["head"]) == ("logged", state.head) and noted.content["goes_on"]
    assert sum(entry.event == "logged" for entry in ledger.history()) == 1
    assert live.read_log(home).breaks == []
    # Lines and head are as they were: nothing in the folder tells.
    shutil.rmtree(home / "answers")
    shutil.copytree(cut, home / "answers")
    code, _, error = openmed("live", "log")
    assert code == 3 and f"go on from {state.head[:16]}" in error and "its end was cut off" in error
    seen = look_after(home, 184)
    assert "its end was cut off" in seen.problem
    # The record keeps it for good, and goes on with what there is.
    note_head(home, "1", seen)
    after = live.read_log(home)
    assert after.breaks == [ledger.history()[-1].at] and after.problem is None
    assert "It did not go on at" in openmed("live", "log")[1]
    registry.verify("1")


def test_another_log_of_the_same_record_is_not_mistaken_for_it(home, tmp_path):
    keep_one(home, 1)
    note_head(home, "1", look_after(home, None))
    keep_one(tmp_path / "other", 2)
    assert live.read_log(tmp_path / "other").models[0].answers == 1


def test_an_answer_that_is_kept_while_the_log_is_read_breaks_nothing(log, monkeypatch):
    head, journal = live.read_log(log).head, answer_journal(log)
    read = type(journal).entries

    def meanwhile(self):
        yield from read(self)
        keep_one(log, 99)

    monkeypatch.setattr(type(journal), "entries", meanwhile)
    assert live.read_log(log, head).head == head


@pytest.mark.parametrize("head", ["junk", "f" * 63, "", "g" * 64, "f" * 64 + "\n"])
def test_what_is_no_hash_is_refused_as_such(log, head):
    with pytest.raises(BadInput, match="no hash of the log: it has 64 hex digits"):
        live.read_log(log, head)


def test_whatever_answers_a_film_keeps_the_answer():
    """Who puts an answer to a film into words keeps it."""
    from tests.conftest import ROOT

    asking = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in ("pipeline", "dags")
        for path in (ROOT / folder).rglob("*.py")
        if "film_answers(" in path.read_text()
    }
    assert set(asking) == {
        "pipeline/inference.py",
        "pipeline/monitoring/scoring.py",
        "pipeline/serving/serving.py",
    }
    for path, text in asking.items():
        assert text.count("film_answers(") == text.count(".keep("), path


def test_reading_a_log_that_others_may_not_is_refused_with_a_sentence(log):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (log / "answers").chmod(0)
    try:
        with pytest.raises(ResourceError, match="cannot be read or written"):
            live.read_log(log)
    finally:
        (log / "answers").chmod(0o700)


def test_a_wholly_rewritten_log_is_found_by_a_hash_that_was_noted(log):
    head = live.read_log(log).head
    shutil.rmtree(log / "answers")
    AnswerLog(answer_journal(log), VERSION, "score", "openmed").keep([digest(0)], [said("NORMAL")])
    assert live.read_log(log).models[0].answers == 1
    with pytest.raises(IntegrityError, match="it was written anew"):
        live.read_log(log, head)


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event": "answered", "model": [VERSION], "at": "2026-01-01T00:00:00Z", "refer": None},
        {"event": "decided", "at": "2026-01-01T00:00:00Z"},
        {"event": "deleted", "at": "yesterday", "days": {}, "keep_days": 1},
    ],
)
def test_a_line_of_something_else_that_goes_on_the_chain_is_named(tmp_path, line):
    journal = answer_journal(tmp_path)
    journal.append([line])
    with pytest.raises(IntegrityError, match="no answer or decision"):
        live.read_log(tmp_path)
    assert "no answer or decision" in look_after(tmp_path, 184).problem
