"""Bombs: small inputs that would take gigabytes, minutes or for ever, held against the operating system."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from openmed.data.images import decode_film, read_film
from openmed.data.importing import import_films
from openmed.data.measure import measure_film
from openmed.data.readers import folder_files, zip_files
from openmed.errors import BadInput
from tests.openmed.data.stored import phantom, pil

CLASSES = ("NORMAL", "PNEUMONIA")


MEASURED = """
import resource, sys
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) >> 10, sum(each.ru_utime + each.ru_stime for each in usage), file=sys.stderr)
"""  # not ru_maxrss, which begins with what the parent had when it forked


def taken(code: str, *arguments: object) -> tuple[str, int, float]:
    """Runs code in a process of its own: what it printed, its peak memory in MiB, its CPU time in s."""
    command = [sys.executable, "-c", code + MEASURED, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    mib, seconds = ended.stderr.split()
    return ended.stdout, int(mib), float(seconds)


READ_ALL = """
import sys
from pathlib import Path
from openmed.data.readers import zip_files
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
