"""Who runs the services of a state folder, and how somebody else ends them.

A lock says that they run. A record beside it says which processes they are: the one of `openmed up` and
the components, which outlive it when it is killed.
"""

import fcntl
import io
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import ResourceError
from openmed.files import read_json, write_json

if TYPE_CHECKING:
    from psutil import Process

_KILLED_WITHIN_S = 5.0


def take_lock(home: Path) -> io.TextIOWrapper | None:
    """Returns the lock of a state folder's services, held; None when somebody holds it.

    It lives as long as any process that inherited it, also when the one that took it was killed.
    """
    lock = (home / "services.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def record(home: Path, components: Mapping[str, int]) -> None:
    """Writes down that this process runs the components, name -> process id."""
    from psutil import Process

    processes = {"up": os.getpid(), **components}
    started = {name: [pid, Process(pid).create_time()] for name, pid in processes.items()}
    write_json(home / "services.json", started)


def ending_signals() -> list[signal.Signals]:
    """Returns the signals that end a command, that of a closed terminal among them unless nohup took it."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


def down(home: Path) -> int:
    """Ends the services of a state folder, whoever started them and whatever became of him.

    Returns:
        How many processes were told to end; 0 when nothing was running.

    Raises:
        ResourceError: Something still runs.
    """
    if not home.is_dir() or _is_free(home):
        return 0
    recorded = _recorded(home)
    starter = recorded.pop("up", None)
    pids = [process.pid for process in recorded.values()]
    family = {*recorded.values()} | descendants(pids)
    if starter is not None:
        starter.terminate()
        _wait(home, within_s=45)
    family |= descendants(pids) | _of_this_home(home)
    for pid in pids:
        signal_group(pid, signal.SIGTERM)
    _wait(home, within_s=10)
    kill(family)
    if not _wait(home, _KILLED_WITHIN_S):
        raise ResourceError(f"the services of {home} still run: look for their processes and end them")
    return len(family) + (starter is not None)


def descendants(pids: Iterable[int]) -> "set[Process]":
    """Returns all processes below some. A stage has a session of its own, so no group holds them all."""
    import psutil

    below: set[Process] = set()
    for pid in pids:
        with suppress(psutil.Error):
            below.update(psutil.Process(pid).children(recursive=True))
    return below


def kill(processes: "set[Process]") -> None:
    """Ends processes by force, this one excepted, and waits for them."""
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            if process.pid != os.getpid():
                process.kill()
    psutil.wait_procs(processes, _KILLED_WITHIN_S)


def signal_group(group: int, number: int) -> bool:
    """Sends a signal to a process group; False when no process of it is left."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)
        return True
    return False


def _is_free(home: Path) -> bool:
    if lock := take_lock(home):
        lock.close()
    return lock is not None


def _wait(home: Path, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (free := _is_free(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return free


def _recorded(home: Path) -> "dict[str, Process]":
    """The recorded processes that still live: a number may belong to another process by now."""
    import psutil

    path, living = home / "services.json", {}
    for name, (pid, started) in (read_json(path) if path.is_file() else {}).items():
        with suppress(psutil.Error):
            if psutil.Process(pid).create_time() == started:
                living[name] = psutil.Process(pid)
    return living


def _of_this_home(home: Path) -> "set[Process]":
    """Processes that a component of this state folder has left behind."""
    import psutil

    left = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME") == str(home / "airflow"):
                left.add(process)
    return left
