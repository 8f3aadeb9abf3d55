"""Hosts with only a DVC remote in common see each other's scores, labels, answers and watches."""

import json
import shutil
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import read_json, sha256_bytes, write_json
from openmed.inference.answers import FilmAnswer
from openmed.oversight.answer_log import AnswerLog, answer_journal
from pipeline import monitoring as live
from pipeline.monitoring import ScoreLog, oversight
from pipeline.monitoring.judging.looks import LOOKS, Looks
from pipeline.monitoring.log import labels, read_asks
from pipeline.monitoring.sharing import log_name, pull, push, roots, writer
from pipeline.monitoring.windows import windows
from tests.pipeline.conftest import crown

VERSION, CLASSES = "models:/openmed-cxr/1", ("NORMAL", "PNEUMONIA")


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """State folders of two hosts; calling one makes it the host that commands run on."""
    monkeypatch.setenv("OPENMED_SITE_SECRET", "a secret of this site")

    class Host(type(tmp_path)):
        def __call__(self):
            monkeypatch.setenv("OPENMED_HOME", str(self))
            monkeypatch.setenv("OPENMED_PROJECT", str(self.parent / "checkout"))
            return self

    made = []
    for name in ("a", "b"):
        project = tmp_path / name / "checkout"
        (project / ".dvc").mkdir(parents=True)
        (project / "dvc.yaml").write_text("stages: {}\n")
        (project / ".dvc" / "config").write_text(
            f"[core]\n    remote = s\n['remote \"s\"']\n    url = {tmp_path / 'remote'}\n"
        )
        made.append(Host(tmp_path / name / "home"))
        made[-1].mkdir()
    return made


def digest(number):
    return sha256_bytes(str(number).encode())


def scored(numbers, at="2026-01-01T00:00:00Z"):
    numbers = list(numbers)
    return pd.DataFrame(
        {
            "sha256": list(map(digest, numbers)),
            "patient": [f"p{number}" for number in numbers],
            "status": "scored",
            "score": [0.5] * len(numbers),
            "scored_at": at,
        }
    )


def keep(home, numbers, label="PNEUMONIA"):
    both = {"NORMAL": 0.2, "PNEUMONIA": 0.8}
    said = FilmAnswer(0.8, label, 0.5, both, {"PNEUMONIA": 0.5}, None, None)
    films = list(map(digest, numbers))
    AnswerLog(answer_journal(home), VERSION, "score", "openmed").keep(films, [said] * len(films))


def filled(folder, **of_films):
    path = folder / "labels.csv"
    rows = [f"{digest(number[1:])},{label}\n" for number, label in of_films.items()]
    path.write_text("sha256,label\n" + "".join(rows))
    return path


def seen(home):
    log = ScoreLog(home, "1")
    return [sorted(pd.concat(map(pd.read_parquet, batch))["sha256"]) for batch in log.batches()]


# Scores


def test_scores_of_all_hosts_are_one_log_with_the_latest_batch_first(hosts):
    first, second = hosts
    expected = []
    for number, host in enumerate([first, second, first, second]):
        ScoreLog(host(), "1").append(scored([number], f"2026-01-0{number + 1}T00:00:00Z"))
        push(host)
        expected.insert(0, [digest(number)])
    for host in hosts:
        pull(host())
        assert seen(host) == expected
        assert ScoreLog(host, "1").known() == {digest(number) for number in range(4)}
    # Each goes on with its own numbers, and its files stay as they are.
    assert ScoreLog(first(), "1").append(scored([9])).name == "00000003.parquet"


def test_two_hosts_that_write_at_once_lose_nothing(hosts):
    """Ten parts each, sent and fetched while the other host does so too; no lock in common."""
    for host in hosts:
        host().joinpath("scores").mkdir()
        push(host)
    errors = []

    def work(host, base):
        try:
            from pipeline.monitoring import sharing
            from pipeline.versioning.objects import store

            shared = store(host.parent / "checkout")
            for number in range(base, base + 10):
                ScoreLog(host, "1").append(scored([number]))
                sharing._publish(shared, host)
                sharing._copy_all(shared, host)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(host, 100 * turn)) for turn, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for host in hosts:
        pull(host())
        assert ScoreLog(host, "1").known() == {digest(n) for n in (*range(10), *range(100, 110))}


def test_a_film_that_two_hosts_scored_at_once_is_in_a_window_once(hosts):
    for host in hosts:
        ScoreLog(host(), "1").append(scored(range(20)))
        push(host)
    pull(host)
    window = next(windows(ScoreLog(host, "1"), 100))
    assert sorted(window["sha256"]) == sorted(map(digest, range(20)))


def test_a_part_is_sent_and_fetched_once(hosts, tmp_path):
    first, second = hosts
    ScoreLog(first(), "1").append(scored([1]))
    push(first)
    pull(second())
    (copied,) = (second / "shared").glob("*/scores/version-1/*.parquet")
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "remote").rglob("*") if path.is_file()}
    before = copied.stat().st_mtime_ns
    push(first())
    pull(second())
    assert copied.stat().st_mtime_ns == before
    assert {path: path.stat().st_mtime_ns for path in stored} == stored


