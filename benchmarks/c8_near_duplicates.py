"""C8: near-duplicate search among 100,000 hashes, ours against comparing every pair in blocks.

The hashes are made by code. Their bits are as correlated as a film's: the grey levels of 17 x 16
cells are drawn from a normal distribution with the mean and covariance of 200 phantoms (shrunk
towards independence, because 200 films cannot span 272 cells), then hashed as a film is. At this shrinkage
5,216 hashes share a band about as often as the 5,216 films of a public paediatric set do (40,500 against
36,900 pairs to compare), and unrelated ones come nearer to one another. Copies with 0
to 8 changed bits are planted, among them one crowd of 2,000 equal hashes and one of 3,000 films
whose lower half is black.

Run: python benchmarks/c8_near_duplicates.py [--films 100000] [--pairs 5] [--rows 1.0]
With --rows below 1 brute force compares only that part of the rows with all others, its time is divided
by that part, and the agreement is checked on those rows; the output says so.
"""

import argparse
import itertools
import subprocess
import sys
import time

import cv2
import numpy as np
from pairs import verdict

from openmed.data.duplicates import near_duplicates
from openmed.data.measure import HASH_SIDE
from openmed.data.phantom import draw

cv2.setNumThreads(1)  # numpy compares in one thread, on both sides
MAX_BITS = 8
TARGET = 50.0
SHRINKAGE = 0.005
_BLOCK_CELLS = 1 << 22


def hashes_like_films(films: int, seed: int = 0) -> np.ndarray:
    """Draws hashes, uint8 (films, 32), of which 8 % are planted copies of others."""
    rng = np.random.default_rng(seed)
    width, height = HASH_SIDE + 1, HASH_SIDE
    phantoms = (draw(n, 1, pneumonia=bool(n % 4), size_px=96).film for n in range(200))
    cells = np.stack([cv2.resize(film, (width, height), interpolation=cv2.INTER_AREA) for film in phantoms])
    cells = cells.reshape(len(cells), -1).astype(float)
    covariance = (1 - SHRINKAGE) * np.cov(cells.T) + SHRINKAGE * np.diag(cells.var(0))
    root = np.linalg.cholesky(covariance)
    hashes = np.empty((films, width * height // 8 - 2), np.uint8)
    for start in range(0, films, 10_000):
        part = slice(start, min(start + 10_000, films))
        drawn = cells.mean(0) + rng.standard_normal((part.stop - start, width * height)) @ root.T
        grid = drawn.clip(0, 255).reshape(-1, height, width)
        if start == 0:
            grid[: films * 3 // 100, height // 2 :] = 0  # collimated
        hashes[part] = np.packbits((grid[:, :, 1:] > grid[:, :, :-1]).reshape(len(grid), -1), axis=1)
    _plant(hashes, rng)
    return hashes[rng.permutation(films)]


def _plant(hashes: np.ndarray, rng: np.random.Generator) -> None:
    """Turns the last 6 % into copies with 0 to 8 changed bits, and 2 % before them into one crowd."""
    films = len(hashes)
    copies, crowd = films * 6 // 100, films * 2 // 100
    hashes[-copies:] = hashes[rng.integers(0, films - copies - crowd, copies)]
    for place in range(films - copies, films):
        for bit in rng.choice(256, rng.integers(0, MAX_BITS + 1), replace=False):
            hashes[place, bit // 8] ^= 1 << (bit % 8)
    hashes[-copies - crowd : -copies] = hashes[0]


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


def spelt_out(hashes: np.ndarray, pairs: np.ndarray, rows: int) -> np.ndarray:
    """All pairs of which ours are the short form: every film stands for the first of its hash."""
    first = np.arange(len(hashes))
    equal = (hashes[pairs[:, 0]] == hashes[pairs[:, 1]]).all(1)
    first[pairs[equal, 1]] = pairs[equal, 0]
    order = np.argsort(first, kind="stable")
    bounds = np.searchsorted(first[order], np.arange(len(hashes) + 1))
    members = [order[a:b] for a, b in itertools.pairwise(bounds)]
    crosses = [np.stack(np.triu_indices(len(m), 1), 1) for m in members]
    whole = [m[c] for m, c in zip(members, crosses, strict=True) if len(c)]
    whole += [np.stack(np.meshgrid(members[a], members[b]), -1).reshape(-1, 2) for a, b in pairs[~equal]]
    every = np.sort(np.concatenate(whole), axis=1)
    every = every[every[:, 0] < rows]
    return every[np.lexsort(every.T[::-1])]


def timed(function, *arguments):
    """Returns the result and the seconds it took."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started


def peak_growth_mb(table: np.ndarray) -> float:
    """Growth of the largest resident memory by one search, in a process that did nothing else."""
    code = (
        "import pathlib, sys\n"
        "from openmed.data.duplicates import near_duplicates\n"
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
    ratios = []
    for turn in range(arguments.pairs):
        ours, seconds = timed(near_duplicates, texts, MAX_BITS)
        theirs, slow = timed(brute_force, words, MAX_BITS, rows)
        np.testing.assert_array_equal(spelt_out(table, ours, rows), theirs)
        ratios.append(slow / part / seconds)
        print(f"{turn + 1}: ours {seconds:.2f} s, brute force {slow / part:.1f} s, {len(theirs)} equal pairs")
    if part < 1:
        print(f"brute force ran {part:.1%} of the comparisons; its time is stated for all of them")
    print(f"{len(words)} hashes, {len(ours)} pairs returned")
    print(f"peak memory grew by {growth[1]:.0f} MB, at a quarter of the hashes by {growth[0]:.0f} MB")
    return int(not verdict("C8", ratios, TARGET))


if __name__ == "__main__":
    sys.exit(main())
