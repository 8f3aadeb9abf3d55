"""Draws the films to label next, and remembers with what probability each was drawn.

An ask is a Parquet file beside the answers of the version: every film it could have drawn, by content, with
the probability and whether it is in the sample. Nothing in it names a file or a patient.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import BadInput
from openmed.files import atomic_path, sha256_bytes
from pipeline import ledger
from pipeline.monitoring.judging.subject import Subject
from pipeline.monitoring.log import WAIT_S, ScoreLog, labels, read_asks
from pipeline.monitoring.windows import Eligible, latest, released
from pipeline.settings.project import locked

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLUMNS = ("sha256", "label")


@dataclass(frozen=True)
class Ask:
    """Films of a version drawn for labelling: how many, of how many (`frame`), and the list to fill in.

    The columns of the list are sha256 and label, and film where a source was given.
    """

    version: str
    films: int
    frame: int
    csv: str


def ask(home: Path, films: int, source: Path | None = None) -> Ask:
    """Draws films of the champion's latest ones for labelling.

    They are drawn by chance from strata of their scores, so many of each that sensitivity and specificity
    become as sure as possible (`openmed.monitoring.label_sampling`). Films that have a label or were asked
    for are not asked for again. The list is in the order of the hashes, which tells nothing of the scores.

    Their paths are in the list where a `source`, folder or zip, is given.

    Raises:
        BadInput: There is no champion, or fewer films are left.
        ResourceError: Films are being scored, for a minute or more.
    """
    from pipeline.promotion.gates.evidence import Evidence

    version = ledger.champion()
    if version is None:
        raise BadInput("there is no champion: promote a version first")
    evidence = Evidence.of(version)
    with locked("scores", wait_s=WAIT_S):
        log, asks = ScoreLog(home, version), read_asks(home, version)
        eligible = Eligible(released(version))
        frame = latest(log, evidence.plan.protocol.monitoring.films, eligible, ("sha256", "patient", "score"))
        known = labels(home).keys() | set(asks.loc[asks["sample"], "sha256"])
        drawn = draw_films(Subject.of(evidence), frame, known, films)
        new = drawn[drawn["sample"] & ~drawn["sha256"].isin(known)].sort_values("sha256")
        paths = None if source is None else _paths(source, set(new["sha256"]))
        _keep(log.folder / "asks", drawn)
    return Ask(version, len(new), len(frame), _listed(new["sha256"], paths))


def draw_films(subject: Subject, frame: "pd.DataFrame", known: set[str], films: int) -> "pd.DataFrame":
    """Draws films of a frame (sha256, score) that are not `known`.

    Returns:
        sha256, probability and sample (whether it was drawn) of every film of the frame.

    Raises:
        BadInput: Fewer films are left.
    """
    import pandas as pd

    from openmed.monitoring.label_free import posteriors
    from openmed.monitoring.label_sampling import draw, importance, strata

    scores = frame["score"].to_numpy(float)
    excluded = frame["sha256"].isin(known).to_numpy(bool)
    if films > (left := int((~excluded).sum())):
        raise BadInput(
            f"only {left} of the latest films have neither a label nor were asked for: ask for those"
        )
    share, posterior = (
        (float(scores.mean()), scores) if subject.known is None else posteriors(scores, subject.known)
    )
    sizes = importance(posterior, share, subject.threshold, scores)
    sample, probability = draw(strata(scores, sizes, films), _turns(frame["sha256"]), excluded, films)
    return pd.DataFrame({"sha256": frame["sha256"], "probability": probability, "sample": sample})


def drawn_with(asks: "pd.DataFrame", known: set[str], complete: float = 0.9) -> "pd.Series":
    """Returns film (SHA-256) -> the probability it was drawn with, of films that were drawn and labelled.

    The films that nobody could label may be the hard ones, so an ask (of `asks`, see `read_asks`) counts
    once a `complete` share of its films is `known` by label.
    """
    asks = asks.reset_index(drop=True)
    labelled = asks["sha256"].isin(known)
    answered = labelled[asks["sample"]].groupby(asks["ask"]).mean()
    counting = asks[asks["ask"].isin(answered.index[answered >= complete])]
    # A film's turn never changes, so it is in one of several samples with the greatest of its probabilities.
    probability = counting.groupby("sha256")["probability"].max()
    drawn = set(counting.loc[counting["sample"], "sha256"]) & set(known)
    return probability[probability.index.isin(drawn)]


def _turns(hashes: "pd.Series") -> "np.ndarray":
    """A permanent random number of each film, in [0, 1)."""
    import numpy as np

    return np.array([int(sha256_bytes(f"ask {each}".encode())[:13], 16) / 16**13 for each in hashes])


def _keep(folder: Path, drawn: "pd.DataFrame") -> None:
    number = len(list(folder.glob("*.parquet"))) + 1
    with atomic_path(folder / f"{number:08d}.parquet") as temporary:
        drawn.assign(ask=number).to_parquet(temporary, index=False)


def _paths(source: Path, wanted: set[str]) -> dict[str, str]:
    from openmed.concurrency import ordered_map
    from openmed.intake.sources import list_films

    films = list_films(source)
    hashed = dict(zip(ordered_map(lambda film: sha256_bytes(film.reader()), films), films, strict=True))
    if missing := wanted - hashed.keys():
        raise BadInput(
            f"{source} lacks {len(missing)} of the films that were drawn: give the folder they are in"
        )
    return {digest: film.name for digest, film in hashed.items() if digest in wanted}


def _listed(hashes: "pd.Series", paths: dict[str, str] | None) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *(["film"] if paths else [])])
    writer.writerows([digest, "", *([paths[digest]] if paths else [])] for digest in hashes)
    return stream.getvalue()


def refuse_existing(path: Path) -> None:
    """Raises BadInput where a list is there already: it may hold labels."""
    if Path(path).exists():
        raise BadInput(f"{path} is there already and may hold labels: give another name")
