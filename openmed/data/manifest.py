"""The manifest: one row a film, with what was measured on it and whether it is usable."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from openmed.data.embedding import embed_film
from openmed.data.images import decode_with_depth
from openmed.data.quality import REASONS, quality_columns
from openmed.data.store import FilmStore
from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_bytes

FILMS_FILE = "films.csv"
FILMS_COLUMNS = ("path", "label", "patient", "split")
"""What every list of films has."""
ABOUT_COLUMNS = ("sha256", "sex", "age_years", "view", "manufacturer", "year")
"""What a list may have besides: hash of the file, and what is known of patient and examination."""
DECLARED_SPLITS = ("train", "validation", "test")
HASH_SIDE = 16
"""Side of the perceptual hash: 16 x 16 bits, written as 64 hex digits."""
_CHUNK_FILMS = 1024


def read_films(data: Path, class_names: Iterable[str]) -> pd.DataFrame:
    """Reads the list of films of a data folder.

    Args:
        data: The data folder, which holds films.csv.
        class_names: The known classes; the index becomes the label.

    Returns:
        Columns path, label (int), patient, declared_split (empty when none is declared), and those of
        `ABOUT_COLUMNS` that the list has: age_years and year as Int64, the others as text, empty
        when unknown.

    Raises:
        BadInput: The list is missing, malformed, empty, or names an unknown class, an unknown
            split, a path outside the folder or the same path twice, or has a number that is none.
    """
    source = Path(data) / FILMS_FILE
    try:
        films = pd.read_csv(source, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise BadInput(f"{source} does not exist: get the sample with `dvc pull` or import films") from None
    except (ValueError, OSError) as error:
        raise BadInput(f"{source} cannot be read: {error}") from None
    if tuple(films.columns[: len(FILMS_COLUMNS)]) != FILMS_COLUMNS:
        raise BadInput(f"{source} must have the columns {', '.join(FILMS_COLUMNS)}")
    if not set(films.columns[len(FILMS_COLUMNS) :]) <= set(ABOUT_COLUMNS):
        raise BadInput(f"{source} may have no further columns than {', '.join(ABOUT_COLUMNS)}")
    if films.empty:
        raise BadInput(f"{source} lists no films")
    labels = {name: index for index, name in enumerate(class_names)}
    _refuse(films, ~films["label"].isin(labels), source, f"a label other than {', '.join(labels)}")
    _refuse(films, ~films["split"].isin(["", *DECLARED_SPLITS]), source, "an unknown split")
    _refuse(films, films["patient"] == "", source, "no patient")
    _refuse(films, films["path"].duplicated(), source, "a path that was listed before")
    _refuse(films, ~films["path"].map(is_inside), source, "a path outside the data folder")
    for name in {"age_years", "year"} & set(films.columns):
        _refuse(films, ~films[name].str.fullmatch(r"\d{0,4}"), source, f"a value in {name} that is no number")
        films[name] = pd.to_numeric(films[name]).astype("Int64")
    films["label"] = films["label"].map(labels).astype("int64")
    return films.rename(columns={"split": "declared_split"})


def is_inside(path: str) -> bool:
    """Tells whether a POSIX path stays below the folder it is relative to."""
    parts = path.split("/")
    return not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in parts[0]


def film_bytes(data: Path, path: str, sha256: str) -> bytes:
    """Reads a film's file and holds it against its hash.

    Args:
        data: The data folder.
        path: The film's path below it, as in the manifest.
        sha256: The hash that the manifest recorded.

    Raises:
        IntegrityError: The file is gone or its content is another.
    """
    try:
        content = (Path(data) / path).read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{Path(data) / path} cannot be read any more: {error.strerror or error}"
        ) from None
    if sha256_bytes(content) != sha256:
        raise IntegrityError(
            f"{Path(data) / path} was changed after it was validated: get it back or run the pipeline again"
        )
    return content


def measure_films(
    data: Path,
    films: pd.DataFrame,
    store: FilmStore,
    *,
    min_side_px: int = 32,
    tick: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Measures every film; those that the store knows and nobody touched are not read again.

    Memory holds the rows and the few films that are being decoded, never all films.

    Args:
        data: The data folder.
        films: What `read_films` returned.
        store: Remembers measurements.
        min_side_px: Smaller films are quarantined.
        tick: Called once a film, for progress.

    Returns:
        `films` plus id, sha256, width, height, bits, mean and std (grey levels 0..255),
        sharpness (variance of the Laplacian), perceptual_hash, quality_<name> (see
        openmed.data.quality), embedding (float32 (64,)), status (accepted or quarantined) and reason.
        Quarantined films have missing measurements.

    Raises:
        IntegrityError: A file has another content than the list of films recorded.
    """
    rows = []
    for start in range(0, len(films), _CHUNK_FILMS):
        part = films.iloc[start : start + _CHUNK_FILMS]
        for row in _measure_part(Path(data), part, store):
            rows.append(_judged(row, min_side_px))
            tick()
    measured = pd.DataFrame(rows, index=films.index)
    _hold_against_list(Path(data), films, measured["sha256"])
    listed = films.drop(columns="sha256", errors="ignore")
    manifest = pd.concat([_ids(measured["sha256"]), listed, measured], axis=1)
    return manifest.astype({"width": "Int64", "height": "Int64", "bits": "Int64"})


