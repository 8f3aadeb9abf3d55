"""Seeded fuzz of the decoders: every mutant of a film is an image or one refusal, every cut one a refusal.

Mutants are decoded in a child process that says which one it is at. When it dies or hangs, the parent
records that mutant as unexpected and goes on with a new child behind it.
"""

import argparse
import faulthandler
import multiprocessing
import random
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import uid

from openmed.data.images import decode_film
from openmed.data.privacy import Pseudonyms, clean_film
from openmed.errors import BadInput
from tests.openmed.data.stored import compressed, deep, dicom, phantom, pil, transcoded

LONGEST_S, _START_S = 70, 60  # decoding itself gives up after 60 s
NAMES = Pseudonyms(b"a secret of the fuzz")
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass
class Outcome:
    """What became of the mutants; `unexpected` names each by kind and number."""

    images: int = 0
    refused: int = 0
    unexpected: list[str] = field(default_factory=list)

    @property
    def mutants(self) -> int:
        return self.images + self.refused + len(self.unexpected)

    def __str__(self) -> str:
        counts = f"{self.mutants} mutants, {self.images} images, {self.refused} refused"
        return f"fuzz: {counts}, {len(self.unexpected)} unexpected"


def seeds() -> dict[str, bytes]:
    """Small films, one of each way to store them."""
    film = phantom(48)[:40]
    colour, twelve = np.dstack([film] * 3), dicom(deep(film, 12), BitsStored=12)
    kinds = {
        "jpeg": pil(film, "JPEG"),
        "jpeg-progressive": pil(colour, "JPEG", progressive=True),
        "png": pil(film, "PNG"),
        "png-16": pil(deep(film, 12), "PNG"),
        "png-palette": pil(Image.fromarray(film).convert("P"), "PNG"),
        "tiff": pil(film, "TIFF"),
        "tiff-lzw": pil(deep(film, 16), "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": pil(colour, "TIFF", compression="jpeg"),
        "dicom": twelve,
        "dicom-rle": compressed(deep(film, 12), uid.RLELossless, BitsStored=12),
        "dicom-j2k": compressed(deep(film, 12), uid.JPEG2000Lossless, BitsStored=12),
        "dicom-j2k-lossy": compressed(film, uid.JPEG2000, encoder={"j2k_cr": [4]}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, syntax, plain in (
            ("dicom-jpeg", uid.JPEGBaseline8Bit, dicom(film)),
            ("dicom-jpeg-lossless", uid.JPEGLosslessSV1, twelve),
            ("dicom-jpeg-lossless-57", uid.JPEGLossless, dicom(film)),
            ("dicom-jpeg-ls", uid.JPEGLSLossless, twelve),
            ("dicom-jpeg-ls-colour", uid.JPEGLSLossless, dicom(colour)),
        ):
            kinds[name] = transcoded(plain, syntax, Path(folder))
    return kinds


def mutant(content: bytes, seed: str) -> bytes:
    """Damages content in one to four places: bits, bytes, numbers, runs, cuts and copies."""
    draw, changed = random.Random(seed), bytearray(content)
    # Headers are short, so every second mutant is hit there alone.
    reach = min(len(content), draw.choice([64, 256, 1024, len(content), len(content)]))
    if content[128:132] == b"DICM" and draw.random() < 0.6:
        # Behind the file header, where the image is described and its stream begins.
        start = max(0, content.rfind(b"\x28\0\x02\0"))
    else:
        start = 0
    for _ in range(draw.choice([1, 1, 2, 4])):
        place = min(start + draw.randrange(reach), max(len(changed) - 1, 0))
        match draw.randrange(8):
            case 0 | 1:
                changed[place : place + 1] = bytes([draw.randrange(256)])
            case 2:
                changed[place : place + 1] = bytes(
                    [content[min(place, len(content) - 1)] ^ 1 << draw.randrange(8)]
                )
            case 3:
                size, order = draw.choice([2, 4]), draw.choice(["little", "big"])
                changed[place : place + size] = (draw.choice(_WORDS) % 256**size).to_bytes(size, order)
            case 4:
                del changed[place:]
            case 5:
                del changed[place : place + draw.randrange(1, 40)]
            case 6:
                changed[place:place] = changed[place : place + draw.randrange(1, 40)]
            case 7:
                length = draw.randrange(1, 16)
                changed[place : place + length] = bytes([draw.choice([0, 255, draw.randrange(256)])]) * length
        if not changed:
            break
    return _with_checksums(changed) if draw.random() < 0.7 else bytes(changed)


def cut(content: bytes, seed: str) -> bytes:
    """Ends content early, now and then with the end mark of JPEG and JPEG 2000, which decoders trust."""
    draw = random.Random(seed)
    return content[: int(len(content) * draw.uniform(0.3, 0.97))] + draw.choice([b"", b"\xff\xd9"])


def _with_checksums(changed: bytearray) -> bytes:
    """Mends the checksums of a PNG, without which most mutants would be turned away at once."""
    place = 8
    while changed.startswith(b"\x89PNG") and place + 12 <= len(changed):
        end = place + 8 + int.from_bytes(changed[place : place + 4])
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = zlib.crc32(changed[place + 4 : end]).to_bytes(4)
        place = end + 4
    return bytes(changed)


def fuzz(mutants: int, *, seed: int = 0, only: str = "") -> Outcome:
    """Decodes mutants of all seeds, as many of each and one in ten cut, in a process of its own.

    Args:
        mutants: How many in all.
        seed: Another one gives other mutants.
        only: Kind of seed to take alone, empty for all.
    """
    kinds = [name for name in seeds() if only in ("", name)]
    names = [f"cut-{seed}-{index}" if index % 10 == 9 else f"{seed}-{index}" for index in range(mutants)]
    tasks = [(kinds[index % len(kinds)], name) for index, name in enumerate(names)]
    outcome, done = Outcome(), 0
    while done < len(tasks):
        for what in _child(tasks[done:]):
            if what in ("images", "refused"):
                setattr(outcome, what, getattr(outcome, what) + 1)
            else:
                kind, number = tasks[done]
                outcome.unexpected.append(f"{kind} {number}: {what}")
            done += 1
    return outcome


def _child(tasks: list[tuple[str, str]]) -> Iterator[str]:
    """Yields what became of each task until the child dies or hangs, which is the last thing it yields."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, tasks), daemon=True)
    process.start()
    theirs.close()
    try:
        for index in range(len(tasks)):
            if not ours.poll(LONGEST_S + (0 if index else _START_S)):
                yield f"hangs for more than {LONGEST_S} s"
                return
            yield ours.recv()
    except EOFError:
        process.join()
        yield f"the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _work(pipe: Connection, tasks: list[tuple[str, str]]) -> None:
    faulthandler.enable()
    kinds = seeds()
    for kind, number in tasks:
        is_cut = number.startswith("cut-")
        said = _decoded((cut if is_cut else mutant)(kinds[kind], f"{kind}-{number}"))
        pipe.send("is completed" if is_cut and said == "images" else said)


def _decoded(content: bytes) -> str:
    try:
        clean_film(content, "film.img", NAMES)
        film = decode_film(content, "the film")
    except BadInput as error:
        return "refused" if str(error).startswith("the film ") and "\n" not in str(error) else f"says {error}"
    except BaseException:
        return traceback.format_exc(limit=-3).replace("\n", " | ")
    return (
        "images"
        if film.dtype == np.uint8 and film.ndim == 2 and film.size
        else f"gives {film.dtype} {film.shape}"
    )


def main() -> int:
    """Fuzzes and ends with one line of counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Kind of seed to take alone.")
    arguments = parser.parse_args()
    outcome = fuzz(arguments.mutants, seed=arguments.seed, only=arguments.only)
    for line in outcome.unexpected:
        print(line)
    print(outcome)
    return int(bool(outcome.unexpected))


if __name__ == "__main__":
    sys.exit(main())
