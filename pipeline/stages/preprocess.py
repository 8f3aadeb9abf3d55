"""Decodes every usable film once and stores it at each architecture's input size."""

from openmed.cache.film_store import FilmStore
from openmed.cache.writing import write_cache
from openmed.files import read_table
from pipeline.settings.artifacts import CACHE, DATA, MANIFEST, film_store_folder
from pipeline.settings.params import Params
from pipeline.tools.terminal import progress


def run(params: Params) -> None:
    """Reads the films that the manifest accepts and writes one uint8 array for each size."""
    accepted = [("status", "==", "accepted")]
    films = read_table(MANIFEST, columns=["id", "path", "sha256"], filters=accepted)
    sizes = {params.preprocess.image_size_px[name] for name in params.architectures}
    with FilmStore(film_store_folder()) as store, progress(len(films), "preprocess") as tick:
        write_cache(CACHE, DATA, films, sizes, store, tick)
    print(f"preprocess: {len(films)} films at {', '.join(f'{size} px' for size in sorted(sizes))}")
