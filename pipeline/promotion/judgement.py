"""What the gates say of a version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openmed.gates.gate import Gate


@dataclass(frozen=True)
class Judgement:
    """What the gates say of a version.

    Attributes:
        model_sha256: Of the list of all files of the stored model.
        champion: The version that is the champion, None if none is.
        verdict: See `joint_verdict`.
        grounds: Why it does not pass, empty if it does.
        gates: What it must show by itself.
        comparison: Gates against the champion and the version approved first.
        note: A sentence about the comparison.
        films_compared: Test films of the comparison.
        films_left_out: Test films that shaped the champion.
        limits: Sentences on what the test could not have shown.
        reviewers: Role -> what it answers for, and how it signs.
        started_by: A person or None.
        started_login: The system's login that this name was given under, None where it is not known.
        plan_sha256: Hash of its change plan.
        keys: Role -> keys that may sign for it; of the roles that sign.
        accounts: Role, or `hold` -> accounts of Airflow that may answer; where it is missing anyone may.
        films_markdown: Counts the films to look at, with pictures of some where a server has them.
        report: Path or address; None if there is none.
        review: Where the page for reviewers can be opened; None where none was made.
        table_markdown: The verdict with all its gates.
    """

    version: str
    architecture: str
    model_sha256: str
    champion: str | None
    verdict: str
    grounds: str
    gates: list[Gate]
    comparison: list[Gate]
    note: str
    films_compared: int
    films_left_out: int
    limits: list[str]
    reviewers: Mapping[str, str]
    started_by: str | None
    started_login: str | None = None
    plan_sha256: str = ""
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accounts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    films_markdown: str = ""
    report: str | None = None
    review: str | None = None
    table_markdown: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        gates = {name: [gate.to_json() for gate in getattr(self, name)] for name in ("gates", "comparison")}
        return {**vars(self), **gates}
