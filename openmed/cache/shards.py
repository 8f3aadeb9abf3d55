"""Arrays of many films in files of bounded size, read by memory map as if they were one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHARD_FILMS = 1024
"""Films of a full shard. Only the last shard of a set may hold fewer."""


class ShardedFilms:
    """Films of one size across shards, read from the disk as they are asked for.

    Attributes:
        shape: (n, S, S), as of one array.
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shards: Sequence[Path], size_px: int) -> None:
        self._shards = [np.load(path, mmap_mode="r") for path in shards]
        self.shape = (sum(map(len, self._shards)), size_px, size_px)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Reads films, by one position, a slice, or int (k,) positions from 0 in any order.

        uint8 (S, S) for one position, else (k, S, S), in memory and free to change; IndexError outside.
        """
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"there are {len(self)} films, numbered from 0")
        films = np.empty((len(rows), *self.shape[1:]), np.uint8)
        shards, places = np.divmod(rows, SHARD_FILMS)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            films[here] = self._shards[shard][places[here]]
        return films
