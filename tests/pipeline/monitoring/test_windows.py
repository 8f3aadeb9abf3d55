"""Windows of the log: the latest films, whatever they are called, and what is said of too few of them."""

import shutil
import tracemalloc

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.files import sha256_bytes
from openmed.measurement.measure import measurements
from pipeline import ledger, registry
from pipeline import monitoring as live
from pipeline.monitoring import ScoreLog, scoring
from pipeline.monitoring.windows import Eligible, windows
from tests.pipeline.monitoring.test_monitoring import crowned, home, scored  # noqa: F401

CLASSES = ("NORMAL", "PNEUMONIA")


def rows(count, *, seed=0, each=2, at="2026-01-01T00:00:00Z"):
    """Films of the log in the order of their names: first those without the finding, then those with it."""
    return pd.DataFrame(
        {
            "sha256": [sha256_bytes(f"{seed}-{number}".encode()) for number in range(count)],
            "patient": [f"p{seed}-{number // each:05d}" for number in range(count)],
            "status": "scored",
            "score": np.repeat((0.1, 0.9), (count - count // 2, count // 2)),
            "scored_at": at,
            "embedding": list(np.zeros((count, 64), np.float32)),
        }
    )


def logged(folder, *batches):
    """A log of batches, each of the given parts."""
    for parts in batches:
        log = ScoreLog(folder, "1")
        for part in parts:
            log.append(part)
    return log


def hashes(window):
    return set(window["sha256"])


def test_a_window_of_200_of_600_films_has_both_classes(tmp_path):
    films = rows(600)
    log = logged(tmp_path, [films[:300], films[300:]])
    window = next(windows(log, 200))
    assert len(window) == 200
    # Half of the films have the finding; five standard deviations of the draw of 100 of 300 patients.
    assert abs((window["score"] > 0.5).sum() - 100) <= 5 * 2 * np.sqrt(100 / 4 * 200 / 299)


def test_neither_names_nor_order_nor_parts_change_a_window(tmp_path):
    films = rows(600, each=3)
    first = next(windows(logged(tmp_path / "a", [films[:300], films[300:]]), 100))
    mixed = films.sample(frac=1, random_state=1)
    other = mixed.assign(patient="x" + mixed["patient"].str[::-1])
    parts = [other[:17], other[17:400], other[400:]]
    second = next(windows(logged(tmp_path / "b", parts), 100))
    assert hashes(first) == hashes(second) and len(first) == 102
    assert (first.groupby("patient").size() == 3).all()


def test_patients_with_many_films_are_drawn_as_often_as_those_with_one(tmp_path):
    often = {"one": 0, "nine": 0}
    for seed in range(60):
        films = rows(200, seed=seed, each=1)
        films["patient"] = [f"one {k}" if k < 20 else f"nine {k % 20}" for k in range(200)]
        window = next(windows(logged(tmp_path / str(seed), [films]), 50))
        for name, count in window["patient"].drop_duplicates().str.split().str[0].value_counts().items():
            often[name] += count
    drawn = sum(often.values())
    # Twenty patients of each kind; the last patient of a window, who fills it, more often has nine films.
    assert abs(often["one"] / drawn - 0.5) < 0.12


def test_the_latest_batches_are_whole_and_the_next_is_drawn_from(tmp_path):
    old, middle, new = (rows(100, seed=seed) for seed in range(3))
    log = logged(tmp_path, [old], [middle], [new])
    found = list(windows(log, 150))
    assert [len(window) for window in found] == [150, 100]
    assert hashes(new) < hashes(found[0]) <= hashes(new) | hashes(middle)
    assert hashes(found[1]) == hashes(old)


def test_a_patient_of_endless_films_fills_no_memory(tmp_path):
    films = rows(500, each=500)
    assert len(next(windows(logged(tmp_path, [films[:300], films[300:]]), 60))) == 60


def test_only_eligible_films_are_drawn_and_unusable_ones_never(tmp_path):
    films = rows(100)
    films.loc[::10, "status"] = "unusable"
    late = rows(50, seed=1, at="2026-02-01T00:00:00Z")
    log = logged(tmp_path, [films], [late])
    assert len(next(windows(log, 1000))) == 140
    assert hashes(next(windows(log, 1000, eligible=Eligible("2026-01-31T00:00:00Z")))) == hashes(late)
    wanted = set(films["sha256"][1:4])
    assert hashes(next(windows(log, 10, eligible=Eligible(among=wanted)))) == wanted
    assert list(windows(log, 10, eligible=Eligible(among=set()))) == []
    assert list(next(windows(log, 10, ["score"])).columns) == ["sha256", "patient", "scored_at", "score"]


def test_logs_of_before_batches_are_read(tmp_path):
    """Parts of a run follow one another at once; the next run is hours away."""
    log = ScoreLog(tmp_path, "1")
    log.folder.mkdir(parents=True)
    times = ("2026-01-01T23:50:00Z", "2026-01-02T00:05:00Z", "2026-01-03T07:00:00Z")
    for number, at in enumerate(times, 1):
        rows(100, seed=number, at=at).to_parquet(log.folder / f"{number:08d}.parquet", index=False)
    log.append(rows(20, seed=9, at="2026-01-03T07:01:00Z"))
    assert [len(parts) for parts in log.batches()] == [1, 1, 2]
    found = list(windows(log, 120))
    assert [len(window) for window in found] == [120, 120]
    counts = found[1]["patient"].str[:2].value_counts()
    assert set(counts.index) == {"p1", "p2"} and counts.min() >= 30


def test_memory_does_not_grow_with_the_log(tmp_path):
    logs = {
        batches: logged(tmp_path / str(batches), *([rows(1000, seed=number)] for number in range(batches)))
        for batches in (1, 5, 30)
    }

    def peak(batches):
        log = logs[batches]
        wanted = {rows(1)["sha256"][0]}
        tracemalloc.start()
        try:
            assert sum(1 for _ in windows(log, 200)) == batches
            assert len(next(windows(log, 200, eligible=Eligible(among=wanted)))) == 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    # A film's hash alone would be 113 bytes, its row 600.
    # The less of two runs: what a library or a thread of another test takes once is not the log's.
    assert min(peak(30), peak(30)) - min(peak(5), peak(5)) < 25 * 1000 * 20


@pytest.fixture
def folders(tmp_path):
    """240 films, dark ones of NORMAL and bright ones of PNEUMONIA; two films of each patient."""
    rng = np.random.default_rng(0)
    for number in range(240):
        label = CLASSES[number >= 120]
        grey = rng.normal(90 + 60 * (number >= 120), 20, (64, 64)).clip(0, 255).astype(np.uint8)
        path = tmp_path / "films" / label / f"person{number // 2}_{number % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    return tmp_path / "films"


def renamed(folder, target):
    """The same films of the same patients in one folder, under other names in another order."""
    target.mkdir()
    turn = np.random.default_rng(1).permutation(120)
    for path in folder.rglob("*.png"):
        patient, film = path.stem.removeprefix("person").split("_")
        shutil.copy(path, target / f"person{turn[int(patient)]}_{9 - int(film)}.png")
    return target


@pytest.fixture
def alike(monkeypatch):
    """Champions were trained on films of 64 by 64 pixels, as dark and bright as those of `folders`."""
    rng = np.random.default_rng(2)
    found = []
    for grey in (90, 150) * 60:
        image = rng.normal(grey, 20, (64, 64)).clip(0, 255).astype(np.uint8)
        found.append(measurements(image, 8))
    stored = pd.DataFrame(found).assign(label="NORMAL")
    stored["sha256"] = stored["patient"] = [f"{number:064x}" for number in range(len(stored))]
    monkeypatch.setattr(registry, "champion_profile", lambda **_: ("1", stored))


@pytest.mark.usefixtures("alike")
def test_folders_and_renamed_files_get_the_same_verdict(home, folders, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(scoring, "_PART_FILMS", 50)
    results = []
    for name, source in (("a", folders), ("b", renamed(folders, tmp_path / "renamed"))):
        state = tmp_path / name
        shutil.copytree(home, state)
        monkeypatch.setenv("OPENMED_HOME", str(state))
        assert live.score_films(state, source).scored == 240
        live.add_labels(state, folders, CLASSES)
        found = live.watch(state).to_json()
        assert found.pop("page") == str(state / "watch/watch.html") and found.pop("at")
        (use,) = found.pop("oversight")["models"]
        assert use["answers"] == 240
        for period in found["periods"]:
            del period["until"]
        results.append(found)
    assert results[0] == results[1]
    assert (results[0]["films"], results[0]["patients"], results[0]["labelled"]) == (100, 50, 100)
    measured = [check for check in results[0]["checks"] if check["name"].startswith("measured")]
    assert len(measured) == 3 and all(check["value"] is not None for check in measured)


def test_what_a_killed_run_leaves_is_a_sample_of_the_folders(home, folders, monkeypatch):  # noqa: F811
    monkeypatch.setattr(scoring, "_PART_FILMS", 60)
    append = ScoreLog.append

    def killed(self, films):
        append(self, films)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreLog, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            live.score_films(home, folders)
    window = next(windows(ScoreLog(home, "1"), 60))
    # 60 of 240 films of which half are bright; four standard deviations.
    assert len(window) == 60 and abs((window["mean"] > 120).sum() - 30) <= 4 * np.sqrt(60 / 4 * 180 / 239)


def label(home, films, truth):  # noqa: F811
    live.log._write_labels(home, dict(zip(films["sha256"], truth, strict=True)))


def verdicts(found):
    return {check["name"]: check["verdict"] for check in found["checks"]}


def test_what_cannot_be_measured_keeps_the_champion_from_passing(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    ill = films[films["score"] > 0.5]
    label(home, ill, ["PNEUMONIA"] * len(ill))
    found = live.watch(home).to_json()
    said = verdicts(found)
    assert said["measured sensitivity"] == "PASS"
    assert said["measured specificity"] == said["measured AUC"] == "INSUFFICIENT EVIDENCE"
    assert (found["verdict"], found["hold"], ledger.on_hold()) == ("INSUFFICIENT EVIDENCE", None, {})
    assert found["sentence"].endswith(
        "is not surely outside the limits of its change plan, but not all of it can be judged: evidence is "
        "missing for measured AUC, measured specificity."
    )
    assert found["sentence"] in (home / "watch/watch.html").read_text()


def test_a_few_labels_decide_nothing_and_are_not_passed_over(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    label(home, films[:20], np.where(films["score"][:20] > 0.5, "NORMAL", "PNEUMONIA"))
    found = live.watch(home).to_json()
    assert found["verdict"] == "INSUFFICIENT EVIDENCE" and found["hold"] is None
    reasons = [check["reason"] for check in found["checks"] if check["name"] == "measured AUC"]
    assert reasons == [
        "The measured AUC is not judged: labels have come for 10 patients, and the plan asks for 40."
    ]


def test_the_page_names_an_alias_that_was_moved_and_judges_the_champion_of_the_record(home):  # noqa: F811
    from pipeline.tracking.store import CHAMPION, MODEL_NAME, connect

    ScoreLog(home, "1").append(scored(100))
    with connect() as client:
        client.delete_registered_model_alias(MODEL_NAME, CHAMPION)
    found = live.watch(home).to_json()
    sentence = "the alias champion points to none, but the record of decisions says version 1"
    assert found["version"] == "1" and found["films"] == 100 and found["problem"].startswith(sentence)
    assert sentence in (home / "watch/watch.html").read_text()


def test_one_missed_film_among_many_healthy_ones_is_not_judged(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    healthy = films[films["score"] < 0.5].assign(truth="NORMAL")
    healthy.iloc[0, -1] = "PNEUMONIA"
    label(home, healthy, healthy["truth"])
    found = live.watch(home).to_json()
    reason = next(check["reason"] for check in found["checks"] if check["name"] == "measured sensitivity")
    assert reason == "The measured sensitivity is not judged: it rests on 1 films, and 20 are needed."
    assert found["verdict"] == "INSUFFICIENT EVIDENCE" and found["hold"] is None


def test_what_is_surely_too_bad_holds_though_other_parts_cannot_be_judged(home):  # noqa: F811
    films = scored(100)
    ScoreLog(home, "1").append(films)
    low = films[films["score"] < 0.5]
    label(home, low, ["PNEUMONIA"] * len(low))
    found = live.watch(home).to_json()
    assert found["verdict"] == "FAIL" and verdicts(found)["measured sensitivity"] == "FAIL"
    assert found["hold"].endswith("(not judged for want of evidence: measured AUC, measured specificity).")


def test_labels_of_both_classes_are_found_though_the_latest_films_are_of_one(home):  # noqa: F811
    healthy, ill = scored(100, seed=1).assign(score=0.05), scored(100, seed=2).assign(score=0.95)
    for films in (healthy, ill):
        ScoreLog(home, "1").append(films)
    both = pd.concat([healthy, ill])
    label(home, both, np.repeat(["NORMAL", "PNEUMONIA"], 100))
    found = live.watch(home).to_json()
    said = verdicts(found)
    assert {said[f"measured {name}"] for name in ("AUC", "sensitivity", "specificity")} == {"PASS"}
    # What is expected of the latest films has no specificity, and that is said.
    assert found["labelled"] == 100 and found["verdict"] == "INSUFFICIENT EVIDENCE"


def test_a_champion_that_scored_nothing_is_not_judged(home):  # noqa: F811
    found = live.watch(home).to_json()
    assert (found["verdict"], found["films"], found["periods"]) == ("INSUFFICIENT EVIDENCE", 0, [])
    assert found["sentence"].endswith("cannot be judged yet: the plan asks for 40 patients.")


def test_drift_from_films_that_were_not_stored_is_no_pass(home, monkeypatch):  # noqa: F811
    ScoreLog(home, "1").append(scored(100))
    monkeypatch.setattr(registry, "champion_profile", lambda **_: ("1", None))
    found = live.watch(home).to_json()
    assert verdicts(found)["drift"] == found["verdict"] == "INSUFFICIENT EVIDENCE"
    assert "evidence is missing for drift." in found["sentence"]
    assert "were not stored with it" in (home / "watch/watch.html").read_text()
