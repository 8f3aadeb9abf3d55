"""Near-duplicates: those of a naive loop, among many found without comparing all, confirmed on pixels."""

import itertools
import tracemalloc

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from openmed.dataset.duplicates import near_duplicates, same_film
from openmed.errors import IntegrityError
from openmed.files import sha256_file
from openmed.phantoms.phantom import draw


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
    st.integers(0, 60),
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


def test_every_pair_at_the_limit_is_found_wherever_its_bits_lie():
    rng = np.random.default_rng(3)
    table = rng.random((2000, 256)) < 0.5
    for place in range(0, 2000, 2):
        table[place + 1] = table[place]
        table[place + 1, rng.choice(256, 8, replace=False)] ^= True
    pairs = near_duplicates(hashes_of(table), 8)
    assert pairs.tolist() == [[place, place + 1] for place in range(0, 2000, 2)]
    assert len(near_duplicates(hashes_of(table), 7)) == 0


def connected(pairs, count):
    links = coo_array((np.ones(len(pairs)), tuple(np.asarray(pairs).T)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def many(copies=600, seed=4):
    """10,000 hashes, the last of them copies with up to 40 changed bits of those at the start."""
    rng = np.random.default_rng(seed)
    table = rng.random((10_000, 256)) < 0.5
    table[-copies:] = table[:copies]
    for place, bits in zip(range(10_000 - copies, 10_000), rng.integers(1, 41, copies), strict=True):
        table[place, rng.choice(256, bits, replace=False)] ^= True
    return table


def test_among_many_hashes_nearly_all_near_ones_are_found_and_no_other():
    texts = hashes_of(many())
    found, expected = near_duplicates(texts, 44).tolist(), blockwise(texts, 44)
    assert len(expected) == 600
    assert {tuple(pair) for pair in found} <= {tuple(pair) for pair in expected}
    assert len(found) >= 0.97 * len(expected)


def test_among_many_hashes_the_pairs_do_not_depend_on_the_run():
    texts = hashes_of(many())
    np.testing.assert_array_equal(near_duplicates(texts, 44), near_duplicates(texts, 44))


def test_among_many_hashes_the_opposite_of_a_film_is_not_near_it():
    table = many()
    table[1] = ~table[0]
    assert [0, 1] not in near_duplicates(hashes_of(table), 44).tolist()


def test_a_crowd_of_films_that_look_alike_is_connected():
    rng = np.random.default_rng(6)
    table = rng.random((9000, 256)) < 0.5
    table[:500] = table[0] ^ (rng.random((500, 256)) < 0.06)
    group = connected(near_duplicates(hashes_of(table), 44), len(table))
    assert len(set(group[:500])) == 1
    assert len(set(group)) == 8501


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
    return [draw(number, 1, pneumonia=bool(number % 2), size_px=192).film for number in range(2)]


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
