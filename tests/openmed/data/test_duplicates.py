"""Near-duplicates: exactly those of a naive loop, found without comparing all, confirmed on pixels."""

import itertools
import os
import tracemalloc
import zipfile
from collections import defaultdict

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from openmed.data import duplicates
from openmed.data.duplicates import LEAST_LIKENESS, likeness, near_duplicates, same_film
from openmed.data.images import decode_film
from openmed.data.phantom import draw
from openmed.data.sources import patient_of
from openmed.errors import IntegrityError
from openmed.files import sha256_file

REAL_FILMS = os.environ.get("OPENMED_REAL_FILMS", "")


def naive(hashes, max_bits):
    """All pairs of first films of a hash within max_bits, and each film with the first of its hash."""
    firsts = {}
    for place, text in enumerate(hashes):
        firsts.setdefault(text, place)
    pairs = [[firsts[text], place] for place, text in enumerate(hashes) if firsts[text] != place]
    for (a, i), (b, j) in itertools.combinations(firsts.items(), 2):
        if (int(a, 16) ^ int(b, 16)).bit_count() <= max_bits:
            pairs.append(sorted((i, j)))
    return sorted(pairs)


def blockwise(hashes, max_bits):
    """The same by comparing every pair, in numpy."""
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(len(hashes), -1)
    pairs = []
    for i in range(len(words)):
        bits = np.bitwise_count(words[i] ^ words[i + 1 :]).sum(axis=1)
        pairs += [[i, i + 1 + j] for j in np.flatnonzero(bits <= max_bits)]
    return pairs


def hashes_of(table):
    return [row.tobytes().hex() for row in np.packbits(table, axis=1)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.binary(min_size=32, max_size=32), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.lists(st.integers(0, 255), max_size=7)), max_size=25),
    st.integers(0, 20),
)
def test_near_duplicates_are_those_a_naive_loop_finds(hashes, copies, max_bits):
    numbers = [int.from_bytes(value) for value in hashes]
    for source, flips in copies:
        if source < len(hashes):
            numbers.append(numbers[source])
            for bit in flips:
                numbers[-1] ^= 1 << bit
    texts = [number.to_bytes(32).hex() for number in numbers]
    assert near_duplicates(texts, max_bits).tolist() == naive(texts, max_bits)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 200), st.integers(2, 40))
