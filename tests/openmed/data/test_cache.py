"""The film cache: what was decoded is what is read, and any change is found."""

import hashlib
import json

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.data.cache import FilmCache, write_cache
from openmed.data.images import read_film, resize_film
from openmed.errors import BadInput, IntegrityError


@pytest.fixture
def data(tmp_path):
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for index in range(12):
        shape = tuple(rng.integers(40, 90, 2))
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, shape, np.uint8))
    return folder


@pytest.fixture
def films(data):
    names = [f"{index}.png" for index in range(12)]
    hashes = [hashlib.sha256((data / name).read_bytes()).hexdigest() for name in names]
    return pd.DataFrame({"id": [digest[:16] for digest in hashes], "path": names, "sha256": hashes})


def test_the_cache_holds_every_film_decoded_and_resized(tmp_path, data, films):
    ticks = []
    write_cache(tmp_path / "cache", data, films, [32, 48, 32], tick=lambda: ticks.append(1))
    assert len(ticks) == 12
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "32.npy",
        "48.npy",
        "cache.json",
        "films.parquet",
    ]
    for size in (32, 48):
        cache = FilmCache(tmp_path / "cache", size)
        assert cache.films.dtype == np.uint8 and cache.films.shape == (12, size, size)
        shuffled = films.sample(frac=1, random_state=1)
        for path, row in zip(shuffled["path"], cache.rows(shuffled["id"]), strict=True):
            np.testing.assert_array_equal(cache.films[row], resize_film(read_film(data / path), size))


def test_the_cache_is_mapped_and_cannot_be_written(tmp_path, data, films):
    write_cache(tmp_path / "cache", data, films, [32])
    cache = FilmCache(tmp_path / "cache", 32)
    assert isinstance(cache.films, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cache.films[0, 0, 0] = 1


def test_one_changed_byte_of_a_film_is_found(tmp_path, data, films):
    content = bytearray((data / "7.png").read_bytes())
    content[-20] ^= 1
    (data / "7.png").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"7\.png was changed after it was validated"):
        write_cache(tmp_path / "cache", data, films, [32])
    assert not (tmp_path / "cache" / "cache.json").exists()


def test_a_film_that_is_gone_is_found(tmp_path, data, films):
    (data / "3.png").unlink()
    with pytest.raises(IntegrityError, match=r"3\.png cannot be read any more: No such file"):
        write_cache(tmp_path / "cache", data, films, [32])


@pytest.mark.parametrize("name", ["32.npy", "films.parquet"])
def test_one_changed_byte_of_the_cache_is_found(tmp_path, data, films, name):
    write_cache(tmp_path / "cache", data, films, [32])
    file = tmp_path / "cache" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="is gone or was changed: run preprocess again"):
        FilmCache(tmp_path / "cache", 32)
    file.unlink()
    with pytest.raises(IntegrityError, match="is gone or was changed"):
        FilmCache(tmp_path / "cache", 32)


def test_an_unlisted_index_is_not_trusted(tmp_path, data, films):
    write_cache(tmp_path / "cache", data, films, [32])
    listing = tmp_path / "cache" / "cache.json"
    hashes = json.loads(listing.read_text())
    del hashes["films.parquet"]
    listing.write_text(json.dumps(hashes))
    with pytest.raises(IntegrityError):
        FilmCache(tmp_path / "cache", 32)


def test_a_size_or_a_film_that_is_not_there_is_refused(tmp_path, data, films):
    write_cache(tmp_path / "cache", data, films, [32])
    with pytest.raises(BadInput, match="has no films of 64 px: run the preprocess stage"):
        FilmCache(tmp_path / "cache", 64)
    with pytest.raises(BadInput, match="film 'other' is not in the film cache"):
        FilmCache(tmp_path / "cache", 32).rows([films["id"][0], "other"])
    with pytest.raises(BadInput, match="does not exist"):
        FilmCache(tmp_path / "nothing", 32)


def test_while_films_are_written_no_array_has_its_final_name(tmp_path, data, films):
    folder, seen = tmp_path / "cache", []
    write_cache(folder, data, films, [32], tick=lambda: seen.extend(p.name for p in folder.iterdir()))
    assert set(seen) == {"32.part"}


def test_an_interrupted_write_is_not_taken_for_a_cache_and_can_be_repeated(tmp_path, data, films):
    folder = tmp_path / "cache"

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(folder, data, films, [32], tick=interrupt)
    with pytest.raises(BadInput):
        FilmCache(folder, 32)
    write_cache(folder, data, films, [32])
    assert FilmCache(folder, 32).films.shape == (12, 32, 32)
    assert not list(folder.glob("*.part"))


def test_the_same_films_give_the_same_bytes(tmp_path, data, films):
    for name in ("a", "b"):
        write_cache(tmp_path / name, data, films, [32])
    assert (tmp_path / "a/cache.json").read_bytes() == (tmp_path / "b/cache.json").read_bytes()
