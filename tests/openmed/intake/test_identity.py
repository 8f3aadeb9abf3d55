"""Whose a film is: what is recognised is said, what is doubtful is asked, nothing is guessed in silence."""

import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from openmed.archives import read_stored
from openmed.errors import BadInput
from openmed.files import sha256_bytes
from openmed.intake.external_set import import_set
from openmed.intake.identity import Clues, identify, is_nobody, own_patient, patient_of_one
from openmed.intake.importing import import_films
from openmed.intake.sources import list_source
from openmed.privacy.cleaning import Pseudonyms
from tests.openmed.privacy.planted import dicom

CLASSES = ("NORMAL", "PNEUMONIA")
SECRET = Pseudonyms(b"secret of the site")
REAL = Path(__file__).parents[4] / "shared/data/chest_xray_train_224.zip"


def film(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)


def write(root, names, first_seed=0):
    """A folder with a film of its own under each name; DICOM where a patient is given."""
    for seed, name in enumerate(names, first_seed):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(names, dict):
            (root / name).write_bytes(dicom(film(seed), PatientID=names[name]))
        else:
            Image.fromarray(film(seed)).save(root / name)
    return root


def taken(source, target, **options):
    """The summary of an import, and the films by their content."""
    summary = import_films(source, target, class_names=CLASSES, pseudonyms=SECRET, **options)
    return summary, pd.read_csv(target / "films.csv", dtype=str, keep_default_na=False)


NOBODY = """
ANONYMOUS|anon|Anonymized^Patient|anonymised|UNKNOWN|NA|n/a|None|<NULL>|nan|XXXX|-|  |de-identified|Test|No ID
NO_NAME|not available|PatientID|removed|ID Removed"""
SOMEBODY = "ANON0001|P1|7|0|0000|X|Nana|Unknown-17|Annan|DOE^JANE|test7|patient12|sub-01|NULL-3|Testa|4711"


@pytest.mark.parametrize(
    ("identifier", "nobody"),
    [
        *((text, True) for text in re.split(r"[|\n]", NOBODY.strip("\n"))),
        *((text, False) for text in SOMEBODY.split("|")),
        (None, False),
    ],
)
def test_identifiers_that_stand_for_nobody_are_told_from_those_of_patients(identifier, nobody):
    assert is_nobody(identifier) == nobody


def test_eight_digits_of_an_nih_name_are_the_patient(tmp_path):
    names = ["NORMAL/00000001_000.png", "PNEUMONIA/00000001_001.png", "PNEUMONIA/00000013_000.png"]
    films = {each.name: each.patient for each in list_source(write(tmp_path, names), CLASSES).films}
    assert [films[name] for name in names] == ["00000001", "00000001", "00000013"]


@pytest.mark.skipif(not REAL.exists(), reason="the published films are not on this machine")
def test_the_published_set_is_recognised_whole():
    listing = list_source(REAL, CLASSES)
    with zipfile.ZipFile(REAL) as archive:
        names = [Path(name).name for name in archive.namelist() if name.endswith(".jpeg")]
    first = Counter(re.match(r"person\d+|IM-\d+|NORMAL2-IM-\d+", name)[0] for name in names)
    assert Counter(each.patient for each in listing.films) == first
    assert (len(listing.films), listing.recognised.unnamed, listing.recognised.copies) == (5216, 0, 0)
    assert listing.recognised.by == {
        "file names by the pattern of person<P>_<any>": 3875,
        "file names by the pattern of NORMAL2-IM-<P>-<n>": 744,
        "file names by the pattern of IM-<P>-<n>": 597,
    }


# --- names that return


def test_equal_names_in_several_folders_are_different_patients_and_it_is_said(tmp_path):
    names = [
        f"{split}/{label}/{n:04d}.png" for split in ("train", "test") for label in CLASSES for n in range(6)
    ]
    summary, films = taken(write(tmp_path / "s", names), tmp_path / "data")
    assert summary.patients == films["patient"].nunique() == summary.unmatched == 24
    assert summary.recognised.sentences() == [
        "24 films name no patient (24 have a name that returns in another folder): "
        "each counts as a patient of its own"
    ]


