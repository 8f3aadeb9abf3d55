"""The manifest: lists that are refused, films that are quarantined, rows that keep their order."""

import hashlib
import os
import sqlite3
import threading

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.archives import film_bytes
from openmed.cache.film_store import FilmStore
from openmed.concurrency import ordered_map
from openmed.dataset import manifest as manifest_module
from openmed.dataset.manifest import is_inside, judge_films, read_films, write_manifest
from openmed.errors import BadInput, IntegrityError
from openmed.measurement import measure as measure_module

CLASSES = ("NORMAL", "PNEUMONIA")
HEADER = "path,label,patient,split\n"


def measure_films(data, films, **options):
    with FilmStore(data / "store") as store:
        return manifest_module.measure_films(data, films, store, **options)


def write_list(folder, rows):
    (folder / "films.csv").write_text(HEADER + "".join(row + "\n" for row in rows))


def write_film(path, seed=0, side=64):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC))


def test_the_list_is_read_as_text_with_labels_as_indexes(tmp_path):
    write_list(tmp_path, ["films/a.png,PNEUMONIA,007,", "films/b.png,NORMAL,NA,test"])
    films = read_films(tmp_path, CLASSES)
    assert films.to_dict("list") == {
        "path": ["films/a.png", "films/b.png"],
        "label": [1, 0],
        "patient": ["007", "NA"],
        "declared_split": ["", "test"],
    }


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["a.png,COVID,p,"], "a label other than NORMAL, PNEUMONIA in 1 row(s), the first on line 2"),
        (["a.png,NORMAL,p,", "b.png,NORMAL,p,exam"], "an unknown split in 1 row(s), the first on line 3"),
        (["a.png,NORMAL,,"], "no patient in 1 row(s)"),
        (["a.png,NORMAL,p,", "a.png,NORMAL,p,"], "a path that was listed before in 1 row(s)"),
        (["../a.png,NORMAL,p,"], "a path outside the data folder"),
        (["/etc/a.png,NORMAL,p,"], "a path outside the data folder"),
        (["C:/a.png,NORMAL,p,"], "a path outside the data folder"),
        ([], "lists no films"),
    ],
)
def test_a_bad_list_is_refused_in_one_sentence(tmp_path, rows, problem):
    write_list(tmp_path, rows)
    with pytest.raises(BadInput) as refusal:
        read_films(tmp_path, CLASSES)
    message = str(refusal.value)
    assert problem in message and "films.csv" in message and "\n" not in message


def test_a_refusal_does_not_repeat_names(tmp_path):
    write_list(tmp_path, ["Anna_Schmidt.png,OTHER,Anna Schmidt,"])
    with pytest.raises(BadInput) as refusal:
        read_films(tmp_path, CLASSES)
    assert "Schmidt" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"path,label\na,b\n", "must have the columns path, label, patient, split"),
        (b"", "cannot be read"),
        (HEADER.encode() + b"\xff\xfe,a,b,c\n", "cannot be read"),
        (HEADER.encode() + b'"a,b,c\n', "cannot be read"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, content, problem):
    (tmp_path / "films.csv").write_bytes(content)
    with pytest.raises(BadInput, match=problem):
        read_films(tmp_path, CLASSES)


def test_a_missing_list_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(BadInput, match="does not exist: get the sample with `dvc pull` or import films"):
        read_films(tmp_path, CLASSES)


@pytest.mark.parametrize("path", ["a/b.png", "a..b/c.png", "...", "a/x:y.png"])
def test_paths_below_the_folder_are_inside(path):
    assert is_inside(path)


@pytest.mark.parametrize("path", ["/a", "../a", "a/../../b", "a/..", "..\\a", "C:/a", "\\\\host\\a"])
def test_paths_that_lead_out_are_not_inside(path):
    assert not is_inside(path)


