"""The film cache: what was decoded is what is read, and any change is found."""

import hashlib
import json

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.cache import film_store as store_module
from openmed.cache import shards as shards_module
from openmed.cache import writing as writing_module
from openmed.cache.film_cache import FilmCache
from openmed.cache.film_store import FilmStore
from openmed.errors import BadInput, IntegrityError
from openmed.films.images import read_film, resize_film


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


def write_cache(folder, data, films, sizes, store=None, tick=lambda: None):
    with FilmStore(store or folder.with_name("store")) as opened:
        writing_module.write_cache(folder, data, films, sizes, opened, tick)


@pytest.fixture
def small_shards(monkeypatch):
    """Five films a shard, so that twelve films fill two and begin a third."""
    for module in (writing_module, shards_module, store_module):
        monkeypatch.setattr(module, "SHARD_FILMS", 5)


def test_the_cache_holds_every_film_decoded_and_resized(tmp_path, data, films):
    ticks = []
    write_cache(tmp_path / "cache", data, films, [32, 48, 32], tick=lambda: ticks.append(1))
    assert len(ticks) == 12
    assert sorted(
        p.relative_to(tmp_path / "cache").as_posix() for p in (tmp_path / "cache").rglob("*.*")
    ) == [
        "32/00000.npy",
        "48/00000.npy",
        "cache.json",
        "films.parquet",
    ]
    for size in (32, 48):
        cache = FilmCache(tmp_path / "cache", size)
        assert cache.films.dtype == np.uint8 and cache.films.shape == (12, size, size)
        shuffled = films.sample(frac=1, random_state=1)
        for path, row in zip(shuffled["path"], cache.rows(shuffled["id"]), strict=True):
            np.testing.assert_array_equal(cache.films[row], resize_film(read_film(data / path), size))


def test_films_come_from_any_shard_in_the_order_asked_for(tmp_path, data, films, small_shards):
    write_cache(tmp_path / "cache", data, films, [32])
    assert len(list((tmp_path / "cache/32").iterdir())) == 3
    cache = FilmCache(tmp_path / "cache", 32)
    whole = np.stack([resize_film(read_film(data / path), 32) for path in films["path"]])
    rows = np.array([11, 0, 7, 7, 4, 5])
    np.testing.assert_array_equal(cache.films[rows], whole[rows])
    np.testing.assert_array_equal(cache.films[3:9], whole[3:9])
    np.testing.assert_array_equal(cache.films[10], whole[10])
    assert cache.films[np.array([], int)].shape == (0, 32, 32)
    for outside in (12, -1):
        with pytest.raises(IndexError):
            cache.films[np.array([outside])]


def test_writing_into_what_was_read_leaves_the_cache_alone(tmp_path, data, films):
    write_cache(tmp_path / "cache", data, films, [32])
    taken = FilmCache(tmp_path / "cache", 32).films[np.array([0])]
    taken[:] = 255 - taken
    assert (FilmCache(tmp_path / "cache", 32).films[np.array([0])] != taken).all()


def read_paths(monkeypatch) -> list[str]:
    """Collects the films that are read from now on."""
    seen, original = [], writing_module.film_bytes

    def film_bytes(data, path, sha256):
        seen.append(path)
        return original(data, path, sha256)

    monkeypatch.setattr(writing_module, "film_bytes", film_bytes)
    return seen


def test_only_new_films_are_read_and_full_shards_stay(tmp_path, data, films, small_shards, monkeypatch):
    write_cache(tmp_path / "cache", data, films.iloc[:8], [32, 48], store=tmp_path / "store")
    before = json.loads((tmp_path / "cache/cache.json").read_text())
    read = read_paths(monkeypatch)
    write_cache(tmp_path / "again", data, films, [32, 48], store=tmp_path / "store")
    assert sorted(read) == sorted(films["path"][8:])
    after = json.loads((tmp_path / "again/cache.json").read_text())
    assert before["32/00000.npy"] == after["32/00000.npy"] and before["32/00001.npy"] != after["32/00001.npy"]
    write_cache(tmp_path / "fresh", data, films, [32, 48], store=tmp_path / "another store")
    assert (tmp_path / "fresh/cache.json").read_bytes() == (tmp_path / "again/cache.json").read_bytes()


def test_a_second_write_reads_no_film_and_a_new_size_reads_all(tmp_path, data, films, monkeypatch):
    write_cache(tmp_path / "cache", data, films, [32])
    read = read_paths(monkeypatch)
    write_cache(tmp_path / "cache", data, films, [32])
    assert read == []
    write_cache(tmp_path / "cache", data, films, [32, 48])
    assert len(read) == 12


def test_films_that_moved_to_other_shards_are_copied_not_decoded(
    tmp_path, data, films, small_shards, monkeypatch
):
    write_cache(tmp_path / "cache", data, films, [32])
    read = read_paths(monkeypatch)
    write_cache(tmp_path / "cache", data, films.drop(index=2), [32])
    assert read == []
    cache = FilmCache(tmp_path / "cache", 32)
    row = cache.rows([films["id"][11]])[0]
    np.testing.assert_array_equal(cache.films[row], resize_film(read_film(data / "11.png"), 32))


@pytest.mark.parametrize("what", ["shard", "square"])
def test_a_damaged_store_is_not_used(tmp_path, data, films, small_shards, monkeypatch, what):
    write_cache(tmp_path / "cache", data, films, [32])
    for path in (tmp_path / "store").glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-100] ^= 1  # a pixel of the shard's last film
        path.chmod(0o644)
        path.write_bytes(content)
    read = read_paths(monkeypatch)
    # The whole run of films is a shard that is looked up by its hash; another run is copied film by film.
    chosen = films if what == "shard" else films.iloc[::-1].reset_index(drop=True)
    write_cache(tmp_path / "again", data, chosen, [32])
    assert sorted(read) == sorted(films["path"][[4, 9, 11]])
    cache = FilmCache(tmp_path / "again", 32)
    for film in films.itertuples():
        np.testing.assert_array_equal(
            cache.films[cache.rows([film.id])[0]], resize_film(read_film(data / film.path), 32)
        )


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


@pytest.mark.parametrize("name", ["32/00000.npy", "films.parquet"])
def test_one_changed_byte_of_the_cache_is_found(tmp_path, data, films, name):
    write_cache(tmp_path / "cache", data, films, [32])
    file = tmp_path / "cache" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
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
    assert not list(folder.rglob(".*"))


def test_the_same_films_give_the_same_bytes(tmp_path, data, films):
    for name in ("a", "b"):
        write_cache(tmp_path / name, data, films, [32], store=tmp_path / f"store {name}")
    assert (tmp_path / "a/cache.json").read_bytes() == (tmp_path / "b/cache.json").read_bytes()