def test_a_film_that_names_no_patient_is_one_of_its_own_in_later_imports_too(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, ["NORMAL/1.png", "PNEUMONIA/2.png"])
    write(other, ["NORMAL/1.png", "PNEUMONIA/2.png"], 100)
    shutil.copy(one / "NORMAL/1.png", other / "NORMAL/again.png")
    first, second = (taken(source, tmp_path / f"{source.name}-data")[1] for source in (one, other))
    # The content decides: 1.png of both is not one patient, the copy under another name is.
    (known,) = set(first["patient"]) & set(second["patient"])
    assert first["patient"].nunique() == 2 and second["patient"].nunique() == 3
    digests = [set(films.loc[films["patient"] == known, "sha256"]) for films in (first, second)]
    assert digests[0] == digests[1] and len(digests[0]) == 1


def test_a_single_film_is_named_by_header_name_or_content(tmp_path):
    assert patient_of_one("x/1.dcm", "P7", "abc") == "P7"
    assert patient_of_one("x/person3_virus_1.dcm", "ANONYMOUS", "abc") == "person3"
    assert patient_of_one("x/1.dcm", "ANONYMOUS", "abc") == patient_of_one("2.png", None, "abc")
    assert patient_of_one("2.png", None, "abc") == own_patient("abc") != own_patient("abd")


# --- identifiers that cannot be those of patients


