"""One entry of the record of decisions, and the words for what was done."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from openmed.files import sha256_bytes

REGISTERED, SHOWN, REJECTED, ADOPTED = "registered", "shown", "rejected", "adopted"
PROMOTED, RESTORED, MOVED, REPAIRED = "promoted", "restored", "moved", "repaired"
HELD, RELEASED, SIGNED, LOGGED = "held", "released", "signed", "logged"
MOVES = (PROMOTED, RESTORED)
"""What makes a version the champion."""


@dataclass(frozen=True)
class Entry:
    """One thing that was done.

    Attributes:
        number: Place in the chain, from 1.
        at: When, ISO 8601 in UTC.
        event: What was done.
        version: The version it is about.
        content: What it says; JSON.
        previous: Hash of the entry before it.
    """

    number: int
    at: str
    event: str
    version: str
    content: dict[str, Any]
    previous: str

    @property
    def by(self) -> str:
        """Who decided; of a promotion, the people with their roles."""
        return self.content["by"]

    @property
    def reason(self) -> str:
        """Why; of everything that a person decides but a promotion, which has a comment."""
        return self.content["reason"]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON content."""
        return asdict(self)

    def to_text(self) -> str:
        """Returns the one text that stands for this entry."""
        return json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 of the text, 64 hex digits."""
        return sha256_bytes(self.to_text().encode())
