import pytest

from openmed.errors import BadInput
from pipeline import ledger
from pipeline.tracking.versions import aliases
from tests.pipeline.conftest import crown


def roll_back():
    return ledger.roll_back(by="Dr Adams", reason="more false alarms", check=lambda version: None)


def test_a_rollback_goes_back_and_never_forward_to_the_model_just_taken_off(three):
    crown("1")
    crown("2", "1")
    # Version 1 is let through again, in place of version 2, which had replaced it before.
    crown("1", "2")
    assert aliases() == {"champion": "1", "previous": "2"}
    entry = roll_back()
    assert (entry.version, entry.content["replaced"]) == ("2", "1") and aliases() == {"champion": "2"}
    with pytest.raises(BadInput, match="no previous champion"):
        roll_back()


def test_what_the_previous_champion_stands_on_is_checked_before_anything_is_written(three):
    crown("1")
    crown("2", "1")
    before, asked = ledger.history(), []
    with pytest.raises(BadInput, match="needs a reason"):
        ledger.roll_back(by="Dr Adams", reason=" ", check=asked.append)

    def refuse(version):
        asked.append(version)
        raise BadInput("it was changed")

    with pytest.raises(BadInput, match="it was changed"):
        ledger.roll_back(by="Dr Adams", reason="more false alarms", check=refuse)
    assert asked == ["1"] and ledger.history() == before


def test_every_decision_is_about_a_version_that_exists_and_a_state_that_it_can_end(three):
    crown("1")
    for decide in (ledger.reject, ledger.hold, ledger.release, ledger.adopt):
        with pytest.raises(BadInput, match="has no version 9: choose one of 3, 2, 1"):
            decide("9", by="Dr Adams", reason="edges are wrong")
    for decide, version, problem in (
        (ledger.reject, "1", "is the champion: roll back instead"),
        (ledger.release, "2", "is not on hold: there is nothing to release"),
        (ledger.adopt, "2", r"has no change_plan\.yaml among its evidence"),
    ):
        with pytest.raises(BadInput, match=problem):
            decide(version, by="Dr Adams", reason="edges are wrong")
    with pytest.raises(BadInput, match="nothing to repair"):
        ledger.repair(by="Dr Adams", reason="moved by hand")
    ledger.hold("2", by="Dr Adams", reason="wrong scanner")
    with pytest.raises(BadInput, match=r"version 2 is on hold \(wrong scanner\): release it first"):
        crown("2", "1")
    assert [entry.event for entry in ledger.history()] == ["promoted", "moved", "held"]
