"""Decoded films on disk: uint8 shards for each input size, read by memory map."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from openmed.cache.film_store import FilmStore
from openmed.cache.shards import SHARD_FILMS, ShardedFilms
from openmed.dataset.manifest import film_bytes, ordered_map
from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, read_json, sha256_file, write_json
from openmed.films.images import decode_squares

_INDEX = "films.parquet"
_HASHES = "cache.json"


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

    Args:
        folder: Where the cache goes: <size>/<number>.npy, an index and the hashes of them all.
        data: The data folder.
        films: Accepted films: columns id, path, sha256.
        sizes_px: Sides of the squares to store.
        store: Remembers decoded films.
        tick: Called once a film, for progress.

    Raises:
        IntegrityError: A film's content is not what the manifest recorded.
    """
    sizes = sorted(set(sizes_px))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _HASHES).unlink(missing_ok=True)
    hashes = {}
    for number, start in enumerate(range(0, len(films), SHARD_FILMS)):
        part = films.iloc[start : start + SHARD_FILMS]
        made = store.shards(part["sha256"].tolist(), sizes, _decoder(data, part, sizes))
        for size, (source, digest) in made.items():
            name = f"{size}/{number:05d}.npy"
            _link(source, folder / name)
            hashes[name] = digest
        for _ in range(len(part)):
            tick()
    with atomic_path(folder / _INDEX) as temporary:
        pd.DataFrame({"id": films["id"].to_numpy(), "row": np.arange(len(films))}).to_parquet(temporary)
    write_json(folder / _HASHES, {**hashes, _INDEX: sha256_file(folder / _INDEX)})
    store.tidy()


class FilmCache:
    """Films of one size, read from disk as they are asked for.

    Attributes:
        films: uint8 (n, S, S), to be indexed by the positions that `rows` returns.
    """

    def __init__(self, folder: Path, size_px: int) -> None:
        """Opens a cache.

        Raises:
            BadInput: The cache does not hold this size.
            IntegrityError: A file of the cache was changed.
        """
        folder = Path(folder)
        hashes = read_json(folder / _HASHES)
        shards = sorted(name for name in hashes if name.startswith(f"{size_px}/"))
        if not shards:
            raise BadInput(f"the film cache has no films of {size_px} px: run the preprocess stage")
        names = [*shards, _INDEX]
        for name, whole in zip(
            names, ordered_map(lambda name: _is_whole(folder, name, hashes), names), strict=True
        ):
            if not whole:
                raise IntegrityError(f"{folder / name} is gone or was changed: run preprocess again")
        self.films = ShardedFilms([folder / name for name in shards], size_px)
        index = pd.read_parquet(folder / _INDEX)
        self._row_of = dict(zip(index["id"], index["row"], strict=True))

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the position of each film in `films`, int64 (n,).

        Raises:
            BadInput: A film is not in the cache.
        """
        try:
            return np.array([self._row_of[film] for film in ids], np.int64)
        except KeyError as error:
            raise BadInput(f"film {error} is not in the film cache: run the preprocess stage") from None


def _is_whole(folder: Path, name: str, hashes: dict[str, str]) -> bool:
    return (folder / name).is_file() and sha256_file(folder / name) == hashes.get(name)


def _decoder(
    data: Path, films: pd.DataFrame, sizes: list[int]
) -> Callable[[Sequence[int]], Iterator[list[np.ndarray]]]:
    def squares(row: tuple[str, str]) -> list[np.ndarray]:
        path, sha256 = row
        return decode_squares(film_bytes(data, path, sha256), sizes, path)

    def decode(positions: Sequence[int]) -> Iterator[list[np.ndarray]]:
        part = films.iloc[positions]
        return ordered_map(squares, zip(part["path"], part["sha256"], strict=True))

    return decode


def _link(source: Path, target: Path) -> None:
    """Puts a file of the store under another name, without a copy where the file system allows it."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
