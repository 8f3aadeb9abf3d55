"""Films in archives: what lies there, held against Python's tarfile, and what damage is told."""

import hashlib
import io
import os
import subprocess
import tarfile

import numpy as np
import pytest

from openmed import archives
from openmed.archives import film_bytes, number_behind, pack, place_of, read_stored, state_of
from openmed.errors import IntegrityError
from openmed.films.budgets import MAX_FILE_BYTES

LONG = f"films/validation/Lungenentzündung/{'x' * 140}.png"


def some_films(count=7):
    """Paths and contents of sizes around those of a block."""
    rng = np.random.default_rng(3)
    sizes = [0, 1, 511, 512, 513, 9000, *[100] * count]
    return [(f"films/NORMAL/{k:016x}.png", rng.bytes(sizes[k])) for k in range(count - 1)] + [
        (LONG, rng.bytes(700))
    ]


def test_a_film_is_read_by_its_path_and_tarfile_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_FILMS", 3)
    films = some_films()
    paths = list(pack(tmp_path, films))
    assert [read_stored(f"{tmp_path}/{path}") for path in paths] == [content for _, content in films]
    assert [place_of(path).name for path in paths] == [path for path, _ in films]
    assert sorted(path.name for path in (tmp_path / "films").iterdir()) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    found = {}
    for file in sorted((tmp_path / "films").iterdir()):
        with tarfile.open(file) as archive:
            for member in archive:
                found[f"films/{member.name}"] = archive.extractfile(member).read()
                owner = (member.uid, member.gid, member.uname, member.gname, member.mtime, member.mode)
                assert owner == (0, 0, "", "", 0, 0o644)
    assert found == dict(films)


def test_the_tar_of_the_system_unpacks_an_archive(tmp_path):
    films = some_films()
    list(pack(tmp_path / "data", films))
    subprocess.run(
        ["tar", "--extract", "--file", "data/films/00000.tar"],
        cwd=tmp_path,
        check=True,
        env={"PATH": os.defpath},
    )
    for path, content in films:
        assert (tmp_path / path.removeprefix("films/")).read_bytes() == content


def test_the_same_films_are_the_same_archive(tmp_path):
    first, second = (list(pack(tmp_path / name, some_films())) for name in "ab")
    assert first == second
    archives_made = [(tmp_path / name / "films/00000.tar").read_bytes() for name in "ab"]
    assert archives_made[0] == archives_made[1]


def test_an_archive_is_what_tarfile_writes(tmp_path):
    list(pack(tmp_path, some_films()))
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in some_films():
            info = tarfile.TarInfo(path.removeprefix("films/"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert (tmp_path / "films/00000.tar").read_bytes() == theirs.getvalue()


def test_an_archive_of_many_bytes_is_full_before_its_films_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_BYTES", 3000)
    paths = list(pack(tmp_path, [(f"films/{k}.png", bytes(600)) for k in range(5)], first=7))
    assert [path.split("/")[1] for path in paths] == [
        "00007.tar",
        "00007.tar",
        "00008.tar",
        "00008.tar",
        "00009.tar",
    ]
    assert number_behind([*paths, "films/NORMAL/a.png"]) == 10 and number_behind(["films/a.png"]) == 0


def test_any_other_path_is_a_file_of_its_own(tmp_path):
    for path in (
        "films/NORMAL/a.png",
        "a.tar",
        "films/x.tar/5/a.png",
        "films/00000.tar",
        "other/00000.tar/0/a",
    ):
        assert place_of(path) == (path, None, path)
    assert place_of("/d/films/00001.tar/9/films/00002.tar/512/NORMAL/a.png") == (
        "/d/films/00001.tar/9/films/00002.tar",
        512,
        "/d/films/00001.tar/9/films/NORMAL/a.png",
    )
    (tmp_path / "a.png").write_bytes(b"content")
    assert read_stored(f"{tmp_path}/a.png") == b"content"
    with pytest.raises(FileNotFoundError):
        read_stored(f"{tmp_path}/b.png")


@pytest.fixture
def packed(tmp_path):
    """Paths, hashes and the archive of some films of one size."""
    films = [(f"films/NORMAL/{k}.png", bytes([k]) * 700) for k in range(6)]
    paths = list(pack(tmp_path, films))
    return paths, [hashlib.sha256(content).hexdigest() for _, content in films], tmp_path / "films/00000.tar"


def test_a_flipped_byte_is_told_with_the_name_of_its_film(tmp_path, packed):
    paths, hashes, archive = packed
    whole = archive.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 6 * 1536, 60).tolist():
        film, place = divmod(position, 1536)
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        archive.write_bytes(damaged)
        padding = place >= 512 + 700  # which no film has
        for number, (path, digest) in enumerate(zip(paths, hashes, strict=True)):
            if number != film or padding:
                assert film_bytes(tmp_path, path, digest) == bytes([number]) * 700
                continue
            with pytest.raises(IntegrityError, match=f"{path} (was changed|is not in its archive)|cut short"):
                film_bytes(tmp_path, path, digest)


@pytest.mark.parametrize("kept", [0, 100, 1536 * 5, 1536 * 5 + 200, 1536 * 5 + 600])
def test_an_archive_that_is_cut_short_is_refused_in_one_sentence(tmp_path, packed, kept):
    paths, hashes, archive = packed
    os.truncate(archive, kept)
    with pytest.raises(IntegrityError, match=r"films/00000\.tar is cut short: get the data back") as refusal:
        film_bytes(tmp_path, paths[5], hashes[5])
    assert "\n" not in str(refusal.value)


def test_an_archive_that_is_gone_is_refused_in_one_sentence(tmp_path, packed):
    paths, hashes, archive = packed
    archive.unlink()
    with pytest.raises(
        IntegrityError, match=r"films/00000\.tar cannot be read: No such file or directory: get"
    ):
        film_bytes(tmp_path, paths[0], hashes[0])
    assert state_of(f"{tmp_path}/{paths[0]}") is None


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = MAX_FILE_BYTES + 1
    (tmp_path / "films").mkdir()
    (tmp_path / "films/00000.tar").write_bytes(info.tobuf())
    os.truncate(tmp_path / "films/00000.tar", MAX_FILE_BYTES + 4096)
    with pytest.raises(IntegrityError):
        read_stored(f"{tmp_path}/films/00000.tar/0/a.png")


def test_films_of_an_archive_have_states_of_their_own_until_it_is_written_to(tmp_path, packed):
    paths, _, archive = packed
    before = [state_of(f"{tmp_path}/{path}") for path in paths]
    assert len(set(before)) == 6 and before == [state_of(f"{tmp_path}/{path}") for path in paths]
    os.utime(archive, ns=(0, 5))
    assert not set(before) & {state_of(f"{tmp_path}/{path}") for path in paths}
