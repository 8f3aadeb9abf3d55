"""Windows of the log: its latest films, drawn so that no name of a file or folder plays a part.

Films of one batch have no order, so a window is whole batches from the latest backwards. Of a batch that is
larger than needed whole patients are drawn, by the content of their films: the same films give the same draw,
whatever they are called and however they were ordered.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import ledger
from pipeline.monitoring.log import ScoreLog, read_films

if TYPE_CHECKING:
    import pandas as pd

_NEEDED = ("sha256", "patient", "scored_at")


@dataclass(frozen=True)
class Eligible:
    """Which scored films may be in a window.

    Attributes:
        after: Only those scored later than this time (UTC, ISO 8601); empty: all.
        among: Only those whose SHA-256 is in it; None: all.
    """

    after: str = ""
    among: Container[str] | None = None

    def of(self, part: Path, columns: Sequence[str] | None) -> "pd.DataFrame":
        """Reads the eligible films of one file of a log."""
        films = read_films(part, columns)
        films = films[films["scored_at"] > self.after]
        if self.among is None:
            return films
        return films[np.fromiter((digest in self.among for digest in films["sha256"]), bool, len(films))]


def windows(
    log: ScoreLog, films: int, columns: Sequence[str] | None = None, eligible: Eligible | None = None
) -> Iterator["pd.DataFrame"]:
    """Yields windows of a log, the latest first, with sha256, patient, scored_at and `columns` (None: all).

    A window holds at least so many films, except for the oldest one: all of the latest batches, and whole
    patients of the one with which it is full. What that batch has beyond is in no window. Of one patient at
    most so many films of a batch are taken. In memory are a window, and 16 bytes a film of one batch.

    Raises:
        IntegrityError: A file of the log is damaged.
    """
    import pandas as pd

    chosen = eligible or Eligible()
    wanted = None if columns is None else list(dict.fromkeys([*_NEEDED, *columns]))
    parts: list[pd.DataFrame] = []
    missing = films
    for batch in log.batches():
        drawn = _draw(batch, missing, wanted, chosen)
        for part in parts if len(drawn) else ():  # two hosts at once may have answered one film
            drawn = drawn[~drawn["sha256"].isin(part["sha256"])]
        if not len(drawn):
            continue
        parts.append(drawn)
        missing -= len(drawn)
        if missing <= 0:
            yield pd.concat(parts, ignore_index=True)
            parts, missing = [], films
    if parts:
        yield pd.concat(parts, ignore_index=True)


def latest(log: ScoreLog, films: int, eligible: Eligible, columns: Sequence[str] | None) -> "pd.DataFrame":
    """Returns the latest window with patients by content, without a row where nothing is eligible."""
    import pandas as pd

    return by_content(next(windows(log, films, columns, eligible), pd.DataFrame(columns=[*_NEEDED, "score"])))


def released(version: str) -> str:
    """Returns when a person released a version last: what was released would hold it again. Empty: never."""
    return max((each.at for each in ledger.history(version) if each.event == ledger.RELEASED), default="")


def by_content(films: "pd.DataFrame") -> "pd.DataFrame":
    """Orders films and names patients by content, so that what a seed draws of them hangs on nothing else."""
    films = films.sort_values("sha256", ignore_index=True)
    return films.assign(patient=films.groupby("patient")["sha256"].transform("min"))


def _draw(
    batch: Sequence[Path], films: int, columns: Sequence[str] | None, eligible: Eligible
) -> "pd.DataFrame":
    """Whole patients of a batch in the order of their turns, until there are so many films."""
    import pandas as pd

    turns, drawn = _turns(batch, films, eligible), pd.DataFrame()
    for part in batch:
        table = eligible.of(part, columns)
        table = table.assign(turn=pd.Series(_hashes(table["patient"]), table.index).map(turns))
        table = table[table["turn"].notna()]
        # A patient for whom earlier turns leave no room now has none after further films either.
        if len(table):
            drawn = _first(pd.concat([drawn, table]) if len(drawn) else table, films)
    return drawn.drop(columns="turn") if len(drawn) else drawn


def _turns(batch: Sequence[Path], films: int, eligible: Eligible) -> "pd.Series":
    """Returns patient (hashed) -> turn, of the first patients, at most as many as films are wanted.

    A patient's turn is a hash of the least of the hashes of the films: by chance, and equally so for patients
    with one film and with many.
    """
    import pandas as pd

    patients, contents = [], []
    for part in batch:
        table = eligible.of(part, _NEEDED)
        patients.append(_hashes(table["patient"]))
        contents.append(_hashes(table["sha256"]))
    least = pd.Series(np.concatenate(contents), np.concatenate(patients)).groupby(level=0).min()
    order = np.argsort(pd.util.hash_array(least.to_numpy()))[:films]
    return pd.Series(np.arange(len(order)), least.index[order])


def _first(films: "pd.DataFrame", count: int) -> "pd.DataFrame":
    films = films.sort_values(["turn", "sha256"])
    films = films[films.groupby("turn").cumcount() < count]
    before = films["turn"].value_counts(sort=False).sort_index().cumsum().shift(fill_value=0)
    return films[films["turn"].map(before) < count]


def _hashes(texts: "pd.Series") -> np.ndarray:
    import pandas as pd

    return pd.util.hash_array(texts.to_numpy(object), categorize=False)
