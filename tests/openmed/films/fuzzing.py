"""Seeded fuzz of the decoders: every mutant of a film is an image or one refusal, every cut one a refusal."""

import random
import re
import struct
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import uid

from openmed.errors import BadInput
from openmed.films.images import decode_film
from openmed.privacy.cleaning import Pseudonyms, clean_film
from tests.openmed.films.stored import compressed, deep, dicom, phantom, pil, transcoded
from tests.openmed.mutant_process import Judge, Outcome, judge_all, report

NAMES = Pseudonyms(b"a secret of the fuzz")
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
_DAMAGES = {**dict.fromkeys(range(9, 100, 10), "cut-"), 4: "swollen-"}
"""What becomes of some of each hundred mutants."""
_SIDES = (17, 3000, 8000, 20_000, 65_535)
# Where sizes stand: what is before them, how far, and as what.
_SIZES = (
    (rb"IHDR.{17}", 4, ">II"),  # PNG
    (rb"\xff[\xc0-\xc3\xf7].{17}", 5, ">HH"),  # JPEG, JPEG-LS
    (rb"\xff\x4f\xff\x51.{40}", 8, ">II"),  # JPEG 2000: the image
    (rb"\xff\x4f\xff\x51.{40}", 24, ">II"),  # and its tiles
    (rb"\x28\x00[\x10\x11]\x00US\x02\x00..", 8, "<H"),  # DICOM
    (rb"[\x00\x01]\x01[\x03\x04]\x00\x01\x00\x00\x00....", 8, "<I"),  # TIFF
)


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


def swollen(content: bytes, seed: str) -> bytes:
    """Lets headers and streams claim other sides, wherever a decoder may look for them."""
    draw, changed = random.Random(seed), bytearray(content)
    sides = [draw.choice(_SIDES) for _ in range(2)]
    for mark, offset, form in _SIZES:
        for found in re.finditer(mark, content, re.S):
            if draw.random() < 0.7:
                struct.pack_into(form, changed, found.start() + offset, *sides[: 1 + (form[-1] == form[-2])])
    return _with_checksums(changed)


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
    """Decodes mutants of all seeds, as many of each, in a process of its own.

    One in ten is cut and one in a hundred claims other sides. What takes more memory or time than a film
    may is unexpected, whatever became of it.

    Args:
        mutants: How many in all.
        seed: Another one gives other mutants.
        only: Kind of seed to take alone, empty for all.
    """
    kinds = [name for name in seeds() if only in ("", name)]
    names = [f"{_DAMAGES.get(index % 100, '')}{seed}-{index}" for index in range(mutants)]
    tasks = [(kinds[index % len(kinds)], name) for index, name in enumerate(names)]
    return judge_all(tasks, _decoder, Outcome("mutants", "images"))


def _decoder() -> Judge:
    kinds = seeds()

    def judge(kind: str, number: str) -> str:
        is_cut, is_swollen = number.startswith("cut-"), number.startswith("swollen-")
        damage = cut if is_cut else swollen if is_swollen else mutant
        said = _decoded(damage(kinds[kind], f"{kind}-{number}"))
        return "is completed" if is_cut and said == "images" else said

    return judge


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


if __name__ == "__main__":
    sys.exit(report(fuzz, __doc__, 20_000))
