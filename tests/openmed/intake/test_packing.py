"""Imported films in archives: what is appended, what a kill leaves, and what the stages make of them."""

import csv
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import pandas as pd
import pytest

from openmed import archives
from openmed.archives import place_of, read_stored
from openmed.cache.film_store import FilmStore
from openmed.cache.writing import write_cache
from openmed.dataset.manifest import measure_films, read_films
from openmed.errors import BadInput, IntegrityError
from openmed.files import hashes_below, sha256_bytes
from openmed.intake import appending
from openmed.intake.appending import append_films
from openmed.intake.importing import import_films
from openmed.phantoms.phantom import draw
from openmed.privacy.cleaning import Pseudonyms

CLASSES = ("NORMAL", "PNEUMONIA")
SECRET = Pseudonyms(b"a secret of the site")


@pytest.fixture(autouse=True)
def small_archives(monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_FILMS", 4)


def source_of(folder, numbers):
    """Class folders of films that all differ, a patient each."""
    for number in numbers:
        path = folder / CLASSES[number % 2] / f"person{number}_virus_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw(number, 0, pneumonia=bool(number % 2), size_px=48).film)
    return folder


def imported(tmp_path, name, numbers):
    import_films(
        source_of(tmp_path / f"{name}-source", numbers),
        tmp_path / name,
        class_names=CLASSES,
        pseudonyms=SECRET,
        every_class=False,
    )
    return tmp_path / name


def rows(data):
    return pd.read_csv(data / "films.csv", dtype=str, keep_default_na=False)


def assert_whole(data, count):
    """Every row is a film with its hash, and no file is there that no row names."""
    films = rows(data)
    assert len(films) == films["sha256"].nunique() == count
    for film in films.itertuples():
        assert sha256_bytes(read_stored(f"{data}/{film.path}")) == film.sha256
    held = {place_of(path).file for path in films["path"]}
    assert set(hashes_below(data)) == held | {"films.csv"}


def unpacked(data, target):
    """The same films as a folder of files, as imports of before made it."""
    films = rows(data)
    for path in films["path"]:
        file = target / place_of(path).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(read_stored(f"{data}/{path}"))
    films["path"] = [place_of(path).name for path in films["path"]]
    films.to_csv(target / "films.csv", index=False)
    return target


def test_an_import_is_packed_in_the_order_of_hashes_whatever_the_source_calls_its_films(tmp_path):
    data = imported(tmp_path, "data", range(10))
    assert_whole(data, 10)
    names = [place_of(path).name for path in rows(data)["path"]]
    assert names == sorted(names) and len(list((data / "films").iterdir())) == 3
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for number in range(10):
            old = f"{CLASSES[number % 2]}/person{number}_virus_1.png"
            new = f"{CLASSES[number % 2]}/person{99 - number}_virus_1.png"
            archive.write(tmp_path / "data-source" / old, new)
    import_films(tmp_path / "other.zip", tmp_path / "other", class_names=CLASSES, pseudonyms=SECRET)
    assert hashes_below(tmp_path / "other/films") == hashes_below(data / "films")


def test_added_films_go_into_new_archives_and_the_old_ones_keep_their_bytes(tmp_path):
    data = imported(tmp_path, "data", range(10))
    before, states = hashes_below(data / "films"), {f: f.stat() for f in (data / "films").iterdir()}
    added = append_films(imported(tmp_path, "new", range(8, 13)), data, CLASSES)
    assert added["path"].str.startswith("films/00003.tar/").all() and len(added) == 3
    assert_whole(data, 13)
    after = hashes_below(data / "films")
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"00003.tar"}
    assert all(file.stat() == state for file, state in states.items())
    assert append_films(imported(tmp_path, "again", range(8, 13)), data, CLASSES).empty
    assert hashes_below(data / "films") == after


