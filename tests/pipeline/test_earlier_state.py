"""A state folder written before the code was parted into folders is read as it was (`data/make_state.py`)."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json
from pipeline import ledger, registry
from pipeline.monitoring import ScoreLog
from pipeline.promotion import actions as promotion
from pipeline.tracking.store import connect
from tests.pipeline.conftest import make_workspace, register

STATE = Path(__file__).parent / "data/state.tar.xz"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(STATE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def state(unpacked, tmp_path, monkeypatch):
    """A copy of it, which lies elsewhere than where it was made."""
    folder = tmp_path / "state"
    shutil.copytree(unpacked, folder)
    monkeypatch.setenv("OPENMED_HOME", str(folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def test_versions_and_what_was_decided_on_them_are_listed_as_they_were(state, openmed):
    code, out, _ = openmed("registry", "list", "--json")
    columns = ("version", "verdict", "decision", "aliases", "hold")
    assert code == 0 and [tuple(version[name] for name in columns) for version in json.loads(out)] == [
        ("3", "PASS", "promoted", ["challenger", "champion"], None),
        ("2", "PASS", "rejected", [], None),
        ("1", "PASS", "promoted", ["previous"], "an old machine"),
    ]
    people = "Dr Adams (clinical), Mr Brown (technical)"
    told = {
        "1": [
            "registered: vit of retraining run-1, started by Ms Engineer",
            "shown for review: PASS",
            f"promoted by {people} as the first champion: looks right",
            f"version 3 took its place, by {people}",
            "put on hold by Mr Brown: an old machine",
        ],
        "2": ["registered: vit", "shown for review: PASS", "rejected by Dr Adams: heat maps off the lung"],
        "3": [
            "registered: vit",
            "its change plan was adopted by Dr Adams: fewer films are enough",
            "shown for review: PASS",
            f"promoted by {people} in place of version 1: looks right",
            "put on hold by Dr Adams: a miss was reported",
            "taken off hold by Mr Brown: the film was of a foot",
        ],
    }
    for version, sentences in told.items():
        shown = [what for _, what in ledger.story(version)]
        assert len(shown) == len(sentences)
        for what, sentence in zip(shown, sentences, strict=True):
            assert what.startswith(sentence)


def test_mlflow_runs_no_code_that_was_stored_with_a_version(state):
    import mlflow

    with connect():
        with pytest.raises(BadInput, match="version 3 was registered with code of its own, which"):
            mlflow.pyfunc.load_model("models:/openmed-cxr@champion")
        for code in (state / "home/mlartifacts/models").glob("*/artifacts/serving.py"):
            code.write_text(f"raise SystemExit({str(code)!r})")
        with pytest.raises(IntegrityError, match=r"serving\.py of version 3 in the store is not what"):
            mlflow.pyfunc.load_model("models:/openmed-cxr@champion")


def test_every_link_of_every_version_is_intact(state):
    for version in "123":
        links = registry.verify(version)
        assert len(links) == 12 and {link.problem for link in links} == {None}


def test_the_champion_answers_as_it_did(state, openmed):
    before = read_json(state / "answer.json")
    code, out, error = openmed("predict", "models:/openmed-cxr@champion", state / "film.jpeg", "--json")
    assert code == 0, error
    answer = json.loads(out) | {"path": "film.jpeg"}
    for name in ("probability", "threshold"):
        assert answer.pop(name) == pytest.approx(before.pop(name), abs=1e-5)
    for name in ("probabilities", "thresholds"):
        assert answer.pop(name) == pytest.approx(before.pop(name), abs=1e-5)
    assert answer == before


def test_a_candidate_of_today_is_judged_against_its_champion(state, tmp_path):
    plan = registry.artifact("3", "change_plan.yaml")
    workspace = tmp_path / "today"
    workspace.mkdir()
    shutil.copy(plan, workspace)
    version = register(make_workspace(workspace, ("vit",)), "run-today").version
    judged = promotion.gate(version)
    assert (version, judged.champion, judged.films_compared) == ("4", "3", 24)
    assert [gate.name for gate in judged.comparison] == [
        f"{name} vs {other}"
        for other in ("champion", "first approved")
        for name in ("auc", "sensitivity", "specificity")
    ]
    assert {link.problem for link in registry.verify(version)} == {None}


def test_its_log_of_scored_films_is_read_and_continued(state, openmed):
    before = read_json(state / "home/watch/watch.json")
    assert len(ScoreLog(state / "home", "3").known()) == 59
    code, out, error = openmed("live", "watch", "--json")
    assert code == 0, error
    watched = json.loads(out)
    for name in ("version", "films", "patients", "labelled", "verdict", "sentence", "checks"):
        assert watched[name] == before[name]
    assert (before["news"], watched["news"]) == (True, False)
    (state / "new").mkdir()
    shutil.copy(state / "film.jpeg", state / "new")
    code, out, error = openmed("live", "score", state / "new", "--json")
    assert code == 0, error
    done = json.loads(out)
    assert (done["version"], done["films"], done["known"]) == ("3", 1, 1)
