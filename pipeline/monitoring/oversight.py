"""What readers decide on films that were answered, and how often they overrule the model.

Reads and writes the log of answers of a state folder (`openmed.oversight`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_bytes
from openmed.oversight.answer_log import ANSWERED, DECIDED, Decision, answer_journal, decide
from openmed.oversight.chain import DELETED
from pipeline.settings.plain_text import one_line

if TYPE_CHECKING:
    from openmed.metrics.score_intervals import Interval


def note(home: Path, film: str, decision: str, by: str) -> Decision:
    """Keeps what a reader decided on a film, given as its file or SHA-256, that a version had answered.

    Raises:
        BadInput: There is no such film, it was not answered, the decision is neither a class of the model nor
            `refer`, or nobody is named.
        ResourceError: The log cannot be written.
    """
    if not by.strip():
        raise BadInput("the reader must be named: a decision without a person cannot be kept")
    return decide(answer_journal(home), film_digest(film), decision, one_line(by, "the name of the reader"))


def film_digest(film: str) -> str:
    """Returns the SHA-256 of a film's file, which is given as such or as a path; BadInput for neither."""
    from openmed.films.budgets import read_film_file

    if re.fullmatch("[0-9a-f]{64}", film.casefold()):
        return film.casefold()
    try:
        return sha256_bytes(read_film_file(Path(film)))
    except OSError as error:
        raise BadInput(
            f"{film} is no SHA-256 of 64 hex digits, and as a file cannot be read: {error.strerror or error}"
        ) from None


@dataclass
class ModelUse:
    """What one model answered, and what readers made of it. The last decision on a film counts.

    Attributes:
        model: What answered, such as models:/openmed-cxr/7.
        since: When the first of its answers in the log was given (UTC, ISO 8601).
        until: When the last one was.
        answers: How many there are; a film that was answered twice counts twice.
        referred: How many of them left the film to a radiologist.
        decided: Films that the model decided and a reader too.
        overruled: Those of them on which the reader decided otherwise, `refer` included.
        left: Films that the model referred and a reader decided.
    """

    model: str
    since: str
    until: str = ""
    answers: int = 0
    referred: int = 0
    decided: int = 0
    overruled: int = 0
    left: int = 0

    @property
    def share(self) -> "Interval":
        """The overruled among the decided films, with Wilson's 95 % interval, which knows of no patients."""
        from openmed.metrics.score_intervals import wilson

        return wilson(self.overruled, self.decided)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, and share with its limits (null where nothing was decided)."""
        return asdict(self) | {"share": self.share.to_json()}


@dataclass
class LogState:
    """What the log of answers holds.

    Attributes:
        models: What each model answered, in the order of their first answers.
        decisions: How many lines hold a reader's decision.
        deleted: The days that were deleted when their time was over.
        head: The hash of the last line.
        problem: What is wrong with the log, and nothing else is known then; None where it is whole.
    """

    models: list[ModelUse] = field(default_factory=list)
    decisions: int = 0
    deleted: list[str] = field(default_factory=list)
    head: str = ""
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return vars(self) | {"models": [model.to_json() for model in self.models]}


def read_log(home: Path, head: str | None = None) -> LogState:
    """Reads the whole log and checks it, also that its chain went through `head`, a hash noted before.

    Raises:
        IntegrityError: A line was changed, added or removed, or the chain never was at `head`.
        ResourceError: It cannot be read.
    """
    journal, passed = answer_journal(home), set()

    def watched() -> Iterator[dict[str, Any]]:
        for entry in journal.entries():
            if entry["previous"] == head:
                passed.add(head)
            yield entry

    try:
        state = _summary(watched())
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(
            f"{journal.folder} holds a line that is no answer or decision: something else wrote it; restore "
            "the log from its backup"
        ) from None
    state.head = journal.head()
    if head is not None and head not in passed | {state.head}:
        raise IntegrityError(
            f"the log of answers never ended with {head[:16]}: it was written anew, or the hash is of another"
        )
    return state


def film_story(home: Path, film: str) -> list[dict[str, Any]]:
    """Returns what the log says of a film, given as its file or SHA-256; see `read_log` for errors."""
    digest = film_digest(film)
    return [entry for entry in answer_journal(home).entries() if entry.get("film") == digest]


def look_after(home: Path, keep_days: int | None, head: str | None = None) -> LogState:
    """Reads the log, and deletes the days that are older than the change plan keeps them, None for never.

    A log that is not whole, or does not go through `head`, its last hash of the look before, is left as it is
    and said to be so.
    """
    try:
        state = read_log(home, head)
        if keep_days is not None and answer_journal(home).delete_older(keep_days):
            state = read_log(home)
    except (IntegrityError, ResourceError) as error:
        return LogState(problem=str(error))
    return state


def _summary(entries: Iterable[dict[str, Any]]) -> LogState:
    state, models = LogState(), dict[str, ModelUse]()
    decisions: dict[tuple[str, str], Decision] = {}
    for entry in entries:
        if entry["event"] == ANSWERED:
            use = models.setdefault(entry["model"], ModelUse(entry["model"], entry["at"]))
            use.until = entry["at"]
            use.answers += 1
            use.referred += bool(entry["refer"])
        elif entry["event"] == DECIDED:
            state.decisions += 1
            decision = Decision(**{each.name: entry[each.name] for each in fields(Decision)})
            decisions[decision.model, decision.film] = decision
        elif entry["event"] == DELETED:
            state.deleted += entry["days"]
    for (model, _), decision in decisions.items():
        # The day of the answer may have been deleted before that of the decision.
        if (use_of := models.get(model)) is None:
            continue
        use_of.left += decision.overrules is None
        use_of.decided += decision.overrules is not None
        use_of.overruled += bool(decision.overrules)
    state.models = list(models.values())
    return state
