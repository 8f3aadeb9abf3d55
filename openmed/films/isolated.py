"""Decoders in processes of their own: what a damaged or a hostile film makes of them stays there.

No header tells what JPEG lossless, JPEG-LS, JPEG 2000, RLE and TIFF will take: 19 KB of JPEG 2000 took 5 GB.
Of 1,500 films damaged by the fuzz test GDCM 3 ended its process with five in JPEG lossless (process 57), one
in JPEG-LS (an exception that nothing catches, or a wrong address). A process here serves many films, one at a
time, each within `CPU_S` and `MEMORY_BYTES`; it is replaced when it died or hung.
"""

import contextlib
import json
import logging
import os
import resource
import select
import signal
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

CPU_S = 8
"""Seconds of CPU time that the decoding of a film may take."""
MEMORY_BYTES = 1280 << 20
"""Memory that it may take, the file, the pixels and what lies between them together."""
LONGEST_S = 60
_LENGTH_BYTES = 8
_MOST_ANSWER_BYTES = MEMORY_BYTES
_PIPE_BYTES = 1 << 20
_idle: list[subprocess.Popen] = []
_lock = threading.Lock()
os.register_at_fork(after_in_child=_idle.clear)  # a pipe has one user


def decode_isolated(decoder: str, data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a film in another process.

    Args:
        decoder: gdcm, pylibjpeg or rle for the pixels of a DICOM file whose header was checked; tiff.
        data: Content of the file.
        name: What to call it in an error.

    Returns:
        For DICOM the stored values, (H, W) or (H, W, 3) red first, without any correction of unused bits,
        and 0. For TIFF the film, uint8 (H, W), and the bits a pixel was stored with.

    Raises:
        BadInput: It is damaged, or takes more than a film may.
    """
    with _process() as process:
        try:
            _send(process.stdin, json.dumps([decoder, name]).encode())
            _send(process.stdin, data)
            head = json.loads(_receive(process.stdout, LONGEST_S))
            pixels = _receive(process.stdout)
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
    command = [sys.executable, "-P", "-m", "openmed.films.isolated"]
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


def _send(stream: BinaryIO, content: bytes | memoryview) -> None:
    stream.write(len(content).to_bytes(_LENGTH_BYTES))
    stream.write(content)
    stream.flush()


def _receive(stream: BinaryIO, longest_s: float | None = None) -> bytearray:
    if longest_s is not None and not select.select([stream], [], [], longest_s)[0]:
        raise TimeoutError
    length = int.from_bytes(head := stream.read(_LENGTH_BYTES))
    if len(head) < _LENGTH_BYTES or length > _MOST_ANSWER_BYTES:
        raise EOFError
    content = bytearray(length)
    if stream.readinto(content) < length:
        raise EOFError
    return content


def _gdcm(data: bytes, name: str) -> tuple[np.ndarray, int]:
    pixels = _stored(data, name, decoding_plugin="gdcm", correct_unused_bits=False)
    if os.fstat(2).st_size:  # it completes half a film, and says so on stderr alone
        raise BadInput(f"{name} cannot be decoded: it is damaged")
    return pixels, 0


def _stored(data: bytes, name: str, **options: str | bool) -> np.ndarray:
    from pydicom.pixels import pixel_array

    from openmed.films.dicom.header import checked

    return pixel_array(checked(data, name), raw=True, **options)


def _rle(data: bytes, name: str) -> tuple[np.ndarray, int]:
    from openmed.films.dicom.header import checked, streams
    from openmed.films.dicom.rle import decode_rle

    film = checked(data, name)
    dtype = np.dtype(f"{'i' if film.PixelRepresentation else 'u'}{int(film.BitsAllocated) // 8}")
    shape = int(film.Rows), int(film.Columns)
    return decode_rle(streams(film)[0], shape, int(film.SamplesPerPixel), dtype), 0


def _tiff(data: bytes, name: str) -> tuple[np.ndarray, int]:
    from openmed.films.images import decode_tiff

    return decode_tiff(data, name)


_DECODERS = {
    "gdcm": _gdcm,
    "pylibjpeg": lambda data, name: (_stored(data, name, decoding_plugin="pylibjpeg"), 0),
    "rle": _rle,
    "tiff": _tiff,
}


def _decoded(decoder: str, data: bytes, name: str) -> tuple[dict, np.ndarray]:
    """Returns what describes the answer, and its pixels."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Of whole seconds; beyond it the system ends this process.
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_S, resource.RLIM_INFINITY)
    )
    os.ftruncate(2, 0)
    try:
        pixels, bits = _DECODERS[decoder](data, name)
    except BadInput as error:
        refused = str(error)
    except MemoryError:
        refused = f"{name} cannot be decoded: it takes more than {MEMORY_BYTES >> 20} MiB"
    except Exception as error:  # of any kind: the stream is damaged
        refused = f"{name} cannot be decoded: it is damaged ({type(error).__name__})"
    else:
        pixels = np.ascontiguousarray(pixels)
        return {"dtype": pixels.dtype.str, "shape": pixels.shape, "bits": bits}, pixels
    return {"refused": refused}, np.zeros(0, np.uint8)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # only Linux tells and holds the size of a process
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve() -> None:
    """Answers films from stdin on stdout until its owner is gone."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    warnings.simplefilter("ignore")  # of odd values in the header, which say nothing of the stream
    logging.disable()
    printed = tempfile.TemporaryFile(mode="ab")  # noqa: SIM115, it lives as long as the process
    for output in (1, 2):  # nothing that a library prints may come between the answers
        os.dup2(printed.fileno(), output)
    _limit_memory()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            decoder, name = json.loads(_receive(source))
            head, pixels = _decoded(decoder, bytes(_receive(source)), name)
            _send(target, json.dumps(head).encode())
            _send(target, memoryview(pixels).cast("B") if pixels.size else b"")
            del pixels


if __name__ == "__main__":
    _serve()
