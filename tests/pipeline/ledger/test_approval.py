import pytest

from openmed.errors import BadInput
from pipeline import ledger
from pipeline.ledger.entry import ADOPTED, HELD, REJECTED, RELEASED, REPAIRED, RESTORED


@pytest.mark.parametrize(
    "event",
    [REJECTED, ADOPTED, HELD, RELEASED, RESTORED, REPAIRED],
)
def test_every_decision_needs_a_person_and_a_reason_on_one_line(event):
    signature = ledger.signed(event, by=" Dr\tAdams", reason="edges\nare wrong ")
    assert signature == {"by": "Dr Adams", "reason": "edges are wrong"}
    for by in (None, "", " \n"):
        with pytest.raises(BadInput, match="must be named: a decision without a person"):
            ledger.signed(event, by=by, reason="edges are wrong")
    with pytest.raises(BadInput, match="needs a reason: say"):
        ledger.signed(event, by="Dr Adams", reason=" ")
    for by, reason in (("x\x1b[2K", "why"), ("Dr Adams", "x" * 2001)):
        with pytest.raises(BadInput, match=r"cannot be shown|longer than 2000"):
            ledger.signed(event, by=by, reason=reason)


def test_what_gates_and_monitoring_say_is_recorded_whole_however_many_findings_they_name():
    grounds = "; ".join(f"sensitivity of finding {number} is below its floor" for number in range(100))
    for by in (ledger.GATE, ledger.MONITORING):
        assert ledger.signed(REJECTED, by=by, reason=grounds)["reason"] == grounds
    assert len(grounds) > 2000
    assert ledger.signed(HELD, by=ledger.GATE, reason="a\x1b[2K")["reason"] == "a\\x1b[2K"


BASIS = ledger.Basis("7", "PASS", None, "0" * 64, {"clinical": "Reads.", "technical": "Runs."}, "Eve Stone")


@pytest.mark.parametrize(
    "twin", ["DR  ADAMS", "dr.adams", "Dr \u0410dams", "Dr A\u034fdams", "Dr \uff21dams", "Dr Adams\u3164"]
)
def test_one_person_in_two_spellings_cannot_answer_for_two_roles(twin):
    people = ledger.Approval.of({"clinical": "Dr Adams", "technical": twin}, "").people
    with pytest.raises(
        BadInput, match=r"needs another person in each role: clinical, technical; .* look like"
    ):
        BASIS.check_people(people)
    BASIS.check_people({"clinical": "Dr Adams", "technical": "Dr Baker"})


@pytest.mark.parametrize("twin", ["Eve Stone", "eve stone", "\u0415ve Stone", "EveStone", "E\u034fve Stone"])
def test_who_started_the_retraining_cannot_approve_it_in_another_spelling(twin):
    with pytest.raises(BadInput, match=r"Eve Stone.* started the retraining of version 7"):
        BASIS.check_people({"clinical": twin})


@pytest.mark.parametrize("name", ["...", "\u3164", "\u2800", "\u2014"])
def test_a_name_without_a_letter_is_nobodys(name):
    with pytest.raises(BadInput, match="holds no letter or digit"):
        ledger.Approval.of({"clinical": name}, "")
    with pytest.raises(BadInput, match="holds no letter or digit"):
        ledger.signed(REJECTED, by=name, reason="why")
