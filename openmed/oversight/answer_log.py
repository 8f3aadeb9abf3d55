"""The log of answers: what a registered version said of a film, and what the reader of the film decided.

An answer is kept before it is given. One that cannot be kept is not given.
"""

import os
import pwd
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openmed.errors import BadInput
from openmed.oversight.journal import Journal

if TYPE_CHECKING:
    from openmed.inference.answers import FilmAnswer

ANSWERED, DECIDED = "answered", "decided"
"""The events of the lines of an answer and of a reader's decision."""

REFER = "refer"
"""The decision to leave a film to somebody else."""

Way = Literal["predict", "score", "serving"]


def answer_journal(home: Path) -> Journal:
    """Returns the journal of a state folder."""
    return Journal(Path(home) / "answers")


def login() -> str:
    """Returns the account of the operating system that runs this process, whatever the environment says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # an account without a name, as in some containers
        return f"uid {os.geteuid()}"


@dataclass(frozen=True)
class AnswerLog:
    """Where the answers of one model are kept.

    Attributes:
        journal: What they are written to.
        model: What answers, such as models:/openmed-cxr/7; never an alias.
        way: How it was asked.
        login: Who asked, None where that is not known.
    """

    journal: Journal
    model: str
    way: Way
    login: str | None

    def keep(self, films: Sequence[str], answers: "Sequence[FilmAnswer]") -> None:
        """Writes answers to films (the SHA-256 of each file); they may be given once this returns.

        Raises:
            ResourceError: They cannot be written.
        """
        about = {"event": ANSWERED, "model": self.model, "way": self.way, "login": self.login}
        lines = [
            about | {"film": film} | {name: value for name, value in vars(each).items() if name in _KEPT}
            for film, each in zip(films, answers, strict=True)
        ]
        if lines:
            self.journal.append(lines)


_KEPT = ("label", "probabilities", "thresholds", "refer", "reason")


@dataclass(frozen=True)
class Decision:
    """What a reader decided on a film that a model had answered.

    Attributes:
        film: SHA-256 of its file.
        model: What had answered.
        label: The class that it called the film.
        refer: Whether it referred the film, None for a model that refers none.
        decision: The class that the reader calls the film, or `REFER`.
        by: The reader, as typed.
        login: The account that wrote it down.
    """

    film: str
    model: str
    label: str
    refer: bool | None
    decision: str
    by: str
    login: str

    @property
    def overrules(self) -> bool | None:
        """Whether it is another one than the model's; None where the model left the film to the reader."""
        return None if self.refer else self.decision != self.label


def decide(journal: Journal, film: str, decision: str, by: str, others: Sequence[Journal] = ()) -> Decision:
    """Keeps a reader's decision on a film (SHA-256); it is about the latest answer to the film.

    That is looked for in the `others` too, which are not written to.

    Raises:
        BadInput: The film was not answered, or the model that answered knows no such class.
        ResourceError: The journal cannot be read or written.
    """
    found = [each.latest(f'"event":"{ANSWERED}"', f'"film":"{film}"') for each in (journal, *others)]
    answer = max(filter(None, found), key=lambda entry: entry["at"], default=None)
    if answer is None:
        raise BadInput(
            f"no answer to a film with the SHA-256 {film[:16]} is in the log: give the file that was "
            "answered, as it was then"
        )
    names = {name.casefold(): name for name in (*answer["probabilities"], REFER)}
    if decision.casefold() not in names:
        raise BadInput(f"a decision is one of {', '.join(names.values())}, not {decision}")
    given = {name: answer[name] for name in ("film", "model", "label", "refer")}
    decided = Decision(**given, decision=names[decision.casefold()], by=by, login=login())
    journal.append([{"event": DECIDED, **asdict(decided)}])
    return decided