def test_films_are_added_to_a_folder_of_files(tmp_path):
    data = unpacked(imported(tmp_path, "packed", range(6)), tmp_path / "data")
    before = hashes_below(data)
    append_films(imported(tmp_path, "new", range(4, 9)), data, CLASSES)
    assert_whole(data, 9)
    after = hashes_below(data)
    assert all(after[name] == digest for name, digest in before.items() if name != "films.csv")
    assert set(after) - set(before) == {"films/00000.tar"}


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_while_films_are_added_is_made_good_by_the_same_or_another_call(tmp_path, monkeypatch, moves):
    data = imported(tmp_path, "data", range(4))
    listed, left, replace = (data / "films.csv").read_bytes(), [moves], Path.replace

    def killed(file, target):
        if file.parents[1].name == "ready" or file.parent.name == "ready":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return replace(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(appending.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            append_films(imported(tmp_path, "new", range(4, 16)), data, CLASSES)
    assert (data / "films.csv").read_bytes() == listed
    assert len(measured(tmp_path, data)) == 4
    append_films(imported(tmp_path, "less", range(4, 6)), data, CLASSES)
    assert_whole(data, 6)
    append_films(imported(tmp_path, "again", range(4, 16)), data, CLASSES)
    assert_whole(data, 16)


def measured(tmp_path, data, store="store"):
    with FilmStore(tmp_path / store) as opened:
        return measure_films(data, read_films(data, CLASSES), opened)


def test_packed_films_are_measured_and_decoded_as_files_are(tmp_path):
    data = imported(tmp_path, "data", range(10))
    files = unpacked(data, tmp_path / "files")
    packed, loose = measured(tmp_path, data, "one"), measured(tmp_path, files, "other")
    pd.testing.assert_frame_equal(packed.drop(columns="path"), loose.drop(columns="path"))
    for folder, films, store in ((data, packed, "one"), (files, loose, "other")):
        with FilmStore(tmp_path / store) as opened:
            write_cache(tmp_path / f"cache-{store}", folder, films, [32, 48], opened)
    assert hashes_below(tmp_path / "cache-one") == hashes_below(tmp_path / "cache-other")


def test_films_in_archives_that_nobody_touched_are_not_read_again(tmp_path, monkeypatch):
    data = imported(tmp_path, "data", range(10))
    for archive in (data / "films").iterdir():
        os.utime(archive, ns=(0, 10**18))  # a file that was just written might be written to again
    first = measured(tmp_path, data)
    with monkeypatch.context() as patch:
        patch.setattr("openmed.measurement.measure.read_stored", lambda path: pytest.fail("read again"))
        pd.testing.assert_frame_equal(measured(tmp_path, data), first)


def test_films_that_moved_into_another_archive_are_hashed_and_not_decoded_again(tmp_path, monkeypatch):
    new = imported(tmp_path, "new", range(4, 9))
    first = measured(tmp_path, new)
    data = imported(tmp_path, "data", range(4))
    measured(tmp_path, data)
    append_films(new, data, CLASSES)
    with monkeypatch.context() as patch:
        patch.setattr(
            "openmed.measurement.measure.decode_with_depth", lambda *_: pytest.fail("decoded again")
        )
        again = measured(tmp_path, data)
    pd.testing.assert_frame_equal(
        again.iloc[4:].drop(columns="path").reset_index(drop=True), first.drop(columns="path")
    )


def test_damaged_archives_stop_the_measuring(tmp_path):
    data = imported(tmp_path, "data", range(10))
    film = rows(data).iloc[5]
    archive, offset, _ = place_of(f"{data}/{film.path}")
    whole = bytearray(Path(archive).read_bytes())
    whole[offset + 600] ^= 4
    Path(archive).write_bytes(whole)
    with pytest.raises(IntegrityError, match=f"1 film.* the first is {data}/{film.path}"):
        measured(tmp_path, data)
    os.truncate(archive, offset + 600)
    with pytest.raises(IntegrityError, match=r"films/00001\.tar is cut short: get the data back"):
        measured(tmp_path, data)
    Path(archive).unlink()
    with pytest.raises(IntegrityError, match=r"films/00001\.tar cannot be read: No such file"):
        measured(tmp_path, data)


def test_a_packed_data_folder_can_be_imported_as_a_list_and_as_what_tar_unpacks(tmp_path):
    data = imported(tmp_path, "data", range(6))
    for name, secret in (("again", SECRET), ("as-files", None)):
        import_films(data / "films.csv", tmp_path / name, class_names=CLASSES, pseudonyms=secret)
        assert set(rows(tmp_path / name)["sha256"]) == set(rows(data)["sha256"])
    assert rows(tmp_path / "as-files")["path"].str.fullmatch(r"films/films/[A-Z]+/\w+\.png").all()
    for archive in (data / "films").iterdir():
        shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    import_films(tmp_path / "unpacked", tmp_path / "third", class_names=CLASSES, pseudonyms=SECRET)
    assert hashes_below(tmp_path / "third/films") == hashes_below(data / "films")


def test_a_list_that_names_a_film_in_no_archive_is_refused_by_its_line(tmp_path):
    with (tmp_path / "films.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "patient"))
        writer.writerow(("films/00000.tar/512/NORMAL/a.png", "NORMAL", "p"))
    with pytest.raises(BadInput, match="a file that is not there on line 2"):
        import_films(tmp_path / "films.csv", tmp_path / "data", class_names=CLASSES)
