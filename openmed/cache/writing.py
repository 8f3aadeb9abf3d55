"""Writes the film cache: every film decoded once, at every size."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from openmed.archives import film_bytes
from openmed.cache.film_cache import HASHES_FILE, INDEX_FILE
from openmed.cache.film_store import FilmStore
from openmed.cache.shards import SHARD_FILMS
from openmed.concurrency import ordered_map
from openmed.files import atomic_path, sha256_file, write_json
from openmed.films.images import decode_squares


def write_cache(
    folder: Path,
    data: Path,
    films: pd.DataFrame,
    sizes_px: Iterable[int],
    store: FilmStore,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Stores every film at every size, decoding only those that the store does not know.

    The result depends on the films and their order alone, not on what the store held. Films that are
    appended leave all full shards as they are.

    The folder will hold <size>/<number>.npy, an index and the hashes of them all. The films have the columns
    id, path and sha256; `tick` is called once for each. IntegrityError where a film has another sha256.
    """
    sizes = sorted(set(sizes_px))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HASHES_FILE).unlink(missing_ok=True)
    hashes = {}
    for number, start in enumerate(range(0, len(films), SHARD_FILMS)):
        part = films.iloc[start : start + SHARD_FILMS]
        made = store.shards(part["sha256"].tolist(), sizes, partial(decoded, data, part, sizes))
        for size, (source, digest) in made.items():
            name = f"{size}/{number:05d}.npy"
            _link(source, folder / name)
            hashes[name] = digest
        for _ in range(len(part)):
            tick()
    with atomic_path(folder / INDEX_FILE) as temporary:
        pd.DataFrame({"id": films["id"].to_numpy(), "row": np.arange(len(films))}).to_parquet(temporary)
    write_json(folder / HASHES_FILE, {**hashes, INDEX_FILE: sha256_file(folder / INDEX_FILE)})
    store.tidy()


def decoded(
    data: Path, films: pd.DataFrame, sizes_px: Sequence[int], positions: Sequence[int]
) -> Iterator[list[np.ndarray]]:
    """Decodes some of the films, by position: uint8 (s, s) at each size; IntegrityError as `write_cache`."""
    part = films.iloc[positions]
    rows = zip(part["path"], part["sha256"], strict=True)
    return ordered_map(lambda row: decode_squares(film_bytes(data, *row), sizes_px, row[0]), rows)


def _link(source: Path, target: Path) -> None:
    """Puts a file of the store under another name, without a copy where the file system allows it."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
