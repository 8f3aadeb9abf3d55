"""Draws the films to label next, and remembers with what probability each was drawn.

An ask is a Parquet file beside the answers of the version: every film it could have drawn, by content, with
the probability and whether it is in the sample. Nothing in it names a file or a patient.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import BadInput
from openmed.files import atomic_path, sha256_bytes
from pipeline import ledger
from pipeline.monitoring.judging.subject import Subject
from pipeline.monitoring.log import WAIT_S, ScoreLog, labels, read_asks
from pipeline.monitoring.sharing import sharing
from pipeline.monitoring.windows import Eligible, latest, released
from pipeline.settings.project import locked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Ask:
    """Films of a version drawn for labelling: how many, of how many (`frame`), and the list to fill in.

    The columns of the list are sha256 and label, and film where a source was given.
    """

    version: str
    films: int
    frame: int
    csv: str


@sharing(needed=False)
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
    import pandas as pd

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
        listed = pd.DataFrame({"sha256": new["sha256"], "label": ""})
        if source is not None:
            listed["film"] = listed["sha256"].map(_paths(source, set(new["sha256"])))
        number = len(list((log.folder / "asks").glob("*.parquet"))) + 1
        with atomic_path(log.folder / "asks" / f"{number:08d}.parquet") as temporary:
            drawn.assign(ask=number).to_parquet(temporary, index=False)
    return Ask(version, len(new), len(frame), listed.to_csv(index=False, lineterminator="\n"))


def draw_films(subject: Subject, frame: "pd.DataFrame", known: set[str], films: int) -> "pd.DataFrame":
    """Draws films of a frame (sha256, score) that are not `known`.

    Returns:
        sha256, probability and sample (whether it was drawn) of every film of the frame.

    Raises:
        BadInput: Fewer films are left.
    """
    import numpy as np
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
    # A permanent random number of each film, in [0, 1).
    digests = (sha256_bytes(f"ask {film}".encode()) for film in frame["sha256"])
    turns = np.array([int(digest[:13], 16) / 16**13 for digest in digests])
    sample, probability = draw(strata(scores, sizes, films), turns, excluded, films)
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


def _paths(source: Path, wanted: set[str]) -> dict[str, str]:
    from openmed.concurrency import ordered_map
    from openmed.intake.sources import list_films

    paths = dict(ordered_map(lambda film: (sha256_bytes(film.reader()), film.name), list_films(source)))
    if missing := wanted - paths.keys():
        raise BadInput(
            f"{source} lacks {len(missing)} of the films that were drawn: give the folder they are in"
        )
    return paths
