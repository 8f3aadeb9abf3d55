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
