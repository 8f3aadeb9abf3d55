"""Bombs: small inputs that would take gigabytes, minutes or for ever, held against the operating system."""

import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import get_frame

from openmed.errors import BadInput
from openmed.films import budgets, isolated
from openmed.films.images import decode_film, read_film
from openmed.intake.importing import import_films
from openmed.intake.readers import folder_files, zip_files
from openmed.measurement.measure import measure_film
from tests.conftest import ROOT
from tests.openmed.films.stored import compressed, dataset, dicom, phantom, pil, wrapped, written

CLASSES = ("NORMAL", "PNEUMONIA")


MEASURED = """
import os, resource, sys
from openmed.films import isolated
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
seconds, peaks = sum(each.ru_utime + each.ru_stime for each in usage), []
for process in ("self", *(decoder.pid for decoder in isolated._idle)):
    status = dict(line.split(":", 1) for line in open(f"/proc/{process}/status"))
    peaks.append(int(status["VmHWM"].split()[0]) >> 10)
    if process != "self":
        ticks = open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[11:13]
        seconds += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
print(max(peaks), seconds, file=sys.stderr)
"""  # not ru_maxrss, which begins with what the parent had when it forked


def taken(code: str, *arguments: object) -> tuple[str, int, float]:
    """Runs code in a process of its own, and tells what it and its decoders took.

    Returns:
        What it printed, the peak memory of the largest process in MiB, the CPU time of all in seconds.
    """
    command = [sys.executable, "-c", code + MEASURED, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    mib, seconds = ended.stderr.splitlines()[-1].split()  # OpenCV prints what it finds wrong
    return ended.stdout, int(mib), float(seconds)


READ_ALL = """
import sys
from pathlib import Path
from openmed.intake.readers import zip_files
from openmed.errors import BadInput
for _, reader in zip_files(Path(sys.argv[1])):
    try:
        print(len(reader()))
    except BadInput as error:
        print(error)
"""


def zip_bomb(path: Path, method: int, mib: int, claimed: int) -> Path:
    """An archive whose entry unpacks to zeros, many more than its record claims."""
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("a.png", "w") as entry:
        for _ in range(mib):
            entry.write(bytes(1 << 20))
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02") + 24
    content[start : start + 4] = claimed.to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("method", ["DEFLATED", "BZIP2", "LZMA"])
def test_a_zip_entry_never_unpacks_to_more_than_its_record_says(tmp_path, method):
    bomb = zip_bomb(tmp_path / "s.zip", getattr(zipfile, f"ZIP_{method}"), 300, 1000)
    printed, mib, seconds = taken(READ_ALL, bomb)
    assert "entry 1 of" in printed and "cannot be read (Bad CRC-32" in printed
    assert bomb.stat().st_size < 500_000 and mib < 250 and seconds < 5


def test_a_zip_entry_is_unpacked_no_further_than_a_film_may_be(tmp_path):
    bomb = zip_bomb(tmp_path / "s.zip", zipfile.ZIP_BZIP2, 130, 300 << 20)
    printed, mib, _ = taken(READ_ALL, bomb)
    assert printed == f"entry 1 of {bomb} is larger than 128 MiB; no film is\n" and mib < 500


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
@pytest.mark.parametrize("content", [b"", b"x", os.urandom(300_000)], ids=len)
def test_a_zip_gives_what_was_packed(tmp_path, method, content):
    with zipfile.ZipFile(tmp_path / "s.zip", "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        archive.writestr("a.png", content)
    [(_, reader)] = zip_files(tmp_path / "s.zip")
    assert reader() == content and reader.start(132) == content[:132]


# --- what is no regular file, or has no end


def test_a_pipe_is_refused_at_once_on_every_road(tmp_path):
    for name in CLASSES:
        (tmp_path / "s" / name).mkdir(parents=True)
        (tmp_path / "s" / name / "a.png").write_bytes(pil(phantom(), "PNG"))
    pipe = tmp_path / "s/NORMAL/b.png"
    os.mkfifo(pipe)
    with pytest.raises(BadInput, match=r"b\.png cannot be read: Not a regular file$"):
        read_film(pipe)
    with pytest.raises(BadInput, match=r"file 2 of .* cannot be read \(Not a regular file\)"):
        import_films(tmp_path / "s", tmp_path / "data", class_names=CLASSES)
    assert measure_film(str(pipe))[1]["reason"] == "cannot be read: Not a regular file"


def test_a_device_is_refused(tmp_path):
    (tmp_path / "a.png").symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="Not a regular file"):
        read_film(tmp_path / "a.png")
    [(_, reader)] = folder_files(tmp_path)
    with pytest.raises(BadInput, match="Not a regular file"):
        reader()


def test_a_file_without_an_end_is_read_no_further_than_a_film_may_be(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(BadInput, match="Larger than 128 MiB"):
        read_film(path)
    [(_, reader)] = folder_files(tmp_path)
    with pytest.raises(BadInput, match="is larger than 128 MiB; no film is"):
        reader()
    with pytest.raises(BadInput, match="the image is larger than 128 MiB"):
        decode_film(bytes((128 << 20) + 1))


# --- DICOM: what a header unfolds to


DECODE = """
import sys
from pathlib import Path
from openmed.films.images import decode_film
from openmed.privacy.cleaning import Pseudonyms, about_film, clean_film, dicom_patient
from openmed.errors import BadInput
data = Path(sys.argv[1]).read_bytes()
dicom_patient(data), about_film(data), clean_film(data, "a.dcm", Pseudonyms(bytes(16)))
try:
    print(decode_film(data, "the film").shape)
except BadInput as error:
    print(error)
"""


DECODE_FILE = """
import sys
from pathlib import Path
from openmed.films.images import decode_film
from openmed.errors import BadInput
try:
    print(decode_film(Path(sys.argv[1]).read_bytes(), "the film").shape)
except BadInput as error:
    print(error)
"""


def element(group: int, number: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element of explicit type, little endian."""
    return struct.pack("<HH2sHI", group, number, kind, 0, len(value) if length is None else length) + value


def with_element(extra: bytes) -> bytes:
    film = dicom(phantom())
    start = film.rindex(b"\xe0\x7f\x10\0")
    return film[:start] + extra + film[start:]


def deflated_bomb() -> bytes:
    film, plain = dataset(phantom()), dicom(phantom())
    film.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    head = written(film)
    packer = zlib.compressobj(9, wbits=-15)
    parts = [packer.compress(plain[144 + int.from_bytes(plain[140:144], "little") :])]
    parts.append(packer.compress(element(0x7FE1, 0x1001, b"OB", b"", 400 << 20)))
    parts += [packer.compress(bytes(1 << 20)) for _ in range(400)]
    return head[: 144 + int.from_bytes(head[140:144], "little")] + b"".join(parts) + packer.flush()


def tiny_items(count: int) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count


def endless_sequence() -> bytes:
    items = tiny_items(1 << 20) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return with_element(element(0x0009, 0x1001, b"SQ", items, 0xFFFFFFFF))


LONG_ELEMENT = "the film is damaged: an element that describes its image is far too long"
DICOM_BOMBS = {
    "deflated": (deflated_bomb, "the film is a deflated DICOM file: store it in another transfer syntax"),
    "elements without end": (endless_sequence, "the film is damaged: it has too many elements"),
    "a table of a million items": (
        lambda: with_element(element(0x0028, 0x3010, b"SQ", tiny_items(1 << 20))),
        LONG_ELEMENT,
    ),
    "a million windows": (
        lambda: with_element(element(0x0028, 0x1050, b"UC", b"1\\" * (4 << 20))),
        LONG_ELEMENT,
    ),
    "a million ages": (lambda: with_element(element(0x0010, 0x1010, b"UC", b"1\\" * (4 << 20))), "(64, 64)"),
}


@pytest.mark.parametrize("kind", DICOM_BOMBS)
def test_a_dicom_header_unfolds_to_little(tmp_path, kind):
    make, outcome = DICOM_BOMBS[kind]
    (tmp_path / "a.dcm").write_bytes(make())
    printed, mib, seconds = taken(DECODE, tmp_path / "a.dcm")
    assert printed == f"{outcome}\n" and mib < 300 and seconds < 8


# --- decoders that no header holds, in processes of their own


def many_pages(count: int) -> bytes:
    content = bytearray(pil(phantom(), "TIFF"))
    start = int.from_bytes(content[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(content[start : start + 2], "little")
    page = bytes(content[start:end])
    for _ in range(count):
        content[end : end + 4] = len(content).to_bytes(4, "little")
        content += page + bytes(4)
        end = len(content) - 4
    return bytes(content)


def endless_runs() -> bytes:
    segment = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (3 << 20)
    return wrapped(segment, phantom(), uid.RLELossless)


def decoy(side_px: int) -> bytes:
    """A JP2 whose stream is far larger than the header and than a stream that no decoder looks at."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", len(content) + 8, kind) + content

    film = pydicom.dcmread(io.BytesIO(compressed(phantom(), uid.JPEG2000Lossless)))
    small = get_frame(film.PixelData, 0, number_of_frames=1)
    large = bytearray(small)
    for at in (8, 12, 24, 28):  # of the image, then of its only tile
        large[at : at + 4] = side_px.to_bytes(4)
    image = struct.pack(">IIHBBBB", side_px, side_px, 1, 7, 7, 0, 0)
    header = box(b"ihdr", image) + box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))
    boxes = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"free", small[:200])
    content = boxes + box(b"jp2h", header) + box(b"jp2c", bytes(large))
    return wrapped(content, phantom(), uid.JPEG2000Lossless)


