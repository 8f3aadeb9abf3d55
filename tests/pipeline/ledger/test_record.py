"""A record that was written before still reads: entries, hashes, tags and story, by a byte."""

import json
from pathlib import Path

import pytest

from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json, sha256_bytes
from pipeline import ledger, registry
from pipeline.ledger.champion import tags_of
from pipeline.tracking.store import MODEL_NAME, connect

BEFORE = read_json(Path(__file__).with_name("record_of_before.json"))
EVENTS = [
    *("registered", "shown", "promoted", "moved"),
    *("registered", "promoted", "moved", "held", "released", "restored", "moved"),
    *("registered", "adopted", "rejected", "held", "repaired", "moved"),
]


@pytest.fixture
def before(store):
    """A store with tags and aliases as the code of November 2026 left them."""
    with connect() as client:
        client.create_registered_model(MODEL_NAME, tags=BEFORE["model_tags"])
        for tags in BEFORE["version_tags"].values():
            run = client.create_run("1")
            client.create_model_version(MODEL_NAME, run.info.artifact_uri, run.info.run_id, tags=tags)
        for alias, version in BEFORE["aliases"].items():
            client.set_registered_model_alias(MODEL_NAME, alias, version)
    return store


def texts():
    tags = {key: text for each in BEFORE["version_tags"].values() for key, text in each.items()}
    return [tags[key] for key in sorted(tags) if key.startswith("audit.")]


def test_entries_of_before_are_read_and_written_again_by_a_byte(before):
    entries = ledger.history()
    assert [entry.event for entry in entries] == EVENTS
    assert [entry.to_text() for entry in entries] == texts()
    assert sha256_bytes(texts()[-1].encode()) == entries[-1].digest == BEFORE["model_tags"]["audit_head"]
    assert ledger.champion() == ledger.first_champion() == "1"
    assert [(version, entry.by) for version, entry in ledger.on_hold().items()] == [("3", "monitoring")]


def test_the_story_and_the_list_of_before_are_told_again_by_a_byte(before):
    for version, story in BEFORE["story"].items():
        assert json.loads(json.dumps(ledger.story(version))) == story
    listed = [vars(version) for version in registry.list_versions()]
    first = ["version", "aliases", "created", "run_id", "tags"]
    assert list(listed[0]) == [*first, *(key for key in BEFORE["list"][0] if key not in first)]
    shown = [{key: each[key] for key in before} for each, before in zip(listed, BEFORE["list"], strict=True)]
    assert json.dumps(shown) == json.dumps(BEFORE["list"])


def test_the_tags_of_a_decision_are_those_of_before():
    entries = {text: ledger.Entry(**json.loads(text)) for text in texts()}
    expected = {version: {} for version in BEFORE["version_tags"]}
    for entry in entries.values():
        if entry.event in (ledger.PROMOTED, ledger.RESTORED, ledger.REJECTED):
            for version, tags in tags_of(entry).items():
                expected[version] |= tags
    for version, tags in expected.items():
        assert tags.items() <= BEFORE["version_tags"][version].items() and tags


def test_a_record_of_before_goes_on(before):
    ledger.reject("2", by="Dr Adams", reason="misses apical opacities")
    entry = ledger.history()[-1]
    assert (entry.number, entry.previous) == (len(EVENTS) + 1, BEFORE["model_tags"]["audit_head"])
    with pytest.raises(BadInput, match="no previous champion"):
        ledger.roll_back(by="Dr Adams", reason="more false alarms", check=registry.check)
    with connect() as client:
        text = texts()[7].replace("Dr Brown", "Dr Eve")
        client.set_model_version_tag(MODEL_NAME, "2", "audit.000008", text)
    with pytest.raises(IntegrityError, match=r"entry 8 of the record \(held, version 2\) was changed"):
        ledger.history()