@pytest.fixture
def mixed_folder(tmp_path):
    for index in range(4):
        write_film(tmp_path / f"films/{index}.png", index)
    (tmp_path / "films/copy.png").write_bytes((tmp_path / "films/0.png").read_bytes())
    (tmp_path / "films/again.png").write_bytes((tmp_path / "films/0.png").read_bytes())
    (tmp_path / "films/text.png").write_text("no film")
    (tmp_path / "films/empty.png").touch()
    write_film(tmp_path / "films/small.png", side=20)
    cv2.imwrite(str(tmp_path / "films/blank.png"), np.full((64, 64), 80, np.uint8))
    names = ["3", "text", "0", "small", "copy", "blank", "1", "gone", "again", "2", "empty"]
    write_list(tmp_path, [f"films/{name}.png,NORMAL,p{name}," for name in names])
    return tmp_path


def test_bad_films_are_quarantined_with_a_reason_and_good_ones_accepted(mixed_folder):
    ticks = []
    manifest = measure_films(
        mixed_folder, read_films(mixed_folder, CLASSES), tick=lambda: ticks.append(1)
    ).set_index("patient")
    assert len(ticks) == len(manifest) == 11
    bad = manifest[manifest["status"] == "quarantined"]["reason"].to_dict()
    assert bad == {
        "ptext": "the film is not a JPEG, PNG, TIFF or DICOM image",
        "pempty": "the film is empty",
        "psmall": "only 20 x 20 pixels",
        "pblank": "the film is blank",
        "pgone": "cannot be read: No such file or directory",
    }
    assert set(manifest["status"]) == {"accepted", "quarantined"}
    assert (manifest.loc[manifest["status"] == "accepted", "reason"] == "").all()
    assert manifest.loc[["ptext", "pgone"], ["width", "mean", "sharpness"]].isna().all(axis=None)


def test_rows_keep_the_order_of_the_list(mixed_folder):
    films = read_films(mixed_folder, CLASSES)
    manifest = measure_films(mixed_folder, films)
    assert list(manifest["path"]) == list(films["path"])
    for path, digest in zip(manifest["path"], manifest["sha256"], strict=True):
        file = mixed_folder / path
        assert digest == (hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "")


def test_ids_are_unique_for_exact_copies_and_come_from_the_content(mixed_folder):
    manifest = measure_films(mixed_folder, read_films(mixed_folder, CLASSES)).set_index("patient")
    assert manifest["id"].is_unique
    first = hashlib.sha256((mixed_folder / "films/0.png").read_bytes()).hexdigest()[:16]
    assert list(manifest.loc[["p0", "pcopy", "pagain"], "id"]) == [first, first + "-2", first + "-3"]


def test_measurements_agree_with_numpy(tmp_path):
    write_film(tmp_path / "a.png", 5)
    write_list(tmp_path, ["a.png,NORMAL,p,"])
    row = measure_films(tmp_path, read_films(tmp_path, CLASSES)).iloc[0]
    film = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_GRAYSCALE).astype(float)
    padded = np.pad(film, 1, mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    assert (row["width"], row["height"], row["bits"]) == (64, 64, 8)
    assert row["mean"] == pytest.approx(film.mean())
    assert row["std"] == pytest.approx(film.std())
    assert row["sharpness"] == pytest.approx((neighbours - 4 * film).var(), rel=1e-4)


def test_a_folder_of_nothing_but_broken_films_is_measured_not_crashed_on(tmp_path):
    (tmp_path / "a.png").write_text("no film")
    write_list(tmp_path, ["a.png,NORMAL,p,", "b.png,NORMAL,p,"])
    manifest = measure_films(tmp_path, read_films(tmp_path, CLASSES))
    assert list(manifest["status"]) == ["quarantined"] * 2 and manifest["id"].is_unique
    assert manifest["width"].isna().all() and str(manifest["width"].dtype) == "Int64"


@pytest.fixture
def decoded(monkeypatch):
    """Counts the films that are decoded."""
    seen, original = [], measure_module.decode_with_depth
    monkeypatch.setattr(
        measure_module, "decode_with_depth", lambda *given: (seen.append(1), original(*given))[1]
    )
    return seen


def settle(folder):
    """Dates all films back: a file that was written just now is not trusted to stay as it is."""
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))


