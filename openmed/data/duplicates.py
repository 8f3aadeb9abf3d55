"""Near-duplicate films: candidates by perceptual hash, confirmed on the pixels."""

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from openmed.data.images import decode_film
from openmed.data.manifest import film_bytes, ordered_map

LEAST_LIKENESS = 0.8
"""Likeness from which two contents are the same film.

Measured on the films of a public paediatric set: 6,119 pairs of different films of one patient
reached 0.58 at most; copies within 8 bits of the hash that were compressed again (JPEG 20 to 90),
shrunk by half, shifted by 25 grey levels, windowed anew or given a gamma of 0.7 or 1.4 had 0.95 or more,
and those cut by two lines 0.87.
"""

_COMPARED_PX = 128
_DETAIL_SIGMA_PX = 4
_CROWDED = 512  # rows of one key from which their other bits are searched instead of comparing all


def near_duplicates(hashes: list[str], max_bits: int) -> np.ndarray:
    """Finds films whose perceptual hashes differ in few bits, exactly.

    Two hashes that differ in at most `max_bits` bits agree in at least one of `max_bits` + 1 bands
    (the pigeonhole principle), so only hashes that share a band are compared (Manku, Jain and
    Das Sarma, Detecting near-duplicates for web crawling, WWW 2007). Memory grows with the films
    and the pairs found, never with the pairs compared.

    Equal hashes are collapsed first. The pairs returned therefore are: every film with the first
    film of the same hash, and, of different hashes within `max_bits`, every pair of first films. They
    connect exactly the films that all pairs would connect, and n equal hashes cost n - 1 pairs.

    Args:
        hashes: One hex string a film, all of the same length, a multiple of 16 digits.
        max_bits: Pairs that differ in at most this many bits are reported; 0 finds equal hashes.

    Returns:
        int64 (pairs, 2), positions i < j, sorted.
    """
    if len(hashes) < 2:
        return np.zeros((0, 2), np.int64)
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(len(hashes), -1)
    order = np.lexsort(words.T)  # stable: the first film of a hash comes first
    starts = _starts(words[order])
    first = np.repeat(order[starts], np.diff(starts, append=len(order)))
    equal = np.stack([first, order], 1)[first != order]
    firsts = order[starts]
    near = firsts[_search(words[firsts], max_bits)] if max_bits else equal[:0]
    pairs = np.sort(np.concatenate([equal, near]), axis=1)
    return pairs[np.lexsort(pairs.T[::-1])].astype(np.int64)


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Tells how much of two films' detail is the same, whatever their size and exposure.

    Both are stretched to 128 x 128 pixels and their coarse shape (Gaussian, sigma 4 pixels) is taken
    away, because all frontal chest films share it; what is left is correlated (Pearson), which
    ignores brightness and contrast.

    Args:
        first: uint8 (H, W).
        second: uint8 (H', W').

    Returns:
        -1 to 1; 0 for films without detail. See `LEAST_LIKENESS`.
    """
    a, b = _detail(first), _detail(second)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / scale if scale > 1e-6 else 0.0


def same_film(
    data: Path, films: pd.DataFrame, pairs: Iterable[tuple[int, int]], tick: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Confirms pairs of films on their pixels, on all cores, each core reading one pair at a time.

    Args:
        data: The data folder.
        films: Columns path, sha256.
        pairs: Positions in `films`. Equal contents are the same film and are not read.
        tick: Called once a pair, for progress.

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


def _search(words: np.ndarray, max_bits: int) -> np.ndarray:
    """Pairs of positions within `max_bits`, each once."""
    bits = _varying(words)
    # Neighbouring cells of a film look alike, so a band takes every (max_bits + 1)-th bit.
    bands = [_runs(_key(words, bits[band :: max_bits + 1])) for band in range(max_bits + 1)]
    in_bands = sum(int((np.diff(starts, append=len(words)) ** 2).sum()) for _, starts in bands)
    if in_bands * 2 > len(words) ** 2:
        return _compare(words, np.arange(len(words)), np.zeros(1, np.int64), max_bits)
    found = np.zeros(0, np.int64)
    for order, starts in bands:
        parts = [found]
        for pairs in _in_band(words, order, starts, max_bits):
            low, high = np.sort(pairs, axis=1).T
            parts.append(low * len(words) + high)
        found = np.unique(np.concatenate(parts))
    return np.stack(np.divmod(found, len(words)), 1)


def _in_band(words: np.ndarray, order: np.ndarray, starts: np.ndarray, max_bits: int) -> Iterable[np.ndarray]:
    """Pairs among rows of the same key; crowds are searched by the bits in which they still vary."""
    lengths = np.diff(starts, append=len(order))
    crowded = lengths > _CROWDED
    for start, length in zip(starts[crowded], lengths[crowded], strict=True):
        rows = order[start : start + length]
        yield rows[_search(words[rows], max_bits)]
    kept = np.repeat(~crowded, lengths)
    firsts = np.cumsum(np.where(crowded, 0, lengths)) - lengths
    yield _compare(words, order[kept], firsts[~crowded], max_bits)


def _compare(words: np.ndarray, order: np.ndarray, starts: np.ndarray, max_bits: int) -> np.ndarray:
    """Compares each row with every later one of its run: one step a distance, so memory stays flat."""
    if not len(order):
        return np.zeros((0, 2), np.int64)
    columns = np.ascontiguousarray(words[order].T)
    ends = np.repeat(np.append(starts[1:], len(order)), np.diff(starts, append=len(order)))
    left, shift, found = np.arange(len(order)), 1, [np.zeros((0, 2), np.int64)]
    while len(left := left[left + shift < ends[left]]):
        near, bits = left, np.zeros(len(left), np.uint16)
        for column in columns:  # most rows are ruled out by the first words
            bits = bits + np.bitwise_count(column[near] ^ column[near + shift])
            near, bits = near[bits <= max_bits], bits[bits <= max_bits]
        if len(near):
            found.append(np.stack([order[near], order[near + shift]], 1))
        shift += 1
    return np.concatenate(found)


def _varying(words: np.ndarray) -> np.ndarray:
    """Numbers of the bits that are not the same in all rows: 64 * column + bit."""
    same = np.bitwise_and.reduce(words) | ~np.bitwise_or.reduce(words)
    shifts = np.arange(64, dtype=np.uint64)
    return np.flatnonzero(((same[:, None] >> shifts) & np.uint64(1)) == 0)


def _key(words: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Packs the chosen bits; more than 64 need not be told apart, since all pairs are compared anyway."""
    key = np.zeros(len(words), np.uint64)
    for bit in bits[:64]:
        key = (key << np.uint64(1)) | ((words[:, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1))
    return key


def _runs(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(key, kind="stable")
    return order, _starts(key[order, None])


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Positions at which a sorted table's row differs from the one before."""
    return np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))


def _detail(film: np.ndarray) -> np.ndarray:
    shape = (_COMPARED_PX, _COMPARED_PX)
    small = cv2.resize(film, shape, interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), _DETAIL_SIGMA_PX)
    return detail - detail.mean()
