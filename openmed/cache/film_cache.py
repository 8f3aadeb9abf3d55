"""Decoded films on disk: uint8 shards for each input size, read by memory map."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from openmed.cache.shards import ShardedFilms
from openmed.concurrency import ordered_map
from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json, sha256_file

INDEX_FILE = "films.parquet"
HASHES_FILE = "cache.json"


class FilmCache:
    """Films of one size, read from disk as they are asked for.

    Attributes:
        films: uint8 (n, S, S), to be indexed by the positions that `rows` returns.
    """

    def __init__(self, folder: Path, size_px: int) -> None:
        """Opens a cache; BadInput where it lacks this size, IntegrityError where a file was changed."""
        folder = Path(folder)
        hashes = read_json(folder / HASHES_FILE)
        shards = sorted(name for name in hashes if name.startswith(f"{size_px}/"))
        if not shards:
            raise BadInput(f"the film cache has no films of {size_px} px: run the preprocess stage")
        files = [folder / name for name in (*shards, INDEX_FILE)]
        digests = ordered_map(lambda file: file.is_file() and sha256_file(file), files)
        for file, digest in zip(files, digests, strict=True):
            if digest != hashes.get(file.relative_to(folder).as_posix()):
                raise IntegrityError(f"{file} is gone or was changed: run preprocess again")
        self.films = ShardedFilms([folder / name for name in shards], size_px)
        index = pd.read_parquet(folder / INDEX_FILE)
        self._row_of = dict(zip(index["id"], index["row"], strict=True))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Returns the position of each film in `films`, int64 (n,); BadInput where one is not there."""
        try:
            return np.array([self._row_of[film] for film in ids], np.int64)
        except KeyError as error:
            raise BadInput(f"film {error} is not in the film cache: run the preprocess stage") from None
