"""Scores new films with the champion: each film once for a version, a part of the films at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import sha256_bytes
from openmed.oversight.answer_log import AnswerLog, answer_journal, login
from pipeline import ledger, registry
from pipeline.monitoring.log import SCORED, UNUSABLE, ScoreLog, chunks
from pipeline.monitoring.sharing import sharing
from pipeline.settings.project import locked

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from openmed.archives import FilmState
    from openmed.cache.film_store import FilmStore
    from openmed.inference.ensemble import Ensemble
    from openmed.intake.sources import Film
    from openmed.privacy.cleaning import Pseudonyms

# What a film is compared by with those that the champion was trained on.
_MEASURED = ("width", "height", "bits", "mean", "std", "embedding", "reason")
_UNREADABLE = "unreadable"
_PART_FILMS, _BATCH_FILMS = 1024, 32


@dataclass(frozen=True)
class Scoring:
    """What came of the `films` of a source, in numbers: `known` are those that were scored before.

    Of the `scored` ones some are `flagged` (called a finding) or `referred` to a radiologist; `unusable` are
    films that cannot be answered, `unreadable` files of which nothing is known. `log` is the answers' folder.
    """

    version: str
    films: int
    scored: int
    flagged: int
    referred: int
    unusable: int
    unreadable: int
    known: int
    log: str


@sharing()
def score_films(home: Path, source: Path) -> Scoring:
    """Scores the films of a folder or zip that the champion has not scored yet.

    Every part of the films is on the disk before the next is begun, so that a run that was killed goes on
    where it was. A film that cannot be used is logged with the reason; a file that cannot be read at all is
    tried again by the next run. A file that was scored and not written to since is not read again.

    Raises:
        BadInput: There is no champion, it is on hold, or the source, a folder or zip, holds no film.
        IntegrityError: The champion is not what was registered.
        ResourceError: The log of answers cannot be written.
    """
    from openmed.cache.film_store import FilmStore
    from openmed.inference.ensemble import Ensemble
    from openmed.intake.sources import list_films
    from pipeline.tools.device import pick_device
    from pipeline.tools.terminal import progress
    from pipeline.versioning.site import pseudonyms

    # Not folder by folder: what a run that was killed leaves in the log is then a sample of what had come.
    films = sorted(list_films(source), key=lambda film: sha256_bytes(film.name.encode()))
    with locked("scores"):
        version = _champion()
        address = f"models:/{registry.MODEL_NAME}/{version}"
        journal = AnswerLog(answer_journal(home), address, "score", login())
        champion = _Champion(Ensemble([registry.load_predictor(address, pick_device("auto"))]), journal)
        model, log, secret = registry.model_digest(version), ScoreLog(home, version), pseudonyms(home)
        known = log.known()
        counts = dict.fromkeys((SCORED, "flagged", "referred", UNUSABLE, _UNREADABLE, "known"), 0)
        with FilmStore(Path(home) / "films") as store, progress(len(films), "score") as tick:
            for part in chunks(films, _PART_FILMS):
                rows, unread = [], _unread(part, store, known)
                for _ in range(len(part) - len(unread)):
                    tick()
                for batch in chunks(unread, _BATCH_FILMS):
                    rows += _answers(batch, champion, secret, store, known)
                    for _ in batch:
                        tick()
                counts["known"] += len(part) - len(rows)
                if readable := [row for row in rows if row["status"] != _UNREADABLE]:
                    log.append(_table(readable, version, model))
                for row in rows:
                    counts[row["status"]] += 1
                    counts["flagged"] += row["label"] in champion.ensemble.spec.findings
                    counts["referred"] += bool(row["refer"])
    return Scoring(version, len(films), log=str(log.folder), **counts)


@dataclass(frozen=True)
class _Champion:
    """What answers, and where that is logged."""

    ensemble: "Ensemble"
    log: AnswerLog

    def answer(self, hashes: Sequence[str], squares: "np.ndarray") -> list[dict[str, Any]]:
        """Answers films, uint8 (N, S, S), of files with these SHA-256: columns of the log of scored films."""
        from openmed.inference.answers import answer, film_answers

        answers = film_answers(
            self.ensemble, answer(self.ensemble, {self.ensemble.spec.image_size_px: squares})
        )
        self.log.keep(hashes, answers)
        return [
            {
                "score": each.probability,
                "label": each.label,
                "threshold": each.threshold,
                "refer": each.refer,
                "reason": each.reason or "",
                **{f"probability_{name}": value for name, value in each.probabilities.items()},
            }
            for each in answers
        ]


def _champion() -> str:
    version = ledger.champion()
    if version is None:
        raise BadInput("there is no champion to score films with: promote a version first")
    ledger.check_verdict(version)
    if (entry := ledger.on_hold().get(version)) is not None:
        reason = entry.reason.rstrip(".")
        raise BadInput(
            f"version {version}, the champion, is on hold since {entry.at} ({reason}): roll back, promote "
            "another version, or release it with `openmed registry release`"
        )
    return version


def _unread(films: "Sequence[Film]", store: "FilmStore", known: set[str]) -> "list[Film]":
    """Those whose file is not surely one that is known."""
    paths = [str(film.path) for film in films if film.path is not None]
    unchanged = {path for path, digest in zip(paths, store.hashes_of(paths), strict=True) if digest in known}
    return [film for film in films if str(film.path) not in unchanged]


def _answers(
    films: "Sequence[Film]", champion: _Champion, secret: "Pseudonyms", store: "FilmStore", known: set[str]
) -> list[dict[str, Any]]:
    """What the model says of those films that are not known yet; they are known from then on."""
    import numpy as np
    import pyarrow as pa

    from openmed.concurrency import ordered_map
    from openmed.dataset.manifest import judge_facts
    from openmed.measurement.measure import FACTS

    spec, lost, rows, squares, hashed = champion.ensemble.spec, [], [], [], []
    for state, row, square in ordered_map(lambda film: _read(film, spec.image_size_px, secret), films):
        if state is not None:
            hashed.append((state, row["sha256"]))
        if row["status"] == _UNREADABLE:
            lost.append(row)
        elif row["sha256"] not in known:
            known.add(row["sha256"])
            rows.append(row)
            squares.append(square)
    store.remember_hashes(hashed)
    if rows:
        facts = pa.Table.from_pylist(rows, FACTS)
        reasons = judge_facts(facts, min_side_px=spec.min_side_px)["reason"]
        for row, reason in zip(rows, reasons, strict=True):
            row |= {"reason": reason, "status": UNUSABLE if reason else SCORED}
    usable = [(row, square) for row, square in zip(rows, squares, strict=True) if row["status"] == SCORED]
    if usable:
        hashes, seen = [row["sha256"] for row, _ in usable], np.stack([square for _, square in usable])
        answers = champion.answer(hashes, seen)
        for (row, _), answer in zip(usable, answers, strict=True):
            row |= answer
    return rows + lost


def _read(
    film: "Film", size_px: int, secret: "Pseudonyms"
) -> "tuple[FilmState | None, dict[str, Any], np.ndarray | None]":
    """State of its file before it was read, what is known without a model, and the film's square.

    No state of a film in a zip or of one that cannot be read; no square of one that cannot be decoded.
    """
    from openmed.archives import state_of
    from openmed.dataset.profile import OPTIONAL_COLUMNS, age_band
    from openmed.films.images import decode_with_depth, resize_film
    from openmed.intake.identity import patient_of_one
    from openmed.measurement.measure import measurements
    from openmed.privacy.cleaning import about_film, dicom_patient

    row = dict.fromkeys((*_MEASURED, *OPTIONAL_COLUMNS, "score", "label", "threshold", "refer", "status"))
    try:
        state, content = state_of(str(film.path)) if film.path else None, film.reader()
    except (BadInput, OSError):
        return None, row | {"status": _UNREADABLE}, None
    about, sha256 = about_film(content), sha256_bytes(content)
    patient = secret.patient(patient_of_one(film.name, dicom_patient(content), sha256))
    row |= {"sha256": sha256, "patient": patient, "reason": ""}
    row |= {name: about.get(name) for name in OPTIONAL_COLUMNS}
    if years := about.get("age_years"):
        row["age_band"] = age_band(int(years))
    try:
        decoded, bits = decode_with_depth(content, "the film")
    except BadInput as error:
        return state, row | {"reason": str(error)}, None
    measured = measurements(decoded, bits)
    return state, row | {name: measured[name] for name in _MEASURED}, resize_film(decoded, size_px)


def _table(rows: list[dict[str, Any]], version: str, model_sha256: str) -> "pd.DataFrame":
    import pandas as pd

    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    table = pd.DataFrame(rows).assign(scored_at=now, version=version, model_sha256=model_sha256)
    return table.astype({"refer": "boolean", "score": float, "threshold": float})
