"""Decoders in processes of their own: what a damaged or a hostile film makes of them stays there.

No header tells what JPEG lossless, JPEG-LS, JPEG 2000, RLE and TIFF will take: 19 KB of JPEG 2000 took 5 GB.
Of 1,500 films damaged by the fuzz test GDCM 3 ended its process with five in JPEG lossless (process 57), one
in JPEG-LS (an exception that nothing catches, or a wrong address). A process here serves many films, one at a
time, each within `CPU_S` and `MEMORY_BYTES`; it is replaced when it died or hung.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import cast

import numpy as np

from openmed.errors import BadInput, ResourceError

CPU_S = 8
"""Seconds of CPU time that the decoding of a film may take."""
MEMORY_BYTES = 1280 << 20
"""Memory that it may take, the file, the pixels and what lies between them together."""
LONGEST_S = 60
_LENGTH_BYTES = 8
_PIPE_BYTES = 1 << 20
_idle: list[subprocess.Popen] = []
_lock = threading.Lock()
os.register_at_fork(after_in_child=_idle.clear)  # a pipe has one user


def decode_isolated(decoder: str, data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a film in another process.

    The decoders are gdcm, pylibjpeg and rle, for pixels of a DICOM file whose header was checked, and tiff.

    Returns:
        For DICOM the stored values, (H, W) or (H, W, 3) red first, without any correction of unused bits,
        and 0. For TIFF the film, uint8 (H, W), and the bits a pixel was stored with.

    Raises:
        BadInput: It is damaged, or takes more than a film may.
    """
    with _process() as process:
        target, source = cast(BufferedWriter, process.stdin), cast(BufferedReader, process.stdout)
        try:
            send(target, json.dumps([decoder, name]).encode())
            send(target, data)
            head = json.loads(receive(source, LONGEST_S))
            pixels = receive(source)
        except (OSError, EOFError) as error:  # it ended, or was too slow
            process.kill()
            too_slow = isinstance(error, TimeoutError) or process.wait() == -signal.SIGXCPU
            process.wait()
            what = f"takes more than {CPU_S} s" if too_slow else "is damaged"
            raise BadInput(f"{name} cannot be decoded: it {what}") from None
    if "refused" in head:
        raise BadInput(head["refused"])
    return np.frombuffer(pixels, head["dtype"]).reshape(head["shape"]), head["bits"]


@contextlib.contextmanager
def _process() -> Iterator[subprocess.Popen]:
    """Lends a process that nobody else uses, and keeps it for the next film if it is alive."""
    with _lock:
        process = _idle.pop() if _idle else None
    if process is None or process.poll() is not None:
        process = _start()
    try:
        yield process
    finally:
        if process.poll() is None:
            with _lock:
                _idle.append(process)


def _start() -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "openmed.films.worker"]
    # A served model carries this package in a folder of its own.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment, pipesize=_PIPE_BYTES
        )
    except OSError as error:
        raise ResourceError(f"no process for decoding can be started: {error.strerror}") from None


def send(stream: BufferedWriter, content: bytes | memoryview) -> None:
    """Writes a message with its length before it."""
    stream.write(len(content).to_bytes(_LENGTH_BYTES))
    stream.write(content)
    stream.flush()


def receive(stream: BufferedReader, longest_s: float | None = None) -> bytearray:
    """Reads a message; EOFError when the other side ended, TimeoutError when it is silent for too long."""
    if longest_s is not None and not select.select([stream], [], [], longest_s)[0]:
        raise TimeoutError
    length = int.from_bytes(head := stream.read(_LENGTH_BYTES))
    if len(head) < _LENGTH_BYTES or length > MEMORY_BYTES:
        raise EOFError
    content = bytearray(length)
    if stream.readinto(content) < length:
        raise EOFError
    return content