DECODER_BOMBS = {
    "TIFF of 60,000 pages": (lambda: many_pages(60_000), "the film has several pages; a film has one"),
    "runs without end": (endless_runs, "the film cannot be decoded: it is damaged"),
    "JPEG 2000 behind a decoy": (lambda: decoy(30_000), "the film cannot be decoded: it is damaged"),
}


@pytest.mark.parametrize("kind", DECODER_BOMBS)
def test_a_decoder_takes_no_more_than_a_film_may(tmp_path, kind):
    make, outcome = DECODER_BOMBS[kind]
    (tmp_path / "a.dcm").write_bytes(make())
    printed, mib, seconds = taken(DECODE, tmp_path / "a.dcm")
    assert printed.startswith(outcome) and mib < 1430 and seconds < 10


# --- JPEG and PNG: what the decoder will find, not what a first look finds


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def texts() -> bytes:
    film = pil(phantom(), "PNG")
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7_000_000), 9))
    return film[:33] + text * 100 + film[33:]


def wide_png(side_px: int) -> bytes:
    """Black in four channels of 16 bits."""
    packer = zlib.compressobj(1)
    rows = b"".join([*(packer.compress(bytes(8 * side_px + 1)) for _ in range(side_px)), packer.flush()])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side_px, side_px, 16, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    film = pil(phantom(500), "JPEG", progressive=True)
    last = film[film.rindex(b"\xff\xda") : -2]
    return film[:-2] + last * count + film[-2:]