def test_films_that_are_known_are_not_decoded_again(mixed_folder, decoded):
    films = read_films(mixed_folder, CLASSES)
    settle(mixed_folder)
    first = measure_films(mixed_folder, films)
    assert len(decoded) == 10
    pd.testing.assert_frame_equal(measure_films(mixed_folder, films), first)
    assert len(decoded) == 10
    write_film(mixed_folder / "films/new.png", 77)
    write_list(mixed_folder, [*(f"{path},NORMAL,p," for path in films["path"]), "films/new.png,NORMAL,p,"])
    assert len(measure_films(mixed_folder, read_films(mixed_folder, CLASSES))) == 12
    assert len(decoded) == 11


def write(folder, films, store):
    """Writes a manifest as the pipeline does, part by part, and returns the file's bytes."""
    details = []
    with FilmStore(folder / store) as opened:
        judged = judge_films(folder, films, opened, details.append)
    write_manifest(folder / "manifest.parquet", judged, details)
    return (folder / "manifest.parquet").read_bytes()


def test_a_manifest_that_was_written_in_parts_is_whole(mixed_folder, monkeypatch):
    monkeypatch.setattr(manifest_module, "_CHUNK_FILMS", 4)
    films = read_films(mixed_folder, CLASSES)
    write(mixed_folder, films, "store")
    pd.testing.assert_frame_equal(
        pd.read_parquet(mixed_folder / "manifest.parquet"), measure_films(mixed_folder, films)
    )


def test_a_manifest_has_the_same_bytes_whatever_the_store_held(mixed_folder, monkeypatch, decoded):
    monkeypatch.setattr(manifest_module, "_CHUNK_FILMS", 4)
    films = read_films(mixed_folder, CLASSES)
    settle(mixed_folder)
    fresh = write(mixed_folder, films, "fresh")
    with FilmStore(mixed_folder / "half") as store:
        manifest_module.measure_films(mixed_folder, films.iloc[[9, 1, 4, 2, 7]], store)
    before = len(decoded)
    assert write(mixed_folder, films, "half") == fresh and len(decoded) == before + 6
    assert write(mixed_folder, films, "half") == fresh and len(decoded) == before + 6


def test_a_manifest_with_details_of_other_films_is_not_written(mixed_folder):
    films = read_films(mixed_folder, CLASSES)
    with FilmStore(mixed_folder / "store") as store:
        judged = judge_films(mixed_folder, films, store, lambda part: None)
    with pytest.raises(ValueError, match="there are 11 films and details of 0"):
        write_manifest(mixed_folder / "manifest.parquet", judged, [])
    assert not (mixed_folder / "manifest.parquet").exists()


def test_a_film_that_is_written_again_is_measured_again(mixed_folder):
    films = read_films(mixed_folder, CLASSES)
    settle(mixed_folder)
    before = measure_films(mixed_folder, films).set_index("path")
    write_film(mixed_folder / "films/1.png", 55)
    after = measure_films(mixed_folder, films).set_index("path")
    changed = before["sha256"] != after["sha256"]
    assert list(changed.index[changed]) == ["films/1.png"]


def test_the_store_of_a_film_that_was_just_written_is_not_trusted(mixed_folder):
    films = read_films(mixed_folder, CLASSES)
    measure_films(mixed_folder, films)
    write_film(mixed_folder / "films/1.png", 55)
    found = measure_films(mixed_folder, films).set_index("path").at["films/1.png", "sha256"]
    assert found == hashlib.sha256((mixed_folder / "films/1.png").read_bytes()).hexdigest()


def damage(database, column, change):
    """Changes every block of measurements in a store."""
    for block, content in database.execute(f"SELECT block, {column} FROM blocks").fetchall():
        database.execute(f"UPDATE blocks SET {column} = ? WHERE block = ?", (change(content), block))


def test_a_damaged_block_of_the_store_is_not_used(mixed_folder, decoded):
    films = read_films(mixed_folder, CLASSES)
    settle(mixed_folder)
    first = measure_films(mixed_folder, films)
    before, mean = len(decoded), np.float64(first["mean"].dropna().iloc[0])
    with sqlite3.connect(mixed_folder / "store/films.db") as database:
        damage(database, "content", lambda old: old.replace(mean.tobytes(), (mean + 1).tobytes()))
    pd.testing.assert_frame_equal(measure_films(mixed_folder, films), first)
    assert len(decoded) == 2 * before
    measure_films(mixed_folder, films)
    assert len(decoded) == 2 * before  # what was damaged was replaced


