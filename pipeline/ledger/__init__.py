"""The record of what was registered and decided, and the decisions themselves.

The one place that knows who may decide what, what each decision demands, and how it is written down.
"""

from pipeline.ledger.approval import GATE, MONITORING, Approval, Basis, Caller, refuse_starter, signed
from pipeline.ledger.decisions import (
    adopt,
    champion,
    first_champion,
    history,
    hold,
    on_hold,
    promote,
    register,
    reject,
    release,
    repair,
    roll_back,
)
from pipeline.ledger.entry import ADOPTED, PROMOTED, REGISTERED, REJECTED, RELEASED, RESTORED, Entry
from pipeline.ledger.reviews import keep_review
from pipeline.ledger.story import story
