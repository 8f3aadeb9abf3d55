"""The record of what was registered and decided, and the decisions themselves.

The one place that knows who may decide what, what each decision demands, and how it is written down.
"""

from pipeline.ledger.approval import GATE, MONITORING, Approval, Basis, refuse_starter, signed
from pipeline.ledger.champion import (
    champion,
    check_verdict,
    first_champion,
    history,
    hold_of,
    noted_answers,
    on_hold,
    recorded_champion,
    registration_of,
    version_of,
)
from pipeline.ledger.decisions import (
    adopt,
    hold,
    note_answers,
    promote,
    register,
    reject,
    release,
    repair,
    roll_back,
    show,
    sign,
)
from pipeline.ledger.entry import ADOPTED, PROMOTED, REGISTERED, REJECTED, RELEASED, RESTORED, Entry
from pipeline.ledger.signatures import NO_KEY, Caller, keys_in_force
from pipeline.ledger.story import story
