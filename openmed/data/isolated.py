"""GDCM in processes of its own, because a damaged JPEG or JPEG-LS stream can make it end the process.

Found by the fuzz test: of 1,500 damaged films GDCM 3 ended its process with five in JPEG lossless (process
57) and one in JPEG-LS (an exception that nothing catches, or a wrong address). A process here serves many
films, one at a time; it is replaced when it died or hung.
"""

import contextlib
import io
import logging
import os
import select
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from openmed.errors import BadInput, ResourceError

LONGEST_S = 60
_LENGTH_BYTES = 8
_idle: list[subprocess.Popen] = []
_lock = threading.Lock()
os.register_at_fork(after_in_child=_idle.clear)  # a pipe has one user


def pixels_by_gdcm(data: bytes, name: str) -> np.ndarray:
    """Decodes the pixels of a DICOM file with GDCM.

    Args:
        data: Content of the file, whose header was checked.
        name: What to call it in an error.

    Returns:
        The stored values, (H, W) or (H, W, 3) red first, without any correction of unused bits.

    Raises:
        BadInput: GDCM finds it damaged, takes too long over it or ends over it.
    """
    with _process() as process:
        try:
            _send(process.stdin, data)
            answer = _receive(process.stdout, LONGEST_S)
        except (OSError, EOFError):  # it ended, or was too slow
            process.kill()
            process.wait()
            answer = b""
    if not answer:
        raise BadInput(f"{name} cannot be decoded: it is damaged")
    return np.load(io.BytesIO(answer), allow_pickle=False)


@contextlib.contextmanager
def _process() -> Iterator[subprocess.Popen]:
    """Lends a process that nobody else uses, and keeps it for the next film if it is alive."""
    with _lock:
        process = _idle.pop() if _idle else None
    if process is None or process.poll() is not None:
        process = _start()
    yield process
    if process.poll() is None:
        with _lock:
            _idle.append(process)


def _start() -> subprocess.Popen:
    command = [sys.executable, "-P", "-m", "openmed.data.isolated"]
    # A served model carries this package in a folder of its own.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nothing, env={**os.environ, "PYTHONPATH": path}
        )
    except OSError as error:
        raise ResourceError(f"no process for decoding can be started: {error.strerror}") from None


def _send(stream: BinaryIO, content: bytes) -> None:
    stream.write(len(content).to_bytes(_LENGTH_BYTES))
    stream.write(content)
    stream.flush()


def _receive(stream: BinaryIO, longest_s: float | None = None) -> bytes:
    if longest_s is not None and not select.select([stream], [], [], longest_s)[0]:
        raise EOFError
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        raise EOFError
    content = stream.read(int.from_bytes(length))
    if len(content) < int.from_bytes(length):
        raise EOFError
    return content


def _decoded(data: bytes) -> bytes:
    from pydicom.pixels import pixel_array

    from openmed.data.dicom_header import checked

    answer = io.BytesIO()
    try:
        film = checked(data, "the film")
        np.save(answer, pixel_array(film, decoding_plugin="gdcm", correct_unused_bits=False, raw=True))
    except Exception:  # of any kind: the stream is damaged
        return b""
    return answer.getvalue() if _is_silent() else b""


def _is_silent() -> bool:
    """Tells whether the decoder warned of nothing: it completes half a film, and says so on stderr alone."""
    printed = os.fstat(2).st_size
    os.ftruncate(2, 0)
    return not printed


def _serve() -> None:
    """Answers films from stdin on stdout until its owner is gone."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    warnings.simplefilter("ignore")  # of odd values in the header, which say nothing of the stream
    logging.disable()
    printed = tempfile.TemporaryFile(mode="ab")  # noqa: SIM115, it lives as long as the process
    for output in (1, 2):  # nothing that a library prints may come between the answers
        os.dup2(printed.fileno(), output)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            _send(target, _decoded(_receive(source)))


if __name__ == "__main__":
    _serve()
