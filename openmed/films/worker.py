"""The process that `openmed.films.isolated` starts: decodes films from stdin, within limits, on stdout."""

import contextlib
import json
import logging
import os
import resource
import sys
import tempfile
import warnings
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydicom.pixels import pixel_array

from openmed.errors import BadInput
from openmed.films.dicom.header import checked, streams
from openmed.films.dicom.rle import decode_rle
from openmed.films.isolated import CPU_S, MEMORY_BYTES, receive, send
from openmed.films.tiff import decode_tiff


def _gdcm(data: bytes, name: str) -> tuple[np.ndarray, int]:
    pixels = _stored(data, name, "gdcm", correct_unused_bits=False)
    if os.fstat(2).st_size:  # it completes half a film, and says so on stderr alone
        raise BadInput(f"{name} cannot be decoded: it is damaged")
    return pixels, 0


def _stored(data: bytes, name: str, plugin: str, **options: Any) -> np.ndarray:
    return pixel_array(checked(data, name), raw=True, decoding_plugin=plugin, **options)


def _rle(data: bytes, name: str) -> tuple[np.ndarray, int]:
    film = checked(data, name)
    dtype = np.dtype(f"{'i' if film.PixelRepresentation else 'u'}{int(film.BitsAllocated) // 8}")
    shape = int(film.Rows), int(film.Columns)
    return decode_rle(streams(film)[0], shape, int(film.SamplesPerPixel), dtype), 0


_DECODERS = {
    "gdcm": _gdcm,
    "pylibjpeg": lambda data, name: (_stored(data, name, "pylibjpeg"), 0),
    "rle": _rle,
    "tiff": decode_tiff,
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
    source, target = cast(BufferedReader, sys.stdin.buffer), os.fdopen(os.dup(1), "wb")
    warnings.simplefilter("ignore")  # of odd values in the header, which say nothing of the stream
    logging.disable()
    printed = tempfile.TemporaryFile(mode="ab")  # noqa: SIM115, it lives as long as the process
    for output in (1, 2):  # nothing that a library prints may come between the answers
        os.dup2(printed.fileno(), output)
    _limit_memory()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            decoder, name = json.loads(receive(source))
            head, pixels = _decoded(decoder, bytes(receive(source)), name)
            send(target, json.dumps(head).encode())
            send(target, pixels.data.cast("B") if pixels.size else b"")
            del pixels


if __name__ == "__main__":
    _serve()
