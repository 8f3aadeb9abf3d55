"""How errors reach a user, and how long work shows its progress."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from openmed.errors import OpenMedError

_LOG_EVERY_S = 10


def guarded(action: Callable[[], None], *, debug: bool = False) -> int:
    """Runs an action; an error becomes a sentence on stderr (and with `debug` a traceback) and an exit code.

    Returns:
        0 done, 2 bad input, 3 integrity, 4 resource, 5 a diverged training, 130 or 143 interrupted, 1 a bug.
    """
    try:
        action()
    except OpenMedError as error:
        return _say(str(error), error.exit_code, debug)
    except MemoryError:
        return _say("the memory is not enough: lower the batch or the image size", 4, debug)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _say(f"{error.strerror or error}{where}", 4, debug)
    except KeyboardInterrupt:
        return _say("interrupted; run the same command to go on", 130, debug)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _say(sentence: str, code: int, debug: bool) -> int:
    # Not by `variables`, which fails where what is to be told is that one of them is impossible.
    if debug or os.environ.get("OPENMED_DEBUG"):
        traceback.print_exc()
    print(f"openmed: {sentence}", file=sys.stderr, flush=True)
    return code


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Shows a bar with the time left on a terminal, and a line every ten seconds in a log.

    Yields:
        A function to call once an item.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        # On stderr: stdout may be a file that wants nothing but the result.
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    started, logged, done = time.monotonic(), time.monotonic(), 0

    def tick() -> None:
        nonlocal done, logged
        done += 1
        now = time.monotonic()
        if now - logged > _LOG_EVERY_S:
            logged, left = now, (now - started) / done * (total - done)
            print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)

    yield tick