def test_a_host_that_begins_anew_under_the_same_name_takes_nothing_from_the_earlier_one(hosts):
    first, second = hosts
    for number in (1, 2):  # as a container with a fixed name and an empty state folder
        keep(first(), [number])
        ScoreLog(first, "1").append(scored([number]))
        push(first)
        shutil.rmtree(first)
        first.mkdir()
    pull(second())
    assert ScoreLog(second, "1").known() == {digest(1), digest(2)}
    assert live.read_log(second).models[0].answers == 2
    assert live.read_log(first()).models[0].answers == 2


# Labels and asks


def test_the_last_label_of_a_film_counts_whichever_host_gave_it(hosts, tmp_path):
    first, second = hosts
    assert live.add_labels(first(), filled(tmp_path, f1="NORMAL", f2="NORMAL"), CLASSES)["new"] == 2
    done = live.add_labels(second(), filled(tmp_path, f1="PNEUMONIA", f3="NORMAL"), CLASSES)
    assert done == {"films": 2, "new": 1, "changed": 1}
    pull(first())
    for host in hosts:
        assert labels(host) == {digest("1"): "PNEUMONIA", digest("2"): "NORMAL", digest("3"): "NORMAL"}


def test_a_later_label_counts_although_the_clock_of_the_other_host_runs_ahead(hosts, tmp_path):
    first, second = hosts
    live.add_labels(first(), filled(tmp_path, f1="NORMAL"), CLASSES)
    table = pd.read_parquet(first / "scores" / "labels.parquet").assign(at="2999-01-01T00:00:00.000000+00:00")
    table.to_parquet(first / "scores" / "labels.parquet")
    push(first)
    live.add_labels(second(), filled(tmp_path, f1="PNEUMONIA"), CLASSES)
    assert labels(second) == {digest("1"): "PNEUMONIA"}


def test_labels_of_before_they_were_dated_are_the_oldest(hosts, tmp_path):
    first, _ = hosts
    (first / "scores").mkdir()
    old = pd.DataFrame({"sha256": [digest("1"), digest("2")], "label": ["NORMAL", "NORMAL"]})
    old.to_parquet(first / "scores" / "labels.parquet")
    live.add_labels(first(), filled(tmp_path, f1="PNEUMONIA"), CLASSES)
    assert labels(first) == {digest("1"): "PNEUMONIA", digest("2"): "NORMAL"}


def test_asks_of_two_hosts_stay_apart(hosts):
    for host in hosts:
        folder = ScoreLog(host(), "1").folder / "asks"
        folder.mkdir(parents=True)
        asked = pd.DataFrame({"sha256": [digest(1)], "probability": [0.5], "sample": [True], "ask": [1]})
        asked.to_parquet(folder / "00000001.parquet")
        push(host)
    pull(host)
    assert read_asks(host, "1")["ask"].tolist() == [1, 2]


def test_looks_of_all_hosts_spend_one_error_rate(tmp_path):
    def look(name, *others, films):
        looks = Looks(tmp_path / name, *(tmp_path / other for other in others))
        error = looks.error(LOOKS, "appearance", map(digest, films), planned=100, rate=0.05)
        looks.save()
        return error

    alone = [look("alone", films=range(end)) for end in (100, 200, 300)]
    apart = [
        look("a", "b", films=range(100)),
        look("b", "a", films=range(200)),
        look("a", "b", films=range(300)),
    ]
    assert apart == alone and alone[0] > alone[1] > alone[2]
    assert look("b", "a", films=range(300)) == alone[2]  # the same films are no further look


# The log of answers


def test_a_decision_is_about_an_answer_that_another_host_gave(hosts):
    first, second = hosts
    keep(first(), range(3))
    push(first)
    done = live.note(second(), digest(1), "NORMAL", "Dr Adams")
    assert (done.model, done.label, done.overrules) == (VERSION, "PNEUMONIA", True)
    time.sleep(1.1)  # the log tells seconds apart
    live.note(first(), digest(1), "PNEUMONIA", "Dr Baker")
    for host in hosts:
        (use,) = live.read_log(host()).models
        assert (use.answers, use.decided, use.overruled) == (3, 1, 0)
        story = live.film_story(host, digest(1))
        assert [entry["event"] for entry in story] == ["answered", "decided", "decided"]
    # The chain of each host is its own, and says that nothing of it was changed.
    assert live.read_log(first()).others == {writer(second): answer_journal(second).head()}


def test_a_hash_that_was_noted_on_one_host_is_checked_on_another(hosts):
    first, second = hosts
    keep(first(), [1])
    head = answer_journal(first).head()
    keep(first(), [2])
    push(first)
    assert live.read_log(second(), head).others.values()
    with pytest.raises(IntegrityError, match="never ended with"):
        live.read_log(second(), "0" * 63 + "1")


