"""Two ways side by side: alternating runs, pairwise ratios, one verdict line."""

import statistics
import time
from collections.abc import Callable

PAIRS = 5


def seconds(action: Callable[[], object]) -> float:
    """Runs an action once and returns the seconds it took."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def ratios(theirs: Callable[[], object], ours: Callable[[], object], pairs: int = PAIRS) -> list[float]:
    """Runs both alternately, after a warm-up of each, and returns theirs / ours of every pair."""
    theirs(), ours()
    return [seconds(theirs) / seconds(ours) for _ in range(pairs)]


def verdict(name: str, found: list[float], target: float, *, at_least: bool = True) -> bool:
    """Prints min and max of the ratios, then `name ratio target PASS|FAIL`; returns whether it passed."""
    median = statistics.median(found)
    passed = median >= target if at_least else median <= target
    print(f"{name}: {len(found)} pairs, median {median:.3g}, min {min(found):.3g}, max {max(found):.3g}")
    print(
        f"{name} {median:.3g} {'>=' if at_least else '<='}{target:g} {'PASS' if passed else 'FAIL'}",
        flush=True,
    )
    return passed
