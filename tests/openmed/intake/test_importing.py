"""Importing: every published layout comes in, everything doubtful is refused, nothing half-written stays."""

import hashlib
import os
import stat
import struct
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openmed.concurrency import ordered_map
from openmed.dataset.manifest import read_films
from openmed.errors import BadInput, ResourceError
from openmed.films.images import decode_film
from openmed.intake import importing, readers
from openmed.intake.identity import patient_of
from openmed.intake.importing import import_films
from openmed.intake.sources import list_source

CLASSES = ("NORMAL", "PNEUMONIA")
FILM = cv2.imencode(".jpeg", np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8))[1].tobytes()

PUBLISHED = {
    "train/NORMAL": ["IM-0115-0001.jpeg", "IM-0115-0002.jpeg", "NORMAL2-IM-0927-0001-0002.jpeg"],
    "train/PNEUMONIA": [f"person{n}_virus_{i}.jpeg" for n in range(10) for i in range(3)],
    "val/NORMAL": ["NORMAL2-IM-1427-0001.jpeg"],
    "val/PNEUMONIA": ["person1946_bacteria_4874.jpeg"],
    "test/NORMAL": ["IM-0001-0001.jpeg", "NORMAL2-IM-0029-0001.jpeg"],
    "test/PNEUMONIA": ["person1_virus_6.jpeg", "person100_bacteria_475.jpeg"],
}


def content_of(name):
    """A real film with its own bytes: decoders stop at the end mark."""
    return FILM + name.encode()


def paths_of(layout, above="chest_xray"):
    return [f"{above}/{folder}/{name}".lstrip("/") for folder, names in layout.items() for name in names]


def make_folder(root, paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content_of(Path(path).name))
    return root


def make_zip(path, names, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, content_of(Path(name).name))
    return path


def make_source(kind, tmp_path, paths):
    return make_zip(tmp_path / "s.ZIP", paths) if kind == "zip" else make_folder(tmp_path / "source", paths)


def table(target):
    """The list of films; its hashes are checked and taken off."""
    films = pd.read_csv(target / "films.csv", dtype=str, keep_default_na=False)
    for path, digest in zip(films["path"], films["sha256"], strict=True):
        assert hashlib.sha256((target / path).read_bytes()).hexdigest() == digest
    return films.drop(columns="sha256")


