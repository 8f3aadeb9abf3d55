"""Decoded films on disk: one uint8 array for each input size, read by memory map."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap

from openmed.data.images import decode_film, resize_film
from openmed.data.manifest import ordered_map
from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, read_json, sha256_bytes, sha256_file, write_json

_INDEX = "films.parquet"
_HASHES = "cache.json"


def write_cache(
    folder: Path,
    data: Path,
    films: pd.DataFrame,
    sizes_px: Iterable[int],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Decodes every film once and stores it at every size.

    Args:
        folder: Where the cache goes.
        data: The data folder.
        films: Accepted films: columns id, path, sha256.
        sizes_px: Sides of the squares to store.
        tick: Called once a film, for progress.

    Raises:
        IntegrityError: A film's content is not what the manifest recorded.
    """
    sizes = sorted(set(sizes_px))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{size}.npy" for size in sizes]
    partial = [path.with_suffix(".part") for path in paths]
    arrays = [
        open_memmap(path, "w+", np.uint8, (len(films), size, size))
        for path, size in zip(partial, sizes, strict=True)
    ]
    rows = zip(films["path"], films["sha256"], strict=True)
    for index, squares in enumerate(ordered_map(lambda row: _squares(data, *row, sizes), rows)):
        for array, square in zip(arrays, squares, strict=True):
            array[index] = square
        tick()
    for array, source, target in zip(arrays, partial, paths, strict=True):
        array.flush()
        with atomic_path(target) as temporary:
            source.rename(temporary)
    with atomic_path(folder / _INDEX) as temporary:
        pd.DataFrame({"id": films["id"].to_numpy(), "row": np.arange(len(films))}).to_parquet(temporary)
    write_json(folder / _HASHES, {path.name: sha256_file(path) for path in [*paths, folder / _INDEX]})


class FilmCache:
    """Films of one size, read from disk as they are asked for.

    Attributes:
        films: uint8 (n, S, S), memory-mapped and read-only.
    """

    def __init__(self, folder: Path, size_px: int) -> None:
        """Opens a cache.

        Raises:
            BadInput: The cache does not hold this size.
            IntegrityError: A file of the cache was changed.
        """
        folder = Path(folder)
        name = f"{size_px}.npy"
        hashes = read_json(folder / _HASHES)
        if name not in hashes:
            raise BadInput(f"the film cache has no films of {size_px} px: run the preprocess stage")
        for file in (name, _INDEX):
            if not (folder / file).is_file() or sha256_file(folder / file) != hashes.get(file):
                raise IntegrityError(f"{folder / file} is gone or was changed: run preprocess again")
        self.films = np.load(folder / name, mmap_mode="r")
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


def _squares(data: Path, path: str, sha256: str, sizes: list[int]) -> list[np.ndarray]:
    try:
        content = (data / path).read_bytes()
    except OSError as error:
        raise IntegrityError(f"{data / path} cannot be read any more: {error.strerror or error}") from None
    if sha256_bytes(content) != sha256:
        raise IntegrityError(f"{data / path} was changed after it was validated: run the pipeline again")
    film = decode_film(content, path)
    return [resize_film(film, size) for size in sizes]