def test_crowded_bands_lose_no_pair(seed, max_bits, varying, crowd):
    """Few bits vary, so that almost all films share bands and each crowd is searched by itself."""
    rng = np.random.default_rng(seed)
    table = np.zeros((150, 256), bool)
    places = rng.permutation(256)[:varying]
    table[:, places] = rng.random((150, varying)) < rng.choice([0.02, 0.1, 0.5], varying)
    texts = hashes_of(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_CROWDED", crowd)
        assert near_duplicates(texts, max_bits).tolist() == naive(texts, max_bits)


def test_bands_in_which_every_run_is_crowded_lose_no_pair(monkeypatch):
    monkeypatch.setattr(duplicates, "_CROWDED", 2)
    table = np.zeros((150, 256), bool)
    table[::2, 7] = table[::3, 9] = table[::5, 11] = True
    assert near_duplicates(hashes_of(table), 1).tolist() == naive(hashes_of(table), 1)


def test_every_pair_at_the_limit_is_found_wherever_its_bits_lie():
    rng = np.random.default_rng(3)
    table = rng.random((2000, 256)) < 0.5
    for place in range(0, 2000, 2):
        table[place + 1] = table[place]
        table[place + 1, rng.choice(256, 8, replace=False)] ^= True
    pairs = near_duplicates(hashes_of(table), 8)
    assert pairs.tolist() == [[place, place + 1] for place in range(0, 2000, 2)]
    assert len(near_duplicates(hashes_of(table), 7)) == 0


def test_films_that_mostly_look_alike_give_the_pairs_of_a_blockwise_comparison():
    rng = np.random.default_rng(4)
    table = rng.random((3000, 256)) < np.where(np.arange(256) % 3, 0.01, 0.06)
    texts = sorted(set(hashes_of(table)))
    found = near_duplicates(texts, 8).tolist()
    assert found == blockwise(texts, 8)
    assert len(found) > 100


def test_a_crowd_of_equal_hashes_costs_a_pair_a_film_and_little_memory():
    rng = np.random.default_rng(5)
    texts = ["0" * 63 + "1"] * 20_000 + hashes_of(rng.random((20_000, 256)) < 0.5)
    near_duplicates(texts[:10], 8)
    tracemalloc.start()
    pairs = near_duplicates(texts, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs.tolist() == [[0, place] for place in range(1, 20_000)]
    assert peak < 40_000 * 1000  # bytes; comparing all pairs at once would need 800 million cells


@pytest.mark.parametrize("hashes", [[], ["f" * 64]])
def test_fewer_than_two_films_have_no_pairs(hashes):
    assert near_duplicates(hashes, 5).shape == (0, 2)


@pytest.fixture(scope="module")
def films():
    return [draw(number, 1, pneumonia=bool(number % 2), size_px=192).film for number in range(8)]


def jpeg(film, quality):
    return cv2.imdecode(cv2.imencode(".jpeg", film, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], 0)


CHANGES = {
    "compressed": lambda film: jpeg(film, 40),
    "half the size": lambda film: cv2.resize(film, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brighter": lambda film: cv2.add(film, np.full_like(film, 20)),
    "darker": lambda film: cv2.subtract(film, np.full_like(film, 20)),
    "windowed": lambda film: (film * 0.6 + 50).astype(np.uint8),
    "gamma": lambda film: (255 * (film / 255) ** 0.7).round().astype(np.uint8),
    "cut by two lines": lambda film: film[2:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_film(films, change):
    assert min(likeness(film, CHANGES[change](film)) for film in films) > LEAST_LIKENESS + 0.05


def test_films_of_other_patients_are_other_films(films):
    alike = [likeness(a, b) for a, b in itertools.combinations(films, 2)]
    assert max(alike) < LEAST_LIKENESS


def test_the_likeness_is_the_correlation_of_the_detail(films):
    def detail(film):
        small = cv2.resize(film, (128, 128), interpolation=cv2.INTER_AREA).astype(np.float64)
        return small - gaussian_filter(small, 4, mode="mirror", truncate=4)

    for a, b in itertools.pairwise(films):
        expected = np.corrcoef(detail(a).ravel(), detail(b).ravel())[0, 1]
        assert likeness(a, b) == pytest.approx(expected, abs=1e-4)
        assert likeness(a, b) == pytest.approx(likeness(b, a))


def test_films_without_detail_are_not_taken_for_one_film():
    assert likeness(np.full((64, 64), 9, np.uint8), np.full((64, 64), 90, np.uint8)) == 0


@pytest.fixture
def stored(films, tmp_path):
    """A film, a copy compressed again, another film, and the first once more."""
    for name, film, quality in (("a", films[0], 95), ("b", films[0], 60), ("c", films[1], 95)):
        cv2.imwrite(str(tmp_path / f"{name}.jpeg"), film, (cv2.IMWRITE_JPEG_QUALITY, quality))
    (tmp_path / "d.jpeg").write_bytes((tmp_path / "a.jpeg").read_bytes())
    paths = [f"{name}.jpeg" for name in "abcd"]
    return tmp_path, pd.DataFrame({"path": paths, "sha256": [sha256_file(tmp_path / p) for p in paths]})


def test_pairs_are_confirmed_on_their_pixels(stored):
    folder, table = stored
    ticks = []
    pairs = np.array([[0, 1], [0, 2], [1, 2], [0, 3]])
    same = same_film(folder, table, pairs, lambda: ticks.append(1))
    assert same.tolist() == [True, False, False, True]
    assert len(ticks) == 4


def test_no_pairs_are_confirmed_as_none(stored):
    assert same_film(*stored, np.zeros((0, 2), np.int64)).shape == (0,)


def test_equal_contents_are_the_same_film_without_being_read(stored):
    folder, table = stored
    (folder / "a.jpeg").unlink()
    assert same_film(folder, table, [(0, 3)]).tolist() == [True]


def test_a_film_that_was_changed_or_is_gone_is_named(stored):
    folder, table = stored
    content = bytearray((folder / "b.jpeg").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "b.jpeg").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"b\.jpeg was changed after it was validated"):
        same_film(folder, table, [(0, 1)])
    (folder / "c.jpeg").unlink()
    with pytest.raises(IntegrityError, match=r"c\.jpeg cannot be read any more"):
        same_film(folder, table, [(0, 2)])


@pytest.mark.skipif(not REAL_FILMS, reason="OPENMED_REAL_FILMS names no zip of films by patient")
def test_real_films_of_one_patient_are_told_apart_and_their_copies_are_not():
    by_patient = defaultdict(dict)
    with zipfile.ZipFile(REAL_FILMS) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpeg"):
                content = archive.read(name)
                by_patient[patient_of(name)[0]][content] = content
    several = [list(contents)[:4] for contents in by_patient.values() if len(contents) > 1][:120]
    apart, copies = [], []
    for contents in several:
        films = [decode_film(content) for content in contents]
        apart += [likeness(a, b) for a, b in itertools.combinations(films, 2)]
        copies += [likeness(films[0], change(films[0])) for change in CHANGES.values()]
    assert max(apart) < LEAST_LIKENESS - 0.1
    assert min(copies) > LEAST_LIKENESS