def headers(patient_of_film, count=12):
    names = [f"{label}/{label[0]}{n}.dcm" for label in CLASSES for n in range(count // 2)]
    return {name: patient_of_film(place) for place, name in enumerate(names)}


def test_an_export_without_names_is_asked_about_and_may_be_taken_film_by_film(tmp_path):
    source = write(tmp_path / "s", headers(lambda place: "ANONYMOUS"))
    with pytest.raises(BadInput) as refusal:
        taken(source, tmp_path / "data")
    assert str(refusal.value) == (
        f"{source} does not say who the patients are: in 12 of 12 films the PatientID in their headers "
        "stands for nobody, as ANONYMOUS does: say --patients-from film to count each film as a patient of "
        "its own, or give a CSV with the columns path,label,patient"
    )
    assert not (tmp_path / "data").exists()
    summary, films = taken(source, tmp_path / "data", patients_from="film")
    assert (summary.unmatched, films["patient"].nunique()) == (12, 12)


def test_one_patient_in_most_films_is_asked_about_and_believed_when_said(tmp_path):
    source = write(tmp_path / "s", headers(lambda place: "Amadeus" if place > 1 else f"P{place}"))
    sentence = (
        r"3 in 12 of 12 films, one of them in 10 by the PatientID in .*from film.*from header if it is so"
    )
    with pytest.raises(BadInput, match=sentence) as refusal:
        taken(source, tmp_path / "data")
    assert "Amadeus" not in str(refusal.value)
    assert taken(source, tmp_path / "data", patients_from="header")[0].patients == 3


def test_patients_of_headers_are_believed_and_the_few_without_are_said(tmp_path):
    source = write(tmp_path / "s", headers(lambda place: f"P{place // 2}" if place < 8 else "Anonymous"))
    summary, films = taken(source, tmp_path / "data")
    assert (summary.patients, films["patient"].nunique()) == (8, 8)
    assert summary.recognised.sentences() == [
        "patients from the PatientID in their headers: 8 of 12 films",
        "4 films name no patient (4 an identifier that stands for nobody): each counts as a patient of its "
        "own",
    ]


@pytest.mark.parametrize(("patients", "asked"), [(2, True), (3, True), (4, False), (6, False)])
def test_an_identifier_for_each_class_or_site_is_asked_about(tmp_path, patients, asked):
    source = write(tmp_path / "s", headers(lambda place: f"SITE{place % patients}", 12 * patients))
    if asked:
        with pytest.raises(BadInput, match=f"hardly any patients: {patients} in .*, one of them in 12 by"):
            taken(source, tmp_path / "data")
    else:
        assert taken(source, tmp_path / "data")[0].patients == patients


def test_nine_films_of_one_patient_are_no_question(tmp_path):
    source = write(tmp_path / "s", headers(lambda place: "P1", 8))
    assert taken(source, tmp_path / "data")[0].patients == 1


def test_a_column_of_a_list_is_held_to_the_same(tmp_path):
    write(tmp_path / "s", [f"{n}.png" for n in range(12)])
    for value, sentence in (
        ("unknown", "stands for nobody"),
        ("Amadeus", "hardly any patients: 1 in 12 of 12 films"),
    ):
        rows = [f"{n}.png,{CLASSES[n % 2]},{value}" for n in range(12)]
        (tmp_path / "s/films.csv").write_text("\n".join(["path,label,patient", *rows]))
        with pytest.raises(BadInput, match=f"{sentence}.*--patients-from film"):
            taken(tmp_path / "s/films.csv", tmp_path / "data")
        for patients_from, patients in (("film", 12), ("list", 1)):
            target = tmp_path / f"{value}-{patients_from}"
            assert (
                taken(tmp_path / "s/films.csv", target, patients_from=patients_from)[0].patients == patients
            )
    with pytest.raises(BadInput, match="cannot be taken from 'header': choose auto, film, list"):
        taken(tmp_path / "s/films.csv", tmp_path / "data", patients_from="header")


def test_names_alone_may_be_asked_for(tmp_path):
    names = {f"{label}/person{n}_virus_1.dcm": "Amadeus" for label in CLASSES for n in range(6)}
    summary, _ = taken(write(tmp_path / "s", names), tmp_path / "data", patients_from="name")
    assert summary.patients == 6 and "list" not in summary.recognised.by


# --- folders below class folders


@pytest.mark.parametrize("folder", ["patient012", "p10000032", "sub-A1"])
def test_folders_of_a_known_pattern_below_class_folders_are_patients(tmp_path, folder):
    names = [f"NORMAL/{folder}/study1/view1.png", f"PNEUMONIA/{folder}/1.png", "PNEUMONIA/patient7/s/1.png"]
    listing = list_source(write(tmp_path, names), CLASSES)
    assert Counter(each.patient for each in listing.films) == {folder: 2, "patient7": 1}
    assert sum(listing.recognised.by.values()) == 3
    assert all(by.startswith("folders by the pattern of") for by in listing.recognised.by)


def test_unclear_folders_below_class_folders_are_asked_about(tmp_path):
    source = write(
        tmp_path / "s", ["NORMAL/Doe Jane/1.png", "NORMAL/Doe Jane/2.png", "PNEUMONIA/7/person1_x_1.png"]
    )
    with pytest.raises(BadInput) as refusal:
        taken(source, tmp_path / "data")
    assert str(refusal.value) == (
        f"{source} has 3 films in folders below a class folder, the first is file 1 of {source} (by name), "
        "and nothing says what these folders are: say --patients-from folder if each is a patient, say "
        "--patients-from film to count each film as a patient of its own, or take them away"
    )
    for patients_from, patients in (("folder", 2), ("film", 3)):
        target = tmp_path / patients_from
        assert taken(source, target, patients_from=patients_from)[0].patients == patients


def test_numbers_that_return_under_another_class_are_one_patient_and_it_is_said(tmp_path):
    names = ["NORMAL/001/1.png", "NORMAL/002/1.png", "PNEUMONIA/001/1.png", "PNEUMONIA/003/1.png"]
    summary, _ = taken(write(tmp_path / "s", names), tmp_path / "data", patients_from="folder")
    assert (summary.patients, summary.recognised.mixed) == (3, 1)
    assert summary.recognised.sentences()[1] == (
        "1 of these patients have films of several classes: where that cannot be, their numbers begin anew "
        "in each folder"
    )


def test_headers_say_whose_the_films_of_folders_below_class_folders_are(tmp_path):
    source = write(
        tmp_path / "s", {f"{label}/{n}/series/1.dcm": f"P{n}" for label in CLASSES for n in range(3)}
    )
    assert taken(source, tmp_path / "data")[0].patients == 3


def test_masks_are_never_films(tmp_path):
    source = write(tmp_path / "s", ["NORMAL/a.png", "PNEUMONIA/b.png", "PNEUMONIA/masks/b.png"])
    for patients_from in ("auto", "film", "folder"):
        with pytest.raises(BadInput, match="is an image in a folder that is no class folder"):
            taken(source, tmp_path / "data", patients_from=patients_from)


# --- copies


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_an_archive_that_holds_itself_again_is_taken_once(tmp_path, kind):
    folders = [f"chest_xray/{split}/{label}" for split in ("train", "test") for label in CLASSES]
    names = [f"{folder}/{n}.png" for folder in folders for n in range(3)]
    source = write(tmp_path / "s", names)
    shutil.copytree(source / "chest_xray", tmp_path / "copy")
    shutil.copytree(tmp_path / "copy", source / "chest_xray/chest_xray")
    for litter in (
        "__MACOSX/chest_xray/train/NORMAL/._0.png",
        "chest_xray/.DS_Store",
        f"{folders[0]}/._1.png",
    ):
        (source / litter).parent.mkdir(parents=True, exist_ok=True)
        (source / litter).write_bytes(b"x" * 99)
    if kind == "zip":
        shutil.make_archive(tmp_path / "s", "zip", source)
        source = tmp_path / "s.zip"
    listing = list_source(source, CLASSES)
    assert [each.name for each in listing.films] == sorted(names)
    assert "12 of 24 films are copies, taken once" in listing.recognised.sentences()
    summary, films = taken(source, tmp_path / "data")
    assert summary.films == len(films) == 12 and sorted(films["split"]) == ["test"] * 6 + ["train"] * 6


def test_only_equal_content_under_one_name_is_a_copy(tmp_path):
    source = write(tmp_path / "s", ["x/NORMAL/1.png", "y/NORMAL/1.png", "x/PNEUMONIA/2.png"])
    for copy in (
        "z/NORMAL/1.png",
        "z/NORMAL/1 (2).png",
        "x/NORMAL/1 - Copy.png",
        "x/NORMAL/9.png",
        "x/PNEUMONIA/1.png",
    ):
        (source / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "x/NORMAL/1.png", source / copy)
    listing = list_source(source, CLASSES)
    # Under another name it tells that two patients are one, under another class that a label is wrong.
    kept = {"x/NORMAL/1.png", "y/NORMAL/1.png", "x/PNEUMONIA/2.png", "x/NORMAL/9.png", "x/PNEUMONIA/1.png"}
    assert {each.name for each in listing.films} == kept and listing.recognised.copies == 3


# --- external sets


def test_an_external_list_with_a_row_a_box_keeps_what_it_says_of_each_film(tmp_path):
    write(tmp_path / "s", ["1.png", "2.png"])
    rows = ["1.png,NORMAL,p,PA,", "2.png,PNEUMONIA,q,AP,4", "2.png,PNEUMONIA,q,AP,9"]
    header = "path,label,patient,view,x"
    (tmp_path / "s/films.csv").write_text("\n".join([header, *rows]))
    summary = import_set(tmp_path / "s/films.csv", tmp_path / "set", class_names=CLASSES, pseudonyms=SECRET)
    assert (
        summary.films == 2 and summary.views == {"AP": 1, "PA": 1} and summary.recognised.repeated_rows == 1
    )
    films = pd.read_csv(tmp_path / "set/films.csv").set_index("label")
    assert films["view"].to_dict() == {"NORMAL": "PA", "PNEUMONIA": "AP"}
    stored = read_stored(f"{tmp_path}/set/{films.loc['NORMAL', 'path']}")
    assert sha256_bytes(stored) == films.loc["NORMAL", "sha256"]
    (tmp_path / "s/films.csv").write_text("\n".join([header, *rows, "2.png,PNEUMONIA,q,PA,9"]))
    with pytest.raises(BadInput, match="two things of one film in the column view, on lines 3 and 5"):
        import_set(tmp_path / "s/films.csv", tmp_path / "other", class_names=CLASSES, pseudonyms=SECRET)


def test_an_unknown_way_to_patients_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot be taken from 'list': choose auto, film, folder"):
        identify([Clues("a.png", (), None, "")], "list", tmp_path)
