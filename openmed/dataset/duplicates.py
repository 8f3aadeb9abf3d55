"""Near-duplicate films: candidates by perceptual hash, confirmed on the pixels."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from openmed.archives import film_bytes
from openmed.concurrency import ordered_map
from openmed.films.images import decode_film
from openmed.measurement.perceptual import HASH_BITS, LEAST_LIKENESS, likeness

_ALL_COMPARED = 8192  # hashes up to which all pairs are compared
_ORDERS, _NEIGHBOURS = 40, 12
_WORDS = HASH_BITS // 64


def near_duplicates(hashes: list[str], max_bits: int) -> NDArray[np.int64]:
    """Finds films whose perceptual hashes differ in few bits.

    Up to 8,192 different hashes are all compared. More are sorted 40 times, each time by other bytes of the
    hash first, and each is compared with the 12 that follow it (Charikar, Similarity estimation techniques
    from rounding algorithms, STOC 2002; the idea of Bawa, Condie and Ganesan, LSH forest, WWW 2005). That is
    linear in the films and finds a pair unless its bits differ everywhere it would be looked for; see
    docs/films.md for the share that it finds. Memory grows with the films and the pairs found.

    Equal hashes are collapsed first. The pairs returned therefore are: every film with the first
    film of the same hash, and, of different hashes within `max_bits`, pairs of first films: n equal hashes
    cost n - 1 pairs. Where more than 12 hashes lie close together, not every pair of them is returned, but
    pairs that connect them.

    The hashes are hex texts of 64 digits, one a film.

    Returns:
        int64 (pairs, 2), positions i < j of films within `max_bits`, sorted.
    """
    if len(hashes) < 2:
        return np.zeros((0, 2), np.int64)
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(len(hashes), _WORDS)
    order = np.lexsort(words.T)  # stable: the first film of a hash comes first
    ordered = words[order]
    starts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))
    first = np.repeat(order[starts], np.diff(starts, append=len(order)))
    equal = np.stack([first, order], 1)[first != order]
    firsts = order[starts]
    near = firsts[_search(words[firsts], max_bits)] if max_bits else equal[:0]
    pairs = np.sort(np.concatenate([equal, near]), axis=1)
    return pairs[np.lexsort(pairs.T[::-1])].astype(np.int64)


def same_film(
    data: Path, films: pd.DataFrame, pairs: Iterable[tuple[int, int]], tick: Callable[[], None] = lambda: None
) -> NDArray[np.bool_]:
    """Confirms pairs of films on their pixels, on all cores, each core reading one pair at a time.

    Of films with the columns path and sha256, below `data`. Equal contents are the same film and are not
    read; `tick` is called once a pair.

    Returns:
        bool, one a pair.

    Raises:
        IntegrityError: A film is gone or is not what its sha256 says.
    """
    paths, digests = films["path"].to_numpy(), films["sha256"].to_numpy()

    def confirm(pair: tuple[int, int]) -> bool:
        i, j = pair
        if digests[i] == digests[j]:
            return True
        one, other = (
            decode_film(film_bytes(data, paths[place], digests[place]), paths[place]) for place in (i, j)
        )
        return likeness(one, other) >= LEAST_LIKENESS

    results = []
    for result in ordered_map(confirm, pairs):
        results.append(result)
        tick()
    return np.array(results, bool)


def _search(words: np.ndarray, max_bits: int) -> NDArray[np.int64]:
    """Pairs of positions within `max_bits`, each once."""
    if len(words) <= _ALL_COMPARED:
        orders, neighbours = iter([np.arange(len(words))]), len(words) - 1
    else:
        orders, neighbours = _orders(words), _NEIGHBOURS
    keys = np.zeros(0, np.int64)
    for order in orders:
        low, high = np.sort(_compare(words, order, neighbours, max_bits), axis=1).T
        keys = np.union1d(keys, low * len(words) + high)
    return np.stack(np.divmod(keys, len(words)), 1)


def _orders(words: np.ndarray) -> Iterator[np.ndarray]:
    """Sorts the hashes many times, each time by other bytes first: near ones come to lie side by side."""
    octets, rng = words.view(np.uint8), np.random.default_rng(0)
    positions = np.arange(len(words), dtype=np.uint64)
    position_bits = np.uint64(len(words).bit_length())
    for _ in range(_ORDERS):
        chosen = rng.permutation(octets.shape[1])[:8]
        key = np.ascontiguousarray(octets[:, chosen]).view(np.uint64).ravel()
        # To sort values that end in their own position takes a fraction of the time of an argsort.
        ranked = np.sort(key >> position_bits << position_bits | positions)
        yield (ranked & ((np.uint64(1) << position_bits) - np.uint64(1))).astype(np.int64)


def _compare(words: np.ndarray, order: np.ndarray, neighbours: int, max_bits: int) -> np.ndarray:
    """Compares each row with the next ones of an order: one step a distance, so memory stays flat."""
    columns = np.ascontiguousarray(words[order].T)
    near_pairs = [np.zeros((0, 2), np.int64)]
    for shift in range(1, min(neighbours, len(order) - 1) + 1):
        bits = sum(np.bitwise_count(column[shift:] ^ column[:-shift]) for column in columns)
        near = np.flatnonzero(bits <= max_bits)
        if len(near):
            pairs = np.stack([order[near], order[near + shift]], 1)
            # A uint8 counts 256 bits as 0.
            bits = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1)
            near_pairs.append(pairs[bits <= max_bits])
    return np.concatenate(near_pairs)