def refuse(source, target, problem, **options):
    """The import is refused in one sentence and leaves nothing beside or at the target."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(BadInput, match=problem) as refusal:
        import_films(source, target, **{"class_names": CLASSES} | options)
    assert "\n" not in str(refusal.value)
    assert sorted(target.parent.rglob("*")) == before
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person1_bacteria_1.jpeg", "person1"),
        ("person1000_virus_1681.jpeg", "person1000"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0543-0001-0002.jpeg", "IM-0543"),
        ("NORMAL2-IM-0927-0001.jpeg", "NORMAL2-IM-0927"),
        ("NORMAL2-IM-1154-0001-0002.jpeg", "NORMAL2-IM-1154"),
        ("patient0012_3.jpeg", "patient0012"),
        ("patient-12a_0.png", "patient12a"),
        ("films/NORMAL/patient7_1.png", "patient7"),
    ],
)
def test_the_patient_is_read_from_names_that_follow_a_rule(name, patient):
    assert patient_of(name) == (patient, True)


@pytest.mark.parametrize(
    "name", ["scan_1.png", "person_1.png", "person1.png", "IM-12.png", "patient.png", "IM-1-2b"]
)
def test_any_other_film_is_a_patient_of_its_own(name):
    assert patient_of(name) == (Path(name).stem, False)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_published_layout_comes_in_with_its_splits(tmp_path, kind):
    source = make_source(kind, tmp_path, paths_of(PUBLISHED))
    summary = import_films(source, tmp_path / "data", class_names=CLASSES)
    assert summary.to_json() == {
        "films": 39,
        "per_class": {"NORMAL": 6, "PNEUMONIA": 33},
        "patients": 10 + 2 + 1 + 1 + 2 + 1,
        "skipped": 0,
        "unmatched": 0,
        "recognised": {
            "films": 39,
            "by": {
                "file names by the pattern of person<P>_<any>": 33,
                "file names by the pattern of IM-<P>-<n>": 3,
                "file names by the pattern of NORMAL2-IM-<P>-<n>": 3,
            },
            "unnamed": 0,
            "returning": 0,
            "nobody": 0,
            "copies": 0,
            "repeated_rows": 0,
            "mixed": 0,
        },
        "splits": {"test": 4, "train": 33, "validation": 2},
        "merged_validation": 0,
        "withheld": {},
    }
    films = table(tmp_path / "data").set_index("path")
    assert list(films.index) == sorted(films.index)
    assert films.loc["films/validation/PNEUMONIA/person1946_bacteria_4874.jpeg"].to_list() == [
        "PNEUMONIA",
        "person1946",
        "validation",
    ]
    for path in films.index:
        assert (tmp_path / "data" / path).read_bytes() == content_of(Path(path).name)
    stored = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "data").as_posix() for path in stored} == {"films.csv", *films.index}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_was_imported_is_what_the_manifest_reads(tmp_path):
    source = make_folder(tmp_path / "source", paths_of(PUBLISHED))
    import_films(source, tmp_path / "data", class_names=CLASSES)
    films = read_films(tmp_path / "data", CLASSES)
    assert len(films) == 39 and set(films["declared_split"]) == {"train", "validation", "test"}


@pytest.mark.parametrize("above", ["", "download/chest xray/v2"])
def test_folders_above_the_classes_do_not_matter_and_case_neither(tmp_path, above):
    source = make_folder(tmp_path / "s", paths_of({"normal": ["a.JPG"], "Pneumonia": ["b.png"]}, above))
    summary = import_films(source, tmp_path / "data", class_names=CLASSES)
    assert table(tmp_path / "data").to_dict("list") == {
        "path": ["films/NORMAL/a.JPG", "films/PNEUMONIA/b.png"],
        "label": ["NORMAL", "PNEUMONIA"],
        "patient": ["a", "b"],
        "split": ["", ""],
    }
    assert summary.unmatched == 2 and summary.splits == {"undeclared": 2}


def test_a_train_folder_alone_declares_nothing(tmp_path):
    source = make_zip(tmp_path / "s.zip", ["x/train/NORMAL/a.png", "x/train/PNEUMONIA/b.png"])
    summary = import_films(source, tmp_path / "data", class_names=CLASSES)
    assert set(table(tmp_path / "data")["split"]) == {""}
    assert summary.splits == {"undeclared": 2}


@pytest.mark.parametrize("folder", ["val", "valid", "validation", "VAL"])
def test_every_name_of_the_validation_folder_is_known(tmp_path, folder):
    paths = [f"{split}/{label}/{split}.png" for split in ("train", folder, "test") for label in CLASSES]
    import_films(make_folder(tmp_path / "s", paths), tmp_path / "data", class_names=CLASSES)
    assert Counter(table(tmp_path / "data")["split"]) == {"train": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(("has_test", "becomes"), [(True, "train"), (False, "")])
def test_a_validation_folder_of_under_one_percent_goes_back_to_training(tmp_path, has_test, becomes):
    paths = [f"train/{label}/{n}.png" for label in CLASSES for n in range(150)]
    paths += [f"val/{label}/1.png" for label in CLASSES]
    paths += [f"test/{label}/1.png" for label in CLASSES] * has_test
    summary = import_films(make_zip(tmp_path / "s.zip", paths), tmp_path / "data", class_names=CLASSES)
    films = table(tmp_path / "data").set_index("path")
    assert summary.merged_validation == 2
    assert set(films["split"]) == ({"train", "test"} if has_test else {""})
    assert films.loc["films/validation/NORMAL/1.png", "split"] == becomes


def test_a_validation_folder_of_one_percent_stays(tmp_path):
    paths = [f"train/{label}/{n}.png" for label in CLASSES for n in range(99)]
    paths += [f"val/{label}/v.png" for label in CLASSES]
    summary = import_films(make_zip(tmp_path / "s.zip", paths), tmp_path / "data", class_names=CLASSES)
    assert summary.splits == {"train": 198, "validation": 2} and summary.merged_validation == 0


def test_a_test_folder_beside_undeclared_films_stays_declared(tmp_path):
    paths = [f"{folder}{label}/a.png" for folder in ("", "test/") for label in CLASSES]
    summary = import_films(make_folder(tmp_path / "s", paths), tmp_path / "data", class_names=CLASSES)
    assert summary.splits == {"test": 2, "undeclared": 2}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_litter_is_ignored_and_other_files_in_class_folders_are_counted(tmp_path, kind):
    paths = ["x/NORMAL/a.png", "x/PNEUMONIA/b.png"]
    litter = ["__MACOSX/x/NORMAL/._a.png", "x/.DS_Store", "x/NORMAL/.a.png", "x/NORMAL/Thumbs.db"]
    others = ["x/NORMAL/notes.txt", "x/PNEUMONIA/b.pdf", "x/overview.png"]
    source = make_source(kind, tmp_path, [*paths, *litter, ".git/c.png", *others, "README.txt"])
    summary = import_films(source, tmp_path / "data", class_names=CLASSES)
    assert (summary.films, summary.skipped) == (2, 3)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("folder", ["COVID", "NORMAL/masks", "other/deep"])
def test_images_in_a_folder_of_no_known_class_are_refused(tmp_path, kind, folder):
    source = make_source(kind, tmp_path, ["x/NORMAL/a.png", "x/PNEUMONIA/b.png", f"x/{folder}/c.png"])
    what = "(file|entry) . of .* is an image in a folder that is no class folder"
    error = refuse(source, tmp_path / "data", what)
    assert folder not in error


@pytest.mark.parametrize("paths", [["a.png"], ["x/COVID/a.png"], ["x/readme.txt"]])
def test_a_source_without_class_folders_is_refused_with_what_is_wanted(tmp_path, paths):
    source = make_folder(tmp_path / "s", paths)
    refuse(source, tmp_path / "data", r"no folder named after a class \(NORMAL, PNEUMONIA\): give class")


def test_a_class_without_films_is_refused(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/notes.txt"])
    refuse(source, tmp_path / "data", "has no film of class PNEUMONIA")


def test_a_missing_source_and_an_unknown_kind_are_refused(tmp_path):
    refuse(tmp_path / "gone", tmp_path / "data", "gone does not exist: give a folder")
    (tmp_path / "films.rar").write_bytes(b"x")
    refuse(tmp_path / "films.rar", tmp_path / "data", r"neither a folder nor a \.zip or \.csv file")


@pytest.mark.parametrize("classes", [(), ("NORMAL", "normal"), ("A", ""), ("A", ".."), ("A", "B/C")])
def test_unusable_class_names_are_refused(tmp_path, classes):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png"])
    refuse(source, tmp_path / "data", "class", class_names=classes)


@pytest.mark.parametrize(
    "paths",
    [
        ["x/NORMAL/a.png", "y/NORMAL/a.png"],
        ["x/NORMAL/a.png", "x/normal/a.png"],
        ["NORMAL/a.png", "NORMAL/A.PNG"],
        ["x/val/NORMAL/a.png", "x/valid/NORMAL/a.png"],
    ],
)
def test_two_films_for_one_place_are_refused(tmp_path, paths):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in (*paths, "PNEUMONIA/b.png"):
            archive.writestr(path, content_of(path))
    refuse(tmp_path / "s.zip", tmp_path / "data", "two films that would be stored under one name")


def test_two_zip_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = make_zip(tmp_path / "s.zip", ["NORMAL/a.png", "NORMAL/a.png", "PNEUMONIA/b.png"])
    refuse(source, tmp_path / "data", "two files under one name")


def test_a_file_name_with_control_characters_is_refused(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a\nb.png", "PNEUMONIA/b.png"])
    refuse(source, tmp_path / "data", "has unusable characters in its name")


def test_a_target_with_content_is_refused_and_an_empty_one_used(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/b.png"])
    (tmp_path / "data").mkdir()
    import_films(source, tmp_path / "data", class_names=CLASSES)
    refuse(source, tmp_path / "data", "data exists and is not empty: choose another folder")
    refuse(source, source / "NORMAL/a.png", "exists and is not empty")


def test_a_source_is_written_beside_each_film_and_an_unfit_name_is_refused(tmp_path):
    source = make_source("folder", tmp_path, paths_of(PUBLISHED))
    import_films(source, tmp_path / "data", class_names=CLASSES, source_name="east-2")
    assert set(read_films(tmp_path / "data", CLASSES)["source"]) == {"east-2"}
    for name in ("St. Mary's", "x" * 33, "a,b", "\n"):
        refuse(source, tmp_path / "other", "cannot name a source", source_name=name)
    listed = tmp_path / "data" / "films.csv"
    listed.write_text(listed.read_text().replace("east-2", "Doe Jane"))
    with pytest.raises(BadInput, match="a source that is no short plain name"):
        read_films(tmp_path / "data", CLASSES)


def test_the_folders_above_the_target_are_made(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/b.png"])
    import_films(source, tmp_path / "new" / "data", class_names=CLASSES)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]


def test_a_target_that_cannot_be_written_is_a_resource_error(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/b.png"])
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="data cannot be written: Not a directory"):
        import_films(source, tmp_path / "file" / "data", class_names=CLASSES)


def test_an_interruption_while_copying_leaves_nothing(tmp_path, monkeypatch):
    source, copies = make_folder(tmp_path / "s", paths_of(PUBLISHED)), []

    def interrupt(film, folder, path, copied=importing._copied):
        row = copied(film, folder, path)
        copies.append(folder / path)
        if len(copies) == 5:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(importing, "_copied", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_films(source, tmp_path / "data", class_names=CLASSES)
    assert copies[0].is_relative_to(tmp_path) and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_film_that_cannot_be_read_leaves_nothing(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/b.png"])
    (source / "PNEUMONIA/c.png").symlink_to(tmp_path / "gone.png")
    refuse(
        source, tmp_path / "data", r"file 3 of .* \(by name\) cannot be read \(No such file or directory\)"
    )


# --- zip archives that cannot be trusted


@pytest.mark.parametrize(
    "name",
    ["/etc/NORMAL/a.png", "../NORMAL/a.png", "x/../../a.png", "C:/a.png", "x\\..\\a.png", "x/a\tb.png"],
)
def test_a_zip_entry_that_leads_out_is_refused(tmp_path, name):
    source = make_zip(tmp_path / "s.zip", ["NORMAL/a.png", "PNEUMONIA/b.png", name])
    refuse(source, tmp_path / "data", r"entry 3 of .*s\.zip has a path that leads out of the archive")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_zip_entry_that_is_no_plain_file_is_refused(tmp_path, kind):
    source = make_zip(tmp_path / "s.zip", ["NORMAL/a.png", "PNEUMONIA/b.png"])
    with zipfile.ZipFile(source, "a") as archive:
        entry = zipfile.ZipInfo("NORMAL/link.png")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    refuse(source, tmp_path / "data", "entry 3 of .* is a link or a device")


def patched_zip(path, **fields):
    """A zip whose last entry claims something else in the central directory."""
    make_zip(path, ["NORMAL/a.png", "PNEUMONIA/b.png"], zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02")
    for offset, form, value in fields.values():
        struct.pack_into(form, content, start + offset, value)
    path.write_bytes(content)
    return path


def test_an_encrypted_zip_is_refused(tmp_path):
    source = patched_zip(tmp_path / "s.zip", flags=(8, "<H", 1))
    refuse(source, tmp_path / "data", "entry 2 of .* is encrypted")


def test_a_zip_entry_of_more_than_512_mib_is_refused(tmp_path):
    source = patched_zip(tmp_path / "s.zip", size=(24, "<I", (512 << 20) + 1))
    refuse(source, tmp_path / "data", "entry 2 of .* unpacks to more than 512 MiB")


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("NORMAL/a.png", "PNEUMONIA/b.png"):
            archive.writestr(name, bytes(4 << 20))
    monkeypatch.setattr(readers, "_HARMLESS_BYTES", 5 << 20)
    refuse(tmp_path / "s.zip", tmp_path / "data", "would unpack to 8 MiB, more than 200 times its size")
    monkeypatch.setattr(readers, "_HARMLESS_BYTES", 9 << 20)
    assert import_films(tmp_path / "s.zip", tmp_path / "data", class_names=CLASSES).films == 2


def test_an_entry_gives_no_more_bytes_than_it_declared(tmp_path):
    source = patched_zip(tmp_path / "s.zip", size=(24, "<I", 100))
    refuse(source, tmp_path / "data", r"entry 2 of .* cannot be read \(Bad CRC-32")


def test_an_unknown_compression_is_refused(tmp_path):
    source = patched_zip(tmp_path / "s.zip", method=(10, "<H", 97))
    refuse(source, tmp_path / "data", "entry 2 of .* cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_zip_is_refused(tmp_path, share):
    source = make_zip(tmp_path / "s.zip", paths_of(PUBLISHED))
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    refuse(source, tmp_path / "data", r"s\.zip is not a whole zip archive .*: get it again")


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_zip_is_read_or_refused_in_one_sentence(tmp_path, method, data):
    names = ["x/train/NORMAL/a.png", "x/train/PNEUMONIA/b.png"]
    compression = getattr(zipfile, f"ZIP_{method}")
    content = bytearray(make_zip(tmp_path / "s.zip", names, compression).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "s.zip").write_bytes(content)
    try:
        read = [film.reader() for film in list_source(tmp_path / "s.zip", CLASSES).films]
    except BadInput as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert all(len(film) < 10_000 for film in read)


# --- CSV lists


def make_list(root, rows, header="path,label,patient,split"):
    for row in rows:
        path = root / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(path.name))
    return write_list(root, rows, header)


def write_list(root, rows, header="path,label,patient,split", encoding="utf-8"):
    root.mkdir(exist_ok=True)
    (root / "list.csv").write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return root / "list.csv"


def test_a_list_keeps_its_paths_patients_and_splits(tmp_path):
    rows = ["a/1.png,normal,P 7,train", "./b/2.jpeg,PNEUMONIA,NA,Test", "b/3.png,NORMAL,007,val"]
    summary = import_films(make_list(tmp_path / "s", rows), tmp_path / "data", class_names=CLASSES)
    assert table(tmp_path / "data").values.tolist() == [
        ["films/a/1.png", "NORMAL", "P 7", "train"],
        ["films/b/2.jpeg", "PNEUMONIA", "2", "test"],
        ["films/b/3.png", "NORMAL", "007", "validation"],
    ]
    # NA stands for nobody.
    assert (summary.unmatched, summary.patients) == (1, 3)
    assert (tmp_path / "data/films/b/2.jpeg").read_bytes() == content_of("2.jpeg")


def test_a_list_may_lack_the_split_and_have_a_byte_order_mark_and_more_columns(tmp_path):
    rows = ["1.png,PNEUMONIA,p1,x", "2.png,NORMAL,p2,y"]
    make_list(tmp_path / "s", rows)
    source = write_list(tmp_path / "s", rows, "Path, LABEL ,patient,note", "utf-8-sig")
    import_films(source, tmp_path / "data", class_names=CLASSES)
    assert list(table(tmp_path / "data")["split"]) == ["", ""]


def test_a_list_with_quotes_and_commas_survives(tmp_path):
    make_folder(tmp_path / "s", ["a,b.png", "c.png"])
    source = write_list(tmp_path / "s", ['"a,b.png",NORMAL,"x ""y""",', "c.png,PNEUMONIA,q,"])
    import_films(source, tmp_path / "data", class_names=CLASSES)
    assert read_films(tmp_path / "data", CLASSES)["patient"].to_list() == ['x "y"', "q"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("../secret.png,NORMAL,p,", "a path that leads out of the folder"),
        ("/etc/x.png,NORMAL,p,", "an absolute path that leads out of the folder"),
        (r"C:\films\x.png,NORMAL,p,", "an absolute path that leads out of the folder"),
        (r"\\\\nas\films\x.png,NORMAL,p,", "an absolute path that leads out of the folder"),
        (r"..\secret.png,NORMAL,p,", "a path that leads out of the folder"),
        ("link.png,NORMAL,p,", "a path that leads out of the folder"),
        ("a\0.png,NORMAL,p,", "a path that leads out of the folder"),
        (",NORMAL,p,", "a path that leads out of the folder"),
        ("list.csv,NORMAL,p,", r"a file that is none of \.jpg"),
        ("gone.png,NORMAL,p,", "a file that is not there"),
        ("1.png,COVID,p,", "a label other than NORMAL, PNEUMONIA"),
        ("1.png,NORMAL,  ,", "no patient"),
        ("1.png,NORMAL", "no patient"),
        ("1.png,NORMAL,p,exam", "a split other than train, validation and test"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path, row, problem):
    (tmp_path / "secret.png").write_bytes(FILM)
    good = make_list(tmp_path / "s", ["1.png,PNEUMONIA,p,", "2.png,NORMAL,p,"])
    (tmp_path / "s/link.png").symlink_to(tmp_path / "secret.png")
    good.write_text(good.read_text() + row + "\n")
    refuse(good, tmp_path / "data", f"{problem}.* on line 4: correct or remove it")


def test_rows_that_repeat_a_film_are_taken_once_and_counted(tmp_path):
    boxes = ["2.png,PNEUMONIA,q,,264,152", "2.png,PNEUMONIA,q,,562,98", "./2.png,pneumonia,q,,,"]
    source = make_list(tmp_path / "s", ["1.png,NORMAL,p,,,", *boxes], "path,label,patient,split,x,width")
    summary = import_films(source, tmp_path / "data", class_names=CLASSES)
    assert summary.per_class == {"NORMAL": 1, "PNEUMONIA": 1} and summary.recognised.repeated_rows == 2
    assert "2 rows of the list repeat another one: each film was taken once" in summary.recognised.sentences()


@pytest.mark.parametrize(
    ("again", "column"),
    [("1.png,PNEUMONIA,p,", "label"), ("./1.png,NORMAL,r,", "patient"), (r".\1.png,NORMAL,p,test", "split")],
)
def test_rows_of_a_film_that_contradict_each_other_are_refused(tmp_path, again, column):
    source = make_list(tmp_path / "s", ["1.png,NORMAL,p,", "2.png,PNEUMONIA,q,"])
    source.write_text(source.read_text() + again + "\n")
    problem = f"says two things of one film in the column {column}, on lines 2 and 4: correct or remove one"
    refuse(source, tmp_path / "data", problem)


def test_backslashes_and_absolute_paths_below_the_list_are_understood(tmp_path):
    make_folder(tmp_path / "s", ["a/1.png", "b/c/2.png", "3.png"])
    root = tmp_path / "s"
    rows = [r"a\1.png,NORMAL,p,", f"{root / 'b/c/2.png'},PNEUMONIA,q,", r".\3.png,NORMAL,r,"]
    import_films(write_list(root, rows), tmp_path / "data", class_names=CLASSES)
    assert list(table(tmp_path / "data")["path"]) == ["films/3.png", "films/a/1.png", "films/b/c/2.png"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"path;label;patient\n", "has no column label"),
        (b"", "has no column label"),
        (b"path,label,patient\n\xff,a,b\n", "cannot be read as CSV in UTF-8"),
        (b'path,label,patient\n"a"b,c,d\n', "cannot be read as CSV in UTF-8"),
        (b"path,label,patient\n", "has no film of class NORMAL"),
    ],
)
def test_what_is_no_such_list_is_refused(tmp_path, content, problem):
    (tmp_path / "list.csv").write_bytes(content)
    refuse(tmp_path / "list.csv", tmp_path / "data", problem)


