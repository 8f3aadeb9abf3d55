"""What one film store knows reaches another and makes it know the same."""

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.cache.film_store import FilmStore
from openmed.cache.writing import write_cache
from openmed.dataset.manifest import measure_films, read_films
from openmed.dataset.parts import learn, read_part, write_part
from openmed.errors import IntegrityError
from openmed.files import hashes_below, sha256_file
from openmed.phantoms.phantom import write_sample

CLASSES, SIZES = ("NORMAL", "PNEUMONIA"), [32, 48]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Thirty films, of which one is a copy, one is unreadable and one too small."""
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder, films=30, size_px=64)
    films = pd.read_csv(folder / "films.csv", dtype=str, keep_default_na=False)
    (folder / films["path"][3]).write_bytes(b"no film")
    cv2.imwrite(str(folder / films["path"][4]), np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8))
    films["sha256"] = [sha256_file(folder / path) for path in films["path"]]
    films.to_csv(folder / "films.csv", index=False)
    return folder


@pytest.fixture
def known(data, tmp_path):
    """The store of a first host, which has learnt the films, and what it sends."""
    films, sent = read_films(data, CLASSES), tmp_path / "sent"
    sent.mkdir()
    with FilmStore(tmp_path / "first") as store:
        part = learn(data, films, SIZES, store, min_side_px=32)
        names = write_part(part, store, sent)
        again = learn(data, films, SIZES, store, min_side_px=32)
    assert sorted(names) == sorted(path.name for path in sent.iterdir())
    return part, again, sent


def no_decoder(monkeypatch):
    def decode(*_, **__):
        raise AssertionError("a film is decoded")

    monkeypatch.setattr("openmed.measurement.measure.decode_with_depth", decode)
    monkeypatch.setattr("openmed.cache.writing.decode_squares", decode)


def test_what_is_new_is_counted_by_content(known, data):
    part, again, _ = known
    different = len({(data / path).read_bytes() for path in read_films(data, CLASSES)["path"]})
    assert different < 30
    assert (part.new, again.new) == (different, 0)
    assert len(part.measured) == 30 and len(part.decoded) == different - 2
    assert again.decoded == () and again.squares == {}


def test_another_store_measures_and_decodes_nothing_and_gives_the_same(known, data, tmp_path, monkeypatch):
    films = read_films(data, CLASSES)
    with FilmStore(tmp_path / "third") as store:
        measured = measure_films(data, films, store, min_side_px=32)
        usable = measured[measured["status"] == "accepted"]
        write_cache(tmp_path / "expected", data, usable, SIZES, store)
    no_decoder(monkeypatch)
    with FilmStore(tmp_path / "second") as store:
        read_part(known[-1], store)
        again = measure_films(data, films, store, min_side_px=32)
        write_cache(tmp_path / "found", data, usable, SIZES, store)
    pd.testing.assert_frame_equal(again, measured)
    assert hashes_below(tmp_path / "found") == hashes_below(tmp_path / "expected")


def test_a_part_that_is_read_twice_or_beside_other_films_changes_nothing(known, data, tmp_path, monkeypatch):
    films = read_films(data, CLASSES)
    with FilmStore(tmp_path / "second") as store:
        learn(data, films.iloc[10:20], SIZES, store, min_side_px=32)
        read_part(known[-1], store)
        read_part(known[-1], store)
        no_decoder(monkeypatch)
        assert learn(data, films, SIZES, store, min_side_px=32).new == 0


def test_a_film_that_is_not_the_listed_one_is_refused(data, tmp_path):
    films = read_films(data, CLASSES).assign(sha256="0" * 64)
    with FilmStore(tmp_path / "store") as store, pytest.raises(IntegrityError, match="changed since"):
        learn(data, films, SIZES, store, min_side_px=32)


def test_what_was_known_is_neither_written_again_nor_sent_unless_all_shall_be(data, tmp_path, monkeypatch):
    films = read_films(data, CLASSES)
    with FilmStore(tmp_path / "store") as store:
        usable = measure_films(data, films.iloc[:20], store, min_side_px=32)
        usable = usable[usable["status"] == "accepted"]
        write_cache(tmp_path / "cache", data, usable, SIZES, store)
        before = hashes_below(tmp_path / "store")
        added = learn(data, films, SIZES, store, min_side_px=32)
        store.tidy()
        after = hashes_below(tmp_path / "store")
        shards = {name for name in before if name.endswith(".npy")}
        assert len(shards) == 2 and {name: after[name] for name in shards} == {n: before[n] for n in shards}
        assert set(added.decoded) == set(films["sha256"]) - set(films["sha256"].iloc[:20])
        assert added.new == len(added.decoded)
        no_decoder(monkeypatch)
        every = learn(data, films, SIZES, store, min_side_px=32, everything=True)
    assert set(usable["sha256"]) < set(every.decoded)
    assert [len(np.load(file)) for file in every.squares.values()] == [len(every.decoded)] * 2
