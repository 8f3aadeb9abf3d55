"""One evening of a registry: what may pass passes, what may not does not, and the record shows all of it."""

import sqlite3
import threading

import numpy as np
import pandas as pd
import pytest
import yaml

from openmed.errors import BadInput, IntegrityError
from openmed.gates.gate import FAIL, PASS
from pipeline import ledger, registry
from pipeline.promotion import actions as promotion
from pipeline.registry import candidates
from tests.pipeline.conftest import crown, make_workspace, register, roll_back
from tests.pipeline.keys import make_key, needs_openssh

SPLITS = ["train"] * 8 + ["validation"] * 4 + ["calibration"] * 8 + ["test"] * 80


def workspace(folder, number, quality):
    """A retraining whose scores tell the classes apart as well as `quality` says (0 is chance)."""

    def scores(rows):
        noise = np.random.default_rng(number).normal(0, 0.12, len(rows))
        return rows.assign(score=np.clip(0.5 + quality * (rows["label"] - 0.5) + noise, 0.01, 0.99))

    return make_workspace(folder / str(number), ("vit",), seed=number, splits=SPLITS, change=scores)


@pytest.fixture
def signing(store, tmp_path):
    """The key of a person, and workspaces whose change plan lists it: an approval counts once signed."""
    key, line = make_key(tmp_path / "keys", "adams")

    def planned(folder, number, quality):
        made = workspace(folder, number, quality)
        plan = yaml.safe_load((made / "change_plan.yaml").read_text())
        plan["protocol"]["keys"] = {"clinical": [line]}
        (made / "change_plan.yaml").write_text(yaml.safe_dump(plan))
        return made

    return key, planned


def approve(version, key, by="Dr Adams"):
    return promotion.promote(
        version,
        approved_by={"clinical": by},
        comment="",
        expected_champion=ledger.champion(),
        keys={"clinical": key},
    )


def all_is_well():
    """What is wrong with the champion and the newest version."""
    versions = {ledger.champion(), registry.list_versions()[0].version}
    return {link.problem for version in versions for link in registry.verify(version)}


@needs_openssh
def test_an_evening(store, tmp_path, signing):
    key, workspace = signing
    first = register(workspace(tmp_path, 1, 0.4), "a").version
    with pytest.raises(BadInput, match="lacks the signature of Dr Adams as clinical"):
        promotion.promote(first, approved_by={"clinical": "Dr Adams"}, comment="", expected_champion=None)
    approve(first, key)
    assert ledger.champion() == first and all_is_well() == {None}

    better = register(workspace(tmp_path, 2, 0.6), "b").version
    assert promotion.gate(better).verdict == PASS
    approve(better, key)
    assert ledger.champion() == better and all_is_well() == {None}

    for number, quality, run_key in ((3, 0.2, "c"), (4, 0.0, "shuffled")):
        bad = register(workspace(tmp_path, number, quality), run_key).version
        assert promotion.gate(bad).verdict == FAIL
        with pytest.raises(BadInput, match="cannot be promoted"):
            approve(bad, key)
        ledger.reject(bad, by="gate", reason="its gates say FAIL")
        assert ledger.champion() == better and all_is_well() == {None}

    rivals = [register(workspace(tmp_path, number, 0.7), f"rival-{number}").version for number in (5, 6)]
    winner = race([(version, f"Dr {number}") for number in range(4) for version in rivals], better, key)
    assert ledger.champion() == winner and all_is_well() == {None}

    with pytest.raises(BadInput, match="champion's change plan lists keys: sign this"):
        roll_back("too many alarms", "Dr Brown")
    roll_back("too many alarms", "Dr Brown", ledger.Caller({}, key))
    roll_back("still too many", "Dr Brown", ledger.Caller({}, key))
    assert ledger.champion() == first and all_is_well() == {None}
    events = [entry.event for entry in ledger.history() if entry.event not in ("moved", "signed")]
    assert events == [
        *("registered", "promoted", "registered", "promoted"),
        *("registered", "rejected", "registered", "rejected"),
        *("registered", "registered", "promoted", "restored", "restored"),
    ]
    told = [what for _, what in ledger.story(better) if not what.startswith("signed by")]
    assert told[1].startswith("promoted by Dr Adams (clinical) in place of version 1 (clinical signed by ")
    assert told[2].startswith(f"version {winner} took its place, by Dr")
    assert told[3:] == [
        "made the champion again by Dr Brown: too many alarms",
        "version 1 took its place, by Dr Brown",
    ]
    planted_changes_are_found(store, first)


