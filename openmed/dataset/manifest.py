"""The manifest: one row a film, with what was measured on it and whether it is usable."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openmed.archives import FilmState
from openmed.cache.film_store import FilmStore
from openmed.concurrency import ordered_map
from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path
from openmed.films.budgets import MIN_SIDE_PX
from openmed.films.images import unusable_reason
from openmed.measurement.measure import DETAILS, FACTS, MEASURED, measure_film
from openmed.memory import give_back

FILMS_FILE = "films.csv"
FILMS_COLUMNS = ("path", "label", "patient", "split")
"""What every list of films has."""
ABOUT_COLUMNS = ("sha256", "sex", "age_years", "view", "manufacturer", "year", "source")
"""What a list may have besides: hash of the file, what is known of patient and examination, who sent it."""
SOURCE_NAME = r"[A-Za-z0-9._-]{1,32}"
"""A name of a hospital or archive, short and plain so that it cannot be that of a patient by mistake."""
DECLARED_SPLITS = ("train", "validation", "test")
_CHUNK_FILMS = 1024


def read_films(data: Path, class_names: Iterable[str], *, more: Iterable[str] = ()) -> pd.DataFrame:
    """Reads the list of films of a data folder.

    The index of a class becomes its label; the list may have the columns `more` beside `ABOUT_COLUMNS`.

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
        with pd.read_csv(source, dtype=str, keep_default_na=False, chunksize=_CHUNK_FILMS) as parts:
            tables = (pa.Table.from_pandas(part, preserve_index=False) for part in parts)
            films = _in_one_piece(tables).to_pandas()
    except FileNotFoundError:
        raise BadInput(f"{source} does not exist: get the sample with `dvc pull` or import films") from None
    except (ValueError, OSError) as error:
        raise BadInput(f"{source} cannot be read: {error}") from None
    if tuple(films.columns[: len(FILMS_COLUMNS)]) != FILMS_COLUMNS:
        raise BadInput(f"{source} must have the columns {', '.join(FILMS_COLUMNS)}")
    about = (*ABOUT_COLUMNS, *more)
    if not set(films.columns[len(FILMS_COLUMNS) :]) <= set(about):
        raise BadInput(f"{source} may have no further columns than {', '.join(about)}")
    if films.empty:
        raise BadInput(f"{source} lists no films")
    labels = {name: index for index, name in enumerate(class_names)}
    _refuse(films, ~films["label"].isin(labels), source, f"a label other than {', '.join(labels)}")
    _refuse(films, ~films["split"].isin(["", *DECLARED_SPLITS]), source, "an unknown split")
    _refuse(films, films["patient"] == "", source, "no patient")
    _refuse(films, repeated(films["path"]), source, "a path that was listed before")
    outside = np.array([not is_inside(path) for path in films["path"]])
    _refuse(films, outside, source, "a path outside the data folder")
    if "source" in films:
        bad = (films["source"] != "") & ~films["source"].str.fullmatch(SOURCE_NAME)
        _refuse(films, bad, source, "a source that is no short plain name")
    for name in {"age_years", "year"} & set(films.columns):
        _refuse(films, ~films[name].str.fullmatch(r"\d{0,4}"), source, f"a value in {name} that is no number")
        films[name] = pd.to_numeric(films[name]).astype("Int64")
    films["label"] = np.array([labels[name] for name in films["label"]], "int64")
    return films.rename(columns={"split": "declared_split"})


def repeated(texts: pd.Series) -> pd.Series:
    """Tells which texts were there before, as `duplicated`, but without a copy of them all in memory."""
    keys = pd.Series(np.fromiter(map(hash, texts), np.int64, len(texts)), index=texts.index)
    alike = keys.duplicated(keep=False)
    return alike & texts[alike].duplicated().reindex(texts.index, fill_value=False)


def is_inside(path: str) -> bool:
    """Tells whether a POSIX path stays below the folder it is relative to."""
    parts = path.split("/")
    odd = "\0" in path or "\\" in path or ":" in parts[0]
    return not (odd or path.startswith("/") or ".." in parts)