def jpeg_behind_decoy(height: int, width: int) -> bytes:
    """A JPEG with a frame where libjpeg, which skips a stuffed zero, finds none."""
    film = bytearray(pil(phantom(), "JPEG"))
    frame = film.index(b"\xff\xc0")
    small = bytes(film[frame : frame + 2 + int.from_bytes(film[frame + 2 : frame + 4])])
    film[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    # Read as a segment, the zero hides all up to the small frame.
    return bytes(film[:2]) + b"\xff\0" + struct.pack(">H", len(film) - 2) + bytes(film[2:]) + small


FILE_BOMBS = {
    "PNG with texts": (texts, "(64, 64)", 300),
    "PNG of many channels": (
        lambda: wide_png(6000),
        "the film would take 275 MiB to decode; a film takes at most 256",
        200,
    ),
    "JPEG of many scans": (lambda: scans(300), "the film has 3", 200),
    "JPEG behind a decoy": (
        lambda: jpeg_behind_decoy(60_000, 60_000),
        "the film claims 3600000000 pixels; a film has at most 64000000",
        200,
    ),
}


@pytest.mark.parametrize("kind", FILE_BOMBS)
def test_a_picture_takes_no_more_than_a_film_may(tmp_path, kind):
    make, outcome, most_mib = FILE_BOMBS[kind]
    (tmp_path / "a").write_bytes(make())
    printed, mib, seconds = taken(DECODE_FILE, tmp_path / "a")
    assert printed.startswith(outcome) and mib < most_mib and seconds < 5


def test_a_progressive_film_of_usual_scans_is_read():
    film = phantom(1000)
    assert decode_film(pil(film, "JPEG", progressive=True)).shape == film.shape


def test_a_thumbnail_is_no_scan():
    film = pil(phantom(), "JPEG")
    thumbnails = b"\xff\xe1\x10\x02" + film[:4096].ljust(4096, b"\0")
    many = film[:2] + thumbnails * 150 + film[2:]
    assert np.array_equal(decode_film(many), decode_film(film))


def test_the_limits_are_those_of_the_documentation():
    documented = (ROOT / "docs/films.md").read_text(encoding="utf-8")
    for row in (
        f"| {budgets.MAX_FILE_BYTES >> 20} MiB | counted while it is read or unpacked |",
        f"| pixels | {budgets.MAX_PIXELS // 1_000_000} million |",
        f"| {budgets.MAX_DECODED_BYTES >> 20} MiB | of the same frame |",
        f"| {budgets.MAX_JPEG_SCANS}, and {budgets.MAX_SCANNED_PIXELS // 1_000_000} million pixels times",
        f"| {budgets.MAX_PNG_CHUNKS:,} | counted; texts",
        f"| {isolated.MEMORY_BYTES >> 20:,} MiB and {isolated.CPU_S} s of CPU time |",
    ):
        assert row in documented