def test_small_losses_do_not_add_up(store, tmp_path, monkeypatch):
    planted = {}

    def retrained(number, quality):
        def scores(rows):
            # The same noise each time: only the quality differs.
            noise = np.random.default_rng(0).normal(0, 0.12, len(rows))
            return rows.assign(score=np.clip(0.5 + quality * (rows["label"] - 0.5) + noise, 0.01, 0.99))

        folder = make_workspace(tmp_path / str(number), ("vit",), seed=number, splits=SPLITS, change=scores)
        plan = yaml.safe_load((folder / "change_plan.yaml").read_text())
        plan["protocol"]["evaluation"]["reviewers_decide"] = []
        (folder / "change_plan.yaml").write_text(yaml.safe_dump(plan))
        version = register(folder, f"run-{number}").version
        planted[version] = pd.read_parquet(folder / "artifacts/evaluate/vit/predictions.parquet")
        return version

    def score(workspace, version):
        if version is None:
            return registry.Unscored(None, None)
        films = registry.films_of(workspace)[["id", "sha256", "split"]]
        both = films.merge(planted[version][["id", "score"]], on="id")
        test = both[both["split"] == "test"].drop(columns="split")
        return registry.Scored(version, {"PNEUMONIA": 0.5}, test, None)

    monkeypatch.setattr(candidates, "score_earlier", score)
    first = retrained(1, 0.24)
    crown(first)
    second = retrained(2, 0.17)
    crown(second, first)
    third = retrained(3, 0.165)
    judged = promotion.gate(third)
    assert judged.champion == second and ledger.first_champion() == first
    verdicts = {gate.name: gate.verdict for gate in judged.comparison}
    assert verdicts["auc vs champion"] != FAIL and verdicts["auc vs first approved"] == FAIL
    assert judged.verdict == FAIL
    assert f"Compared with the version approved first, {first} on" in judged.note


def race(racers, before, key):
    """Eight people promote at once; returns the version of the one that won."""
    start, outcome = threading.Barrier(len(racers)), []

    def run(version, person):
        start.wait()
        try:
            outcome.append(
                promotion.promote(
                    version,
                    approved_by={"clinical": person},
                    comment="",
                    expected_champion=before,
                    keys={"clinical": key},
                )
            )
        except BadInput:
            outcome.append(None)

    threads = [threading.Thread(target=run, args=racer) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (record,) = [each for each in outcome if each]
    assert len(outcome) == len(racers) == 8
    return record.version


def planted_changes_are_found(home, version):
    """The alias moved by hand, a decision rewritten, a verdict improved: each turns the check red."""
    for link, statement, undo in (
        (
            "aliases",
            "UPDATE registered_model_aliases SET version = 3 WHERE alias = 'champion'",
            f"UPDATE registered_model_aliases SET version = {version} WHERE alias = 'champion'",
        ),
        (
            "record of decisions",
            "UPDATE model_version_tags SET value = replace(value, 'Dr Adams', 'Dr Eve') "
            "WHERE key = 'audit.000002'",
            "UPDATE model_version_tags SET value = replace(value, 'Dr Eve', 'Dr Adams') "
            "WHERE key = 'audit.000002'",
        ),
        (
            "registration",
            f"UPDATE model_version_tags SET value = '1.0' WHERE key = 'auc' AND version = {version}",
            None,
        ),
    ):
        with sqlite3.connect(home / "mlflow.db") as database:
            assert database.execute(statement).rowcount == 1
        assert registry.verify(version)[-1].name == link and registry.verify(version)[-1].problem
        if link == "aliases":
            with pytest.raises(IntegrityError, match="was moved by something else"):
                registry.load("models:/openmed-cxr@champion")
        if undo:
            with sqlite3.connect(home / "mlflow.db") as database:
                assert database.execute(undo).rowcount == 1
            assert registry.verify(version)[-1].problem is None