def measure_films(
    data: Path,
    films: pd.DataFrame,
    store: FilmStore,
    *,
    min_side_px: int = MIN_SIDE_PX,
    tick: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Measures every film as `judge_films`, and returns the columns of `DETAILS` too."""
    details: list[pa.Table] = []
    manifest = judge_films(data, films, store, details.append, min_side_px=min_side_px, tick=tick)
    return pd.concat([manifest, pa.concat_tables(details).to_pandas().set_axis(films.index)], axis=1)


def judge_films(
    data: Path,
    films: pd.DataFrame,
    store: FilmStore,
    keep: Callable[[pa.Table], None],
    *,
    min_side_px: int = MIN_SIDE_PX,
    tick: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    """Measures every film; those that nobody touched are not read again, those that are known not decoded.

    Memory holds the rows that are returned, the details of one part of the films, and the few films
    that are being decoded.

    `keep` is called with the details of each part of the films, in order, with the columns of `DETAILS`;
    `tick` once a film. Films with a shorter side than `min_side_px` are quarantined.

    Returns:
        `films` plus id, sha256, width, height, bits, mean and std (grey levels 0..255), reason and status
        (accepted or quarantined). Quarantined films have missing measurements.

    Raises:
        IntegrityError: A film has another content than the list of films recorded, or its archive is missing
            or damaged.
    """
    measured = _in_one_piece(_measured_parts(data, films, store, keep, tick))
    facts = judge_facts(measured, min_side_px=min_side_px).set_axis(films.index)
    del measured
    _hold_against_list(Path(data), films, facts["sha256"])
    return pd.concat([_ids(facts["sha256"]), films.drop(columns="sha256", errors="ignore"), facts], axis=1)


def _measured_parts(
    data: Path,
    films: pd.DataFrame,
    store: FilmStore,
    keep: Callable[[pa.Table], None],
    tick: Callable[[], None],
) -> Iterator[pa.Table]:
    """Measures the films part by part; yields the columns of `FACTS` and gives those of `DETAILS` away."""
    for start in range(0, len(films), _CHUNK_FILMS):
        part = films.iloc[start : start + _CHUNK_FILMS]
        recorded = part["sha256"].tolist() if "sha256" in part else [""] * len(part)
        measured = _measure_part([f"{data}/{path}" for path in part["path"]], recorded, store, tick)
        keep(measured.select(DETAILS.names))
        yield measured.select(FACTS.names)


def _in_one_piece(parts: Iterable[pa.Table]) -> pa.Table:
    """Joins tables into one whose columns are whole, as many small pieces hold the memory between them."""
    pieces: dict[str, list[pa.Array]] = {}
    for part in parts:
        for name, column in zip(part.column_names, part.columns, strict=True):
            pieces.setdefault(name, []).extend(column.chunks)
    # One column after the other, so that no two copies of the table are there at a time.
    table = pa.table({name: pa.concat_arrays(pieces.pop(name)) for name in list(pieces)})
    give_back()
    return table


def write_manifest(path: Path, films: pd.DataFrame, details: Iterable[pa.Table | pa.RecordBatch]) -> None:
    """Writes the films of `judge_films` and the details that it kept, part by part to spare memory."""
    listed = pa.Schema.from_pandas(films, preserve_index=False)
    schema, start = pa.schema([*listed, *DETAILS], listed.metadata), 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for part in details:
            rows = pa.Table.from_pandas(films.iloc[start : start + len(part)], listed, preserve_index=False)
            writer.write_table(pa.Table.from_arrays([*rows.columns, *part.columns], schema=schema))
            start += len(part)
        if start != len(films):
            raise ValueError(f"there are {len(films)} films and details of {start}")


def _measure_part(
    paths: list[str], recorded: list[str], store: FilmStore, tick: Callable[[], None]
) -> pa.Table:
    """Measures some films; reads those whose hash is not known, decodes those whose measurements are not.

    The hashes that were recorded for the films tell what may be known of files that were not read yet.
    """
    hashes = store.hashes_of(paths)
    wanted = [found or listed for found, listed in zip(hashes, recorded, strict=True)]
    known = pa.concat_tables([MEASURED.empty_table(), *store.measurements([d for d in wanted if d])])
    place_of = {digest: place for place, digest in enumerate(known["sha256"].to_pylist())}
    places = [place_of.get(digest) for digest in hashes]
    new = [position for position, place in enumerate(places) if place is None]
    for _ in range(len(paths) - len(new)):
        tick()
    measured: list[dict[str, Any]] = []
    hashed: list[tuple[FilmState, str]] = []
    measure = partial(measure_film, known=place_of)
    for position, (state, row) in zip(new, ordered_map(measure, [paths[i] for i in new]), strict=True):
        if state is not None:
            hashed.append((state, row["sha256"]))
        if row["reason"] is None:
            places[position] = place_of[row["sha256"]]
        else:
            places[position] = len(known) + len(measured)
            measured.append(row)
        tick()
    read = pa.Table.from_pylist(measured, MEASURED)
    store.remember_hashes(hashed)
    store.remember_measurements(read.filter(pc.not_equal(read["sha256"], "")))
    return pa.concat_tables([known, read]).take(places).combine_chunks()


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


def judge_facts(facts: pa.Table, *, min_side_px: int = MIN_SIDE_PX) -> pd.DataFrame:
    """Tells which films, by the columns of `FACTS`, are usable: completes the reasons, adds the status."""
    films = facts.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    decoded = films["reason"] == ""
    measured = films.loc[decoded, ["width", "height", "std"]].itertuples(index=False)
    reasons = [unusable_reason(width, height, std, min_side_px) for width, height, std in measured]
    films.loc[decoded, "reason"] = reasons
    return films.assign(status=(films["reason"] == "").map({True: "accepted", False: "quarantined"}))


def _ids(digests: pd.Series) -> pd.Series:
    """Short ids from the content; exact copies are numbered, unreadable files named by position."""
    short = digests.str[:16].where(digests != "", "unreadable")
    again = repeated(short)
    alike = short[short.isin(short[again])]
    copy = alike.groupby(alike).cumcount()[again]
    short[again] += "-" + (copy + 1).astype(str)
    return short.rename("id")


def _refuse(films: pd.DataFrame, bad: pd.Series | np.ndarray, source: Path, what: str) -> None:
    if bad.any():
        # Line 1 is the header. Names are not repeated: they may hold a patient's.
        lines = ", ".join(str(line) for line in (np.flatnonzero(bad)[:5] + 2))
        raise BadInput(f"{source} has {what} in {int(bad.sum())} row(s), the first on line {lines}")
