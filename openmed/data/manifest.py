"""The manifest: one row a film, with what was measured on it and whether it is usable."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from openmed.data.images import decode_with_depth
from openmed.data.quality import quality_columns
from openmed.errors import BadInput
from openmed.files import sha256_bytes

FILMS_FILE = "films.csv"
FILMS_COLUMNS = ("path", "label", "patient", "split")
DECLARED_SPLITS = ("train", "validation", "test")
HASH_SIDE = 16
"""Side of the perceptual hash: 16 x 16 bits, written as 64 hex digits."""


def read_films(data: Path, class_names: Iterable[str]) -> pd.DataFrame:
    """Reads the list of films of a data folder.

    Args:
        data: The data folder, which holds films.csv.
        class_names: The known classes; the index becomes the label.

    Returns:
        Columns path, label (int), patient, declared_split (empty when none is declared).

    Raises:
        BadInput: The list is missing, malformed, empty, or names an unknown class, an unknown
            split, a path outside the folder or the same path twice.
    """
    source = Path(data) / FILMS_FILE
    try:
        films = pd.read_csv(source, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise BadInput(f"{source} does not exist: get the sample with `dvc pull` or import films") from None
    except (ValueError, OSError) as error:
        raise BadInput(f"{source} cannot be read: {error}") from None
    if tuple(films.columns) != FILMS_COLUMNS:
        raise BadInput(f"{source} must have the columns {', '.join(FILMS_COLUMNS)}")
    if films.empty:
        raise BadInput(f"{source} lists no films")
    labels = {name: index for index, name in enumerate(class_names)}
    _refuse(films, ~films["label"].isin(labels), source, f"a label other than {', '.join(labels)}")
    _refuse(films, ~films["split"].isin(["", *DECLARED_SPLITS]), source, "an unknown split")
    _refuse(films, films["patient"] == "", source, "no patient")
    _refuse(films, films["path"].duplicated(), source, "a path that was listed before")
    _refuse(films, ~films["path"].map(is_inside), source, "a path outside the data folder")
    films["label"] = films["label"].map(labels).astype("int64")
    return films.rename(columns={"split": "declared_split"})


def is_inside(path: str) -> bool:
    """Tells whether a POSIX path stays below the folder it is relative to."""
    parts = path.split("/")
    return not path.startswith("/") and ".." not in parts and "\\" not in path and ":" not in parts[0]


def measure_films(
    data: Path, films: pd.DataFrame, *, min_side_px: int = 32, tick: Callable[[], None] = lambda: None
) -> pd.DataFrame:
    """Reads every film once and measures it.

    Memory holds the rows and the few films that are being decoded, never all films.

    Args:
        data: The data folder.
        films: What `read_films` returned.
        min_side_px: Smaller films are quarantined.
        tick: Called once a film, for progress.

    Returns:
        `films` plus id, sha256, width, height, bits, mean and std (grey levels 0..255),
        sharpness (variance of the Laplacian), perceptual_hash, quality_<name> (see
        openmed.data.quality), status (accepted or quarantined) and reason.
        Quarantined films have missing measurements.
    """
    rows = []
    for row in ordered_map(lambda path: _measure(Path(data) / path, min_side_px), films["path"]):
        rows.append(row)
        tick()
    measured = pd.DataFrame(rows, index=films.index)
    manifest = pd.concat([_ids(measured["sha256"]), films, measured], axis=1)
    return manifest.astype({"width": "Int64", "height": "Int64", "bits": "Int64"})


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


def _measure(path: Path, min_side_px: int) -> dict:
    row = {"sha256": "", "width": None, "height": None, "bits": None, "mean": np.nan, "std": np.nan}
    row |= {"sharpness": np.nan, "perceptual_hash": "", "status": "quarantined", "reason": ""}
    try:
        data = path.read_bytes()
        row["sha256"] = sha256_bytes(data)
        film, bits = decode_with_depth(data, "the film")
    except OSError as error:
        return row | {"reason": f"cannot be read: {error.strerror or error}"}
    except BadInput as error:
        return row | {"reason": str(error)}
    height, width = film.shape
    mean, std = (float(value.item()) for value in cv2.meanStdDev(film))
    row |= {"width": width, "height": height, "bits": bits, "mean": mean, "std": std}
    row |= {"sharpness": float(cv2.Laplacian(film, cv2.CV_32F).var())}
    row |= {"perceptual_hash": perceptual_hash(film)}
    row |= quality_columns(film)
    if min(height, width) < min_side_px:
        return row | {"reason": f"only {width} x {height} pixels"}
    if std < 1:
        return row | {"reason": "the film is blank"}
    return row | {"status": "accepted"}


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
