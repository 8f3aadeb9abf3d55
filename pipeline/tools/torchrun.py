"""Starts one training as several processes of this host, by torchrun's launcher."""

import ctypes
import logging
import os
import signal
import socket
import sys

# Linux's prctl: which signal a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1
# Airflow kills a task 5 s after it asked it to end.
_GRACE_S = 3


def run_processes(count: int, module: str, *arguments: str) -> None:
    """Runs a module in `count` processes that know of one another, and waits for them.

    Raises:
        SystemExit: A process failed, with its exit code, or this one was told to end.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    # Gloo would listen on the address of the host's name, open to the network.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="training",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        rdzv_configs={"rank": 0},
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=_GRACE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else 128 - code) from None
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None


def end_with_parent() -> None:
    """Lets this process die when its launcher is killed: torchrun gives each a session of its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Returns a port of this machine alone that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
