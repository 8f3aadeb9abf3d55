"""What the film store of one host knows of some films, as files from which that of another host learns it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from openmed.cache.film_store import FilmStore
from openmed.cache.writing import decoded
from openmed.dataset.manifest import measure_films
from openmed.files import link_or_copy, read_json, write_json
from openmed.measurement.measure import MEASURED

_MEASURED_FILE, _DECODED_FILE = "measured.arrow", "decoded.json"


@dataclass(frozen=True)
class Part:
    """What a store knows of some films.

    Attributes:
        measured: SHA-256 of the films.
        decoded: SHA-256 of those whose squares go with it, in their order.
        squares: Side in pixels -> .npy, uint8 (films, side, side).
        new: How many films the store did not know whole before.
    """

    measured: tuple[str, ...]
    decoded: tuple[str, ...]
    squares: dict[int, Path]
    new: int


def learn(
    data: Path,
    films: pd.DataFrame,
    sizes_px: Iterable[int],
    store: FilmStore,
    *,
    min_side_px: int,
    everything: bool = False,
) -> Part:
    """Lets a store know of films all that the stages `validate` and `preprocess` ask it for.

    The films, at most `SHARD_FILMS`, are rows of `read_films`. Squares that were known before go with the
    part where it shall hold `everything`. Raises as `judge_films` and `write_cache`.
    """
    sizes = sorted(set(sizes_px))
    recorded = films["sha256"].tolist() if "sha256" in films else []
    before = {film for table in store.measurements(recorded) for film in table["sha256"].to_pylist()}
    judged = measure_films(data, films, store, min_side_px=min_side_px)
    usable = judged.loc[judged["status"] == "accepted", ["path", "sha256"]].drop_duplicates("sha256")
    lacking = store.lacking(usable["sha256"].tolist(), sizes)
    wanted = usable if everything else usable[usable["sha256"].isin(lacking)]
    chosen = tuple(wanted["sha256"])
    made = store.shards(chosen, sizes, partial(decoded, data, wanted, sizes)) if chosen else {}
    squares = {size: file for size, (file, _) in made.items()}
    new = ({*judged["sha256"]} - before | {*lacking}) - {""}
    return Part(tuple(judged["sha256"]), chosen, squares, len(new))


def write_part(part: Part, store: FilmStore, folder: Path) -> list[str]:
    """Writes what a store knows as files, named by what is returned, below a folder that is there."""
    known = pa.concat_tables([MEASURED.empty_table(), *store.measurements([f for f in part.measured if f])])
    with pa.ipc.new_stream(folder / _MEASURED_FILE, known.schema) as stream:
        stream.write_table(known)
    write_json(folder / _DECODED_FILE, part.decoded)
    for size, file in part.squares.items():
        link_or_copy(file, folder / f"{size}.npy")
    return [_MEASURED_FILE, _DECODED_FILE, *(f"{size}.npy" for size in part.squares)]


def read_part(folder: Path, store: FilmStore) -> None:
    """Lets a store learn what `write_part` wrote; squares that it knows already stay."""
    with pa.OSFile(str(folder / _MEASURED_FILE)) as file:
        store.remember_measurements(pa.ipc.open_stream(file).read_all())
    films = read_json(folder / _DECODED_FILE)
    squares = {int(file.stem): np.load(file, mmap_mode="r") for file in folder.glob("*.npy")}
    place, sizes = {film: place for place, film in enumerate(films)}, sorted(squares)
    if lacking := store.lacking(films, sizes):
        places = [place[film] for film in lacking]
        store.shards(lacking, sizes, partial(_taken, [squares[size] for size in sizes], places))


def _taken(
    squares: Sequence[np.ndarray], places: Sequence[int], positions: Sequence[int]
) -> Iterator[list[np.ndarray]]:
    return ([array[places[position]] for array in squares] for position in positions)