# --- a part of the films


def many_films(tmp_path):
    names = {
        "NORMAL": [f"IM-{n:04d}-{i:04d}.png" for n in range(40) for i in range(1 + n % 3)],
        "PNEUMONIA": [f"person{n}_virus_{i}.png" for n in range(60) for i in range(1 + n % 7)],
    }
    return make_zip(tmp_path / "many.zip", paths_of(names, "")), names


@pytest.mark.parametrize("limit", [2, 30, 100])
def test_a_limit_takes_whole_patients_in_the_proportion_of_the_classes(tmp_path, limit):
    source, names = many_films(tmp_path)
    summary = import_films(source, tmp_path / "data", class_names=CLASSES, limit=limit, seed=1)
    films = table(tmp_path / "data")
    whole = pd.Series([patient_of(name)[0] for part in names.values() for name in part]).value_counts()
    taken = films["patient"].value_counts()
    assert (taken == whole[taken.index]).all()
    for label, most in (("NORMAL", 3), ("PNEUMONIA", 7)):
        share = max(1, round(limit * len(names[label]) / sum(map(len, names.values()))))
        assert share <= summary.per_class[label] < share + most
    assert len(list((tmp_path / "data/films").rglob("*.png"))) == summary.films == len(films)


def test_the_seed_fixes_which_patients_a_limit_takes(tmp_path):
    source, _ = many_films(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        import_films(source, tmp_path / name, class_names=CLASSES, limit=40, seed=seed)
    lists = [(tmp_path / name / "films.csv").read_bytes() for name in "abc"]
    assert lists[0] == lists[1] != lists[2]


def test_a_limit_above_the_number_of_films_takes_all(tmp_path):
    source, names = many_films(tmp_path)
    summary = import_films(source, tmp_path / "data", class_names=CLASSES, limit=10_000)
    assert summary.films == sum(map(len, names.values()))


def test_a_limit_that_cannot_hold_every_class_is_refused(tmp_path):
    source, _ = many_films(tmp_path)
    refuse(source, tmp_path / "data", "a limit of 1 films cannot hold 2 classes", limit=1)


# --- reading without extracting


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_labelled_films_are_listed_as_found_and_read_when_asked(tmp_path, kind):
    source = make_source(kind, tmp_path, paths_of(PUBLISHED))
    films = {name: rest for name, *rest in list_source(source, CLASSES).films}
    assert sorted(films) == sorted(paths_of(PUBLISHED))
    label, split, patient, reader, _ = films["chest_xray/val/PNEUMONIA/person1946_bacteria_4874.jpeg"]
    assert (label, split, patient) == ("PNEUMONIA", "validation", "person1946")
    assert reader() == reader() == content_of("person1946_bacteria_4874.jpeg")


def test_readers_work_in_threads_and_after_the_listing_ended(tmp_path):
    source = make_zip(tmp_path / "s.zip", paths_of(PUBLISHED), zipfile.ZIP_DEFLATED)
    films = list_source(source, CLASSES).films
    shapes = list(ordered_map(lambda film: decode_film(film.reader(), film.name).shape, films))
    assert shapes == [(32, 32)] * 39


def test_a_bad_source_is_refused_before_the_first_film(tmp_path):
    with pytest.raises(BadInput):
        list_source(tmp_path / "gone", CLASSES)


def test_large_films_are_copied_in_pieces(tmp_path):
    source = make_folder(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/b.png"])
    (source / "NORMAL/a.png").write_bytes(os.urandom((2 << 20) + 5))
    film = next(film for film in list_source(source, CLASSES).films if film.label == "NORMAL")
    assert [len(chunk) for chunk in film.reader.chunks()] == [1 << 20, 1 << 20, 5]
    import_films(source, tmp_path / "data", class_names=CLASSES)
    assert (tmp_path / "data/films/NORMAL/a.png").read_bytes() == (source / "NORMAL/a.png").read_bytes()


@pytest.mark.parametrize("place", [7, 30])
def test_a_damaged_zip_is_refused_without_the_name_of_a_film(tmp_path, place):
    name = b"NORMAL/DOE^JANE.png"  # zipfile quotes it, be it the name or the content that is damaged
    source = make_source("zip", tmp_path, [name.decode(), "PNEUMONIA/b.png"])
    content = bytearray(source.read_bytes())
    content[content.index(name) + place] ^= 1
    source.write_bytes(content)
    assert "DOE" not in refuse(source, tmp_path / "data", "entry 1 of .* cannot be read")


@pytest.mark.parametrize("name", ["DOE^JANE" * 99 + ".png", "DOE^JANE.png"])
def test_a_list_is_refused_without_the_name_of_a_film(tmp_path, name):
    if len(name) < 255:
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "films.csv").write_text(f"path,label,patient\n{name},NORMAL,DOE^JANE\n")
    with pytest.raises(BadInput) as refusal:
        import_films(tmp_path / "films.csv", tmp_path / "data", class_names=CLASSES)
    assert "DOE" not in str(refusal.value) and "films.csv" in str(refusal.value)