def _measure_part(data: Path, films: pd.DataFrame, store: FilmStore) -> list[dict]:
    """Measures some films; reads those whose hash or measurements are not known."""
    paths = [f"{data}/{path}" for path in films["path"]]
    hashes = store.hashes_of(paths)
    known = store.measurements([digest for digest in hashes if digest])
    rows = [known.get(digest) if digest else None for digest in hashes]
    new = [position for position, row in enumerate(rows) if row is None]
    read = []
    for position, (state, row) in zip(new, ordered_map(_measure, [paths[i] for i in new]), strict=True):
        rows[position] = row
        if state is not None:
            read.append((state, row))
    store.remember_hashes([(state, row["sha256"]) for state, row in read])
    store.remember_measurements({row["sha256"]: row for _, row in read})
    return rows


def _hold_against_list(data: Path, films: pd.DataFrame, found: pd.Series) -> None:
    if "sha256" not in films:
        return
    wrong = (films["sha256"] != "") & (found != "") & (films["sha256"] != found)
    if wrong.any():
        first = data / films.loc[wrong, "path"].iloc[0]
        raise IntegrityError(
            f"{int(wrong.sum())} film(s) were changed since they were imported, the first is {first}: "
            "get the data back with `dvc checkout --force data.dvc`"
        )


def ordered_map(function: Callable, items: Iterable) -> Iterator:
    """Maps on all cores, in order, with a bounded number of results in flight."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def perceptual_hash(film: np.ndarray) -> str:
    """Difference hash of 16 x 16 bits: is each cell of a shrunken film brighter than its neighbour?

    Args:
        film: uint8 (H, W).

    Returns:
        64 hex digits.
    """
    small = cv2.resize(film, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()


def _measure(path: str) -> tuple[os.stat_result | None, dict]:
    """Returns a file's state before it was read, None when it could not be, and what was measured."""
    row = {"sha256": "", "width": None, "height": None, "bits": None, "mean": np.nan, "std": np.nan}
    row |= {"sharpness": np.nan, "perceptual_hash": "", "embedding": None, "reason": ""}
    row |= {f"quality_{name}": np.nan for name in REASONS}
    try:
        state, data = Path(path).stat(), Path(path).read_bytes()
    except OSError as error:
        return None, row | {"reason": f"cannot be read: {error.strerror or error}"}
    row["sha256"] = sha256_bytes(data)
    try:
        film, bits = decode_with_depth(data, "the film")
    except BadInput as error:
        return state, row | {"reason": str(error)}
    height, width = film.shape
    mean, std = (float(value.item()) for value in cv2.meanStdDev(film))
    row |= {"width": width, "height": height, "bits": bits, "mean": mean, "std": std}
    row |= {"sharpness": float(cv2.Laplacian(film, cv2.CV_32F).var())}
    row |= {"perceptual_hash": perceptual_hash(film), **quality_columns(film)}
    return state, row | {"embedding": embed_film(film).tolist()}


def _judged(row: dict, min_side_px: int) -> dict:
    """Adds whether a measured film is usable."""
    reason = row["reason"]
    if not reason and min(row["height"], row["width"]) < min_side_px:
        reason = f"only {row['width']} x {row['height']} pixels"
    elif not reason and row["std"] < 1:
        reason = "the film is blank"
    embedding = None if row["embedding"] is None else np.array(row["embedding"], np.float32)
    status = "quarantined" if reason else "accepted"
    return row | {"embedding": embedding, "status": status, "reason": reason}


def _ids(digests: pd.Series) -> pd.Series:
    """Short ids from the content; exact copies are numbered, unreadable files named by position."""
    short = digests.str[:16].where(digests != "", "unreadable")
    copy = short.groupby(short).cumcount()
    return (short + copy.map(lambda n: "" if n == 0 else f"-{n + 1}")).rename("id")


def _refuse(films: pd.DataFrame, bad: pd.Series, source: Path, what: str) -> None:
    if bad.any():
        # Line 1 is the header. Names are not repeated: they may hold a patient's.
        lines = ", ".join(str(line) for line in (np.flatnonzero(bad)[:5] + 2))
        raise BadInput(f"{source} has {what} in {int(bad.sum())} row(s), the first on line {lines}")
