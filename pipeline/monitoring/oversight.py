"""What readers decide on films that were answered, and how often they overrule the model.

Reads and writes the log of answers of a state folder (`openmed.oversight`).
"""

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_bytes
from openmed.oversight.answer_log import ANSWERED, DECIDED, Decision, answer_journal, decide
from openmed.oversight.chain import DELETED
from pipeline import ledger
from pipeline.monitoring.sharing import log_name, pull, push, roots, sharing, writer
from pipeline.settings.plain_text import one_line, plain

if TYPE_CHECKING:
    from openmed.metrics.score_intervals import Interval


@sharing(needed=False)
def note(home: Path, film: str, decision: str, by: str) -> Decision:
    """Keeps what a reader decided on a film, given as its file or SHA-256, that a version had answered.

    Raises:
        BadInput: There is no such film, it was not answered, the decision is neither a class of the model nor
            `refer`, or nobody is named.
        ResourceError: The log cannot be written.
    """
    if not by.strip():
        raise BadInput("the reader must be named: a decision without a person cannot be kept")
    own, *others = map(answer_journal, _logs(home))
    return decide(own, film_digest(film), decision, one_line(by, "the name of the reader"), others)


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
        head: The hash of the last line on this host.
        others: Those on other hosts, as far as they were sent, by what tells the hosts apart.
        breaks: When the record of decisions was told that the log does not go on from what it knew.
        problem: What is wrong with the log, and nothing else but the head may be known then; None where it
            is whole.
        elsewhere: How the copy of another host's log does not go on from what the record knew.
    """

    models: list[ModelUse] = field(default_factory=list)
    decisions: int = 0
    deleted: list[str] = field(default_factory=list)
    head: str = ""
    others: dict[str, str] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    problem: str | None = None
    elsewhere: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        models = [model.to_json() for model in self.models]
        return vars(self) | {"models": models, "problem": self.problem or self.elsewhere}


@sharing()
def read_log(home: Path, head: str | None = None) -> LogState:
    """Reads the whole log, and checks that its chain went through hashes noted before.

    These are `head`, where it is given, and the last one in the record of decisions.

    Raises:
        BadInput: `head` is no hash.
        IntegrityError: A line was changed, added or removed, or the chain never was at a hash.
        ResourceError: It cannot be read.
    """
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head.casefold()):
        raise BadInput(f"`{plain(head[:80])}` is no hash of the log: it has 64 hex digits")
    state, passed = _read(home, head and head.casefold())
    if problem := state.problem or state.elsewhere:
        raise IntegrityError(problem)
    if head is not None and head.casefold() not in passed:
        raise IntegrityError(
            f"the log of answers never ended with {head[:16]}: it was written anew, or the hash is of another"
        )
    return state


@sharing()
def film_story(home: Path, film: str) -> list[dict[str, Any]]:
    """Returns what the log says of a film, given as its file or SHA-256; see `read_log` for errors."""
    digest = film_digest(film)
    entries = _in_turn(answer_journal(root).entries() for root in _logs(home))
    return [entry for entry in entries if entry.get("film") == digest]


def look_after(home: Path, keep_days: int | None) -> LogState:
    """Reads the log, and deletes the days that are older than the change plan keeps them, None for never.

    A log that is not whole, or does not go through its last hash in the record of decisions, is left as it is
    and said to be so.
    """
    try:
        state, _ = _read(home)
        if not state.problem and keep_days is not None and answer_journal(home).delete_older(keep_days):
            state, _ = _read(home)
            # The hash of before may lie in a day that is gone now.
            state.problem = None
    except (IntegrityError, ResourceError) as error:
        return LogState(problem=str(error))
    return state


def note_head(home: Path, version: str, state: LogState) -> None:
    """Has the record of decisions keep the last hash of a log that was just looked after, once a day."""
    if state.models:
        push(home)  # another host that reads the record shall find no less in the log
        goes_on = state.problem is None
        ledger.note_answers(version, log=log_name(home), head=state.head, goes_on=goes_on)


def _logs(home: Path) -> list[Path]:
    """Returns the roots that have a log, that of this host first, whether or not it has one yet."""
    own, *copies = roots(home)
    return [own, *(root for root in copies if (root / "answers").is_dir())]


def _in_turn(logs: Iterable[Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Merges logs by time; of one second answers come before decisions, which are about them."""
    return heapq.merge(*logs, key=lambda entry: (entry["at"], entry["event"] == DECIDED))


def _read(home: Path, *heads: str | None) -> tuple[LogState, set[str]]:
    """What the logs of all hosts hold, and through which of some hashes their chains went."""
    state, passed = _read_once(home, heads)
    if state.elsewhere:
        # Another host may have gone on, and told the record so, after its log was copied.
        pull(home)
        state, passed = _read_once(home, heads)
    return state, passed


def _read_once(home: Path, heads: Iterable[str | None]) -> tuple[LogState, set[str]]:
    chains = [_Chain(root, heads) for root in _logs(home)]
    try:
        # Of one second the order is at least the same on all hosts.
        ordered = sorted(chains, key=lambda chain: chain.writer)
        state = _summary(_in_turn(chain.entries() for chain in ordered))
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(
            f"{answer_journal(home).folder} holds a line that is no answer or decision: something else wrote "
            "it; restore the log from its backup"
        ) from None
    own, *others = chains
    state.head, state.others = own.last, {chain.writer: chain.last for chain in others}
    state.breaks = sorted({at for chain in chains for at in chain.breaks})
    # A host that began anew, under the name of an earlier one, has two logs here.
    passed = {digest for chain in chains for digest in chain.passed}
    state.problem = own.problem(passed)
    state.elsewhere = next(filter(None, (chain.problem(passed) for chain in others)), None)
    return state, passed


class _Chain:
    """The log of one host while it is read, beside what the record of decisions knows of it."""

    def __init__(self, root: Path, heads: Iterable[str | None]) -> None:
        self.writer, self._journal = writer(root), answer_journal(root)
        self._noted = ledger.noted_answers(log_name(root))
        self._wanted = {*heads, *(entry.content["head"] for entry in self._noted[-1:])}
        # Answers go on while it is read: what is the last line by now is among those read.
        self.last = self._journal.head()
        self.passed = {self.last}
        self.breaks = [entry.at for entry in self._noted if not entry.content["goes_on"]]

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yields all entries, and remembers through which of the wanted hashes the chain went."""
        for entry in self._journal.entries():
            if entry["previous"] in self._wanted:
                self.passed.add(entry["previous"])
            yield entry

    def problem(self, passed: set[str]) -> str | None:
        """Returns what is wrong with a log, given what the chains of all that were read went through."""
        if not self._noted or (known := self._noted[-1].content["head"]) in passed:
            return None
        return (
            f"the log of answers does not go on from {known[:16]}, its last hash at {self._noted[-1].at} by "
            f"entry {self._noted[-1].number} of the record of decisions: its end was cut off, or it was "
            "written anew"
        )


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
