"""What every stage shares: where artefacts lie, how errors reach a user, how work shows progress."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import OpenMedError
from pipeline.params import Params
from pipeline.project import state_folder

if TYPE_CHECKING:
    from openmed.data.store import FilmStore

DATA = Path("data")
DECISIONS = Path("decisions.csv")
MANIFEST = Path("artifacts/validate/manifest.parquet")
SPLIT = Path("artifacts/split/split.parquet")
MANIFEST_COLUMNS = (
    *("id", "path", "label", "patient", "declared_split", "sha256"),
    *("status", "reason", "perceptual_hash", "embedding"),
)
SPLIT_COLUMNS = ("id", "patient", "label", "split")
CACHE = Path("artifacts/preprocess")
ROWS = Path("artifacts/resample/rows.parquet")
VAULT = Path("weights")
_LOG_EVERY_S = 10


def folder(stage: str, architecture: str | None = None) -> Path:
    """Where a stage writes, relative to the project."""
    return Path("artifacts", stage, architecture or "")


def film_store() -> "FilmStore":
    """The films that this machine has read before, whatever the run; in the state folder."""
    from openmed.data.store import FilmStore

    return FilmStore(state_folder() / "films")


def guarded(action: Callable[[], None], *, debug: bool = False) -> int:
    """Runs an action; an error becomes one sentence on stderr and an exit code.

    Args:
        action: What to do.
        debug: Show the traceback too.

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
    started, said, done = time.monotonic(), time.monotonic(), 0

    def tick() -> None:
        nonlocal done, said
        done += 1
        now = time.monotonic()
        if now - said > _LOG_EVERY_S:
            said, left = now, (now - started) / done * (total - done)
            print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)

    yield tick


__all__ = [
    "CACHE",
    "DATA",
    "DECISIONS",
    "MANIFEST",
    "MANIFEST_COLUMNS",
    "ROWS",
    "SPLIT",
    "SPLIT_COLUMNS",
    "VAULT",
    "Params",
    "film_store",
    "folder",
    "guarded",
    "progress",
]
