"""C8: near-duplicate search among 100,000 hashes, ours against comparing every pair in blocks.

The hashes are made by code. Their bits are as correlated as a film's: the lowest frequencies are drawn from
a normal distribution with the mean and covariance of 400 phantoms, shrunk towards independence so that of
5,216 hashes about as many pairs lie within 44 bits as of the 5,216 films of a public paediatric set (about
90 against 74); at larger distances they lie closer together. Copies with 0 to about 45 changed bits are
planted, and among all are one crowd of 2,000 equal hashes and one of 3,000 films whose lower half is black.

Brute force finds every pair within 44 bits. The share of those whose films our pairs connect must be 0.98.

Run: python benchmarks/c8_near_duplicates.py [--films 100000] [--pairs 5] [--rows 1.0]
With --rows below 1 brute force compares only that part of the rows with all others, its time is divided
by that part, and the agreement is checked on those rows; the output says so.
"""

import argparse
import subprocess
import sys
import time

import cv2
import numpy as np
from pairs import verdict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from openmed.dataset.duplicates import near_duplicates
from openmed.measurement.perceptual import HASH_BITS, HASHED_PX, LOWEST, low_frequencies
from openmed.phantoms.phantom import draw

cv2.setNumThreads(1)  # numpy compares in one thread, on both sides
MAX_BITS = 44
TARGET, LEAST_RECALL = 50.0, 0.98
SHRINKAGE, MOST_NOISE = 0.35, 0.5
_BLOCK_CELLS = 1 << 22


def hashes_like_films(films: int, seed: int = 0) -> np.ndarray:
    """Draws hashes, uint8 (films, 32), of which 8 % are planted copies of others."""
    rng = np.random.default_rng(seed)
    drawn = [low_frequencies(draw(n, 1, pneumonia=bool(n % 4), size_px=96).film) for n in range(400)]
    seen = np.stack(drawn).astype(float)
    covariance = (1 - SHRINKAGE) * np.cov(seen.T) + SHRINKAGE * np.diag(seen.var(0))
    root = np.linalg.cholesky(covariance)
    frequencies = seen.mean(0) + rng.standard_normal((films, HASH_BITS)) @ root.T
    collimated = films * 3 // 100
    frequencies[:collimated] = [_half_black(row) for row in frequencies[:collimated]]
    _plant(frequencies, seen.std(0), rng)
    return np.packbits(frequencies[rng.permutation(films)] > 0, axis=1)


def _half_black(frequencies: np.ndarray) -> np.ndarray:
    """The frequencies of the same film with nothing in its lower half."""
    transform = np.zeros((HASHED_PX, HASHED_PX))
    transform[LOWEST] = frequencies
    contrast = cv2.idct(transform)
    contrast[HASHED_PX // 2 :] = 0
    return cv2.dct(contrast)[LOWEST]


def _plant(frequencies: np.ndarray, spread: np.ndarray, rng: np.random.Generator) -> None:
    """Turns the last 6 % into noisy copies, and 2 % before them into one crowd of equals."""
    films = len(frequencies)
    copies, crowd = films * 6 // 100, films * 2 // 100
    noise = rng.standard_normal((copies, HASH_BITS)) * spread * rng.uniform(0, MOST_NOISE, (copies, 1))
    frequencies[-copies:] = frequencies[rng.integers(0, films - copies - crowd, copies)] + noise
    frequencies[-copies - crowd : -copies] = frequencies[0]


def brute_force(words: np.ndarray, max_bits: int, rows: int) -> np.ndarray:
    """Compares the first `rows` rows with all later ones, block by block; pairs i < j, sorted."""
    found = []
    step = max(1, _BLOCK_CELLS // len(words))
    for start in range(0, rows, step):
        block = words[start : min(start + step, rows)]
        distance = np.zeros((len(block), len(words) - start), np.uint16)
        for column in range(words.shape[1]):
            distance += np.bitwise_count(block[:, column, None] ^ words[None, start:, column])
        i, j = np.nonzero(distance <= max_bits)
        found.append(np.stack([i, j], 1)[i < j] + start)
    return np.concatenate(found).astype(np.int64)


def recall(pairs: np.ndarray, every: np.ndarray, films: int) -> float:
    """Share of the pairs of brute force whose films ours connect."""
    links = coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(films, films))
    group = connected_components(links, directed=False)[1]
    return float((group[every[:, 0]] == group[every[:, 1]]).mean())


def timed(function, *arguments):
    """Returns the result and the CPU seconds it took: both sides run in one thread."""
    started = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - started


def peak_growth_mb(table: np.ndarray) -> float:
    """Growth of the largest resident memory by one search, in a process that did nothing else."""
    code = (
        "import pathlib, sys\n"
        "from openmed.dataset.duplicates import near_duplicates\n"
        "status = pathlib.Path('/proc/self/status')\n"  # ru_maxrss would be the parent's
        "peak = lambda: int(status.read_text().split('VmHWM:')[1].split()[0])\n"
        "texts = sys.stdin.read().split()\n"
        "before = peak()\n"
        f"near_duplicates(texts, {MAX_BITS})\n"
        "print(peak() - before)\n"
    )
    texts = "\n".join(row.tobytes().hex() for row in table)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=texts, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> int:
    """Times both sides in turn, checks that they agree and prints the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--films", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=float, default=1.0, help="part of the rows that brute force compares")
    arguments = parser.parse_args()
    table = hashes_like_films(arguments.films)
    texts = [row.tobytes().hex() for row in table]
    words = np.ascontiguousarray(table).view(np.uint64)
    rows = round(arguments.rows * len(words))
    # The first rows have more later rows to be compared with than the last: the part of all comparisons.
    part = 1 - (1 - rows / len(words)) ** 2
    growth = [peak_growth_mb(table[: len(table) // share]) for share in (4, 1)]
    near_duplicates(texts, MAX_BITS)  # warm-up
    brute_force(words, MAX_BITS, rows // 50)
    ratios, shares = [], []
    for turn in range(arguments.pairs):
        ours, seconds = timed(near_duplicates, texts, MAX_BITS)
        theirs, slow = timed(brute_force, words, MAX_BITS, rows)
        shares.append(recall(ours, theirs, len(words)))
        ratios.append(slow / part / seconds)
        print(f"{turn + 1}: ours {seconds:.2f} s, brute force {slow / part:.1f} s, {len(theirs)} pairs")
    if part < 1:
        print(f"brute force ran {part:.1%} of the comparisons; its time is stated for all of them")
    print(f"{len(words)} hashes, {len(ours)} pairs returned")
    print(f"peak memory grew by {growth[1]:.0f} MB, at a quarter of the hashes by {growth[0]:.0f} MB")
    print(
        f"of the pairs of brute force, {min(shares):.4f} are connected by ours; {LEAST_RECALL} are asked for"
    )
    return int(not (verdict("C8", ratios, TARGET) and min(shares) >= LEAST_RECALL))


if __name__ == "__main__":
    sys.exit(main())