def test_a_line_that_is_changed_in_the_copy_of_another_hosts_log_is_found(hosts):
    first, second = hosts
    keep(first(), range(3))
    push(first)
    pull(second())
    (day,) = (second / "shared").glob("*/answers/*.jsonl")
    day.write_bytes(day.read_bytes().replace(b"PNEUMONIA", b"NORMAL", 1))
    with pytest.raises(IntegrityError, match="does not go on where the lines before it end"):
        live.read_log(second)


def test_days_that_a_host_deleted_are_deleted_on_the_others(hosts):
    first, second = hosts
    keep(first(), [1])
    (day,) = answer_journal(first).days()
    push(first)
    pull(second())
    copy = roots(second)[1] / "answers"
    assert (copy / day.name).exists()
    day.rename(day.with_name("2026-01-01.jsonl"))
    push(first())
    pull(second())
    assert [path.name for path in copy.glob("*.jsonl")] == ["2026-01-01.jsonl"]


def test_a_log_is_fetched_again_before_it_is_said_not_to_go_on_from_the_record(hosts, monkeypatch):
    first, second = hosts
    keep(first(), [1])
    push(first)
    pull(second())
    keep(first(), [2])
    push(first)
    pull(first)
    noted, name = {}, log_name(first)
    monkeypatch.setattr(oversight.ledger, "noted_answers", lambda log: noted.get(log, []))

    def note(head):
        entry = SimpleNamespace(content={"head": head, "goes_on": True}, at="2026-01-01T00:00:00Z", number=3)
        noted[name] = [entry]

    note(answer_journal(first).head())
    second()
    assert oversight.look_after(second, None).elsewhere is None
    note("f" * 64)
    state = oversight.look_after(second, None)
    # It says nothing against the log of this host.
    assert state.problem is None and "does not go on from ffffffffffffffff" in state.elsewhere
    assert state.to_json()["problem"] == state.elsewhere
    with pytest.raises(IntegrityError, match="by entry 3 of the record"):
        live.read_log(second)


# What comes from elsewhere


@pytest.mark.parametrize("what", ["content", "seal", "secret"])
def test_what_this_site_did_not_write_is_refused(hosts, tmp_path, monkeypatch, what):
    first, second = hosts
    ScoreLog(first(), "1").append(scored([1]))
    push(first)
    (newest,) = (tmp_path / "remote").rglob("newest.json")
    if what == "content":
        (part,) = (path for path in newest.parent.iterdir() if path != newest)
        part.write_bytes(b"another")
    elif what == "seal":
        write_json(newest, {**read_json(newest), "hmac": "0" * 64})
    else:
        monkeypatch.setenv("OPENMED_SITE_SECRET", "the secret of another site")
    words = {"content": "was changed since", "seal": "no valid seal", "secret": "another site secret"}
    with pytest.raises(IntegrityError, match=words[what]):
        pull(second())
    assert ScoreLog(second, "1").parts() == []


def test_an_outage_ends_what_needs_the_others_and_no_readers_decision(hosts, tmp_path, caplog):
    first, second = hosts
    keep(second(), [1])
    (tmp_path / "remote").write_text("a file where the folder was")
    assert live.note(second, digest(1), "NORMAL", "Dr Adams").overrules
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    with pytest.raises(ResourceError, match="does not answer"):
        live.read_log(second)
    (tmp_path / "remote").unlink()
    live.read_log(second)
    assert live.read_log(first()).decisions == 1


def test_without_a_default_remote_nothing_is_sent_or_kept_beside(hosts, tmp_path):
    first, second = hosts
    (first.parent / "checkout" / ".dvc" / "config").write_text("")
    keep(first(), [1])
    live.note(first, digest(1), "NORMAL", "Dr Adams")
    assert roots(first) == [first] and not (first / "writer").exists() and not (tmp_path / "remote").exists()
    with pytest.raises(BadInput, match="was answered"):
        live.note(second(), digest(1), "NORMAL", "Dr Adams")


def test_films_scored_on_one_host_are_watched_and_labelled_on_another(hosts, shared, tmp_path, monkeypatch):
    first, second = hosts
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for host in hosts:
        shutil.copytree(
            shared[0], host, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlartifacts", "answers")
        )
        host()
        crown("1")
    (tmp_path / "films").mkdir()
    for number in range(6):
        grey = np.random.default_rng(number).integers(0, 256, (80, 72), dtype=np.uint8)
        (tmp_path / "films" / f"{number}.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    assert live.score_films(first(), tmp_path / "films").scored == 6
    watched = live.watch(second())
    assert watched.films == 6 and watched.oversight.models[0].answers == 6
    again = live.score_films(second, tmp_path / "films")
    assert (again.scored, again.known) == (0, 6)
    # The page is where people of the other host look for it too.
    pull(first())
    assert json.loads((first / "watch/watch.json").read_text())["at"] == watched.at
    assert (first / "watch/watch.html").read_bytes() == (second / "watch/watch.html").read_bytes()
    assert live.watch(first).news is False