def test_a_block_that_is_said_to_hold_another_film_gives_nothing_wrong(mixed_folder):
    films = read_films(mixed_folder, CLASSES)
    settle(mixed_folder)
    first = measure_films(mixed_folder, films.iloc[:4])
    measure_films(mixed_folder, films)
    with sqlite3.connect(mixed_folder / "store/films.db") as database:
        assert database.execute("SELECT COUNT(*) FROM blocks").fetchone() == (2,)
        database.execute("UPDATE measurements SET block = 3 - block")
    pd.testing.assert_frame_equal(measure_films(mixed_folder, films.iloc[:4]), first)


def test_a_store_that_is_no_database_any_more_is_made_anew(mixed_folder):
    films = read_films(mixed_folder, CLASSES)
    first = measure_films(mixed_folder, films)
    for path in (mixed_folder / "store").iterdir():
        path.write_bytes(b"not a database, but long enough to be looked at" * 9)
    pd.testing.assert_frame_equal(measure_films(mixed_folder, films), first)


def test_a_film_that_is_not_the_imported_one_stops_with_its_name(tmp_path):
    write_film(tmp_path / "a.png", 1)
    write_film(tmp_path / "b.png", 2)
    hashes = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.png", "b.png")]
    lines = [f"{name},NORMAL,p,,{digest}\n" for name, digest in zip(("a.png", "b.png"), hashes, strict=True)]
    (tmp_path / "films.csv").write_text("path,label,patient,split,sha256\n" + "".join(lines))
    films = read_films(tmp_path, CLASSES)
    assert list(measure_films(tmp_path, films)["sha256"]) == hashes
    content = bytearray((tmp_path / "b.png").read_bytes())
    content[60] ^= 1
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"1 film\(s\) were changed since .* b\.png".replace(" b", "/b")):
        measure_films(tmp_path, films)


def test_what_is_known_of_a_patient_is_read_with_its_type(tmp_path):
    (tmp_path / "films.csv").write_text(
        "path,label,patient,split,sex,age_years,year\na.png,NORMAL,p,,F,7,2021\nb.png,NORMAL,q,,,,\n"
    )
    films = read_films(tmp_path, CLASSES)
    assert films["age_years"].tolist() == [7, pd.NA] and films["sex"].tolist() == ["F", ""]
    (tmp_path / "films.csv").write_text("path,label,patient,split,age_years\na.png,NORMAL,p,,old\n")
    with pytest.raises(BadInput, match="a value in age_years that is no number"):
        read_films(tmp_path, CLASSES)
    (tmp_path / "films.csv").write_text("path,label,patient,split,address\na.png,NORMAL,p,,x\n")
    with pytest.raises(BadInput, match="may have no further columns than sha256, sex"):
        read_films(tmp_path, CLASSES)


def test_bytes_that_are_not_those_of_the_manifest_are_refused(tmp_path):
    write_film(tmp_path / "a.png", 1)
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert film_bytes(tmp_path, "a.png", digest) == (tmp_path / "a.png").read_bytes()
    with pytest.raises(IntegrityError, match=r"a\.png was changed after it was validated"):
        film_bytes(tmp_path, "a.png", "0" * 64)
    with pytest.raises(IntegrityError, match=r"b\.png cannot be read any more"):
        film_bytes(tmp_path, "b.png", digest)


def test_an_ordered_map_keeps_order_and_bounds_what_is_in_flight():
    started, lock = [], threading.Lock()

    def square(number):
        with lock:
            started.append(number)
        return number * number

    results = ordered_map(square, iter(range(10_000)))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) < 2_000
    assert list(results) == [n * n for n in range(3, 10_000)]


def test_an_ordered_map_passes_errors_on():
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda n: 1 / n, [1, 0, 1]))
