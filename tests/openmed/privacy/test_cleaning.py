"""Identifiers that are planted everywhere a film can carry them do not come through an import."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from openmed.archives import read_stored
from openmed.errors import BadInput
from openmed.films.images import decode_film
from openmed.intake.importing import import_films
from openmed.privacy.cleaning import ABOUT, Pseudonyms, clean_film, dicom_patient
from openmed.privacy.confidentiality import NUMBERS, TABLES, WORDS
from tests.openmed.privacy.planted import FILM, dicom, jpeg, planted_in, png, tiff

NAMES = Pseudonyms(b"a secret of the site")


@pytest.mark.parametrize("make", [jpeg, png, tiff, dicom])
def test_what_was_planted_is_gone_and_the_pixels_are_the_same(make):
    content = make()
    assert planted_in(content)
    cleaned = clean_film(content, "DOE^JANE.img", NAMES)
    assert planted_in(cleaned.content) == [] and "DOE" not in cleaned.suffix
    np.testing.assert_array_equal(decode_film(cleaned.content), decode_film(content))


@pytest.mark.parametrize("make", [jpeg, png, tiff, dicom])
def test_of_a_damaged_film_nothing_is_kept_but_the_reason(make):
    content = make()[:-200]
    for length in range(2, len(content), 97):
        with pytest.raises(BadInput) as raw:
            decode_film(content[:length], "x")
        cleaned = clean_film(content[:length], "a.png", NAMES)
        with pytest.raises(BadInput) as kept:
            decode_film(cleaned.content, "x")
        assert str(kept.value) == str(raw.value) == cleaned.reason.replace("the film", "x", 1)
        assert len(cleaned.content) < 500 and planted_in(cleaned.content) == []


@pytest.mark.parametrize("content", [b"no film DOE^JANE", bytes(128) + b"DICM" + b"DOE^JANE" * 9])
def test_what_cannot_be_taken_apart_is_not_kept(content):
    cleaned = clean_film(content, "x.png", NAMES)
    assert planted_in(cleaned.content) == [] and cleaned.suffix == ".png"
    assert hashlib.sha256(content).hexdigest().encode() in cleaned.content


def test_an_empty_file_stays_empty():
    assert clean_film(b"", "x.png", NAMES).content == b""


def test_a_cleaned_dicom_says_so_and_holds_nothing_but_what_pixels_need():
    window = Dataset()
    window.LUTDescriptor, window.LUTExplanation = [256, 0, 16], "DOE^JANE"
    window.add_new(0x00283006, "US", list(range(0, 51200, 200)))
    content = dicom(WindowCenter="128", WindowWidth="256", VOILUTSequence=Sequence([window]))
    cleaned = clean_film(content, "a", NAMES).content
    assert planted_in(cleaned) == []
    film = pydicom.dcmread(io.BytesIO(cleaned))
    assert film.PatientIdentityRemoved == "YES" and film.SOPInstanceUID == NAMES.uid("9.8.7.6.5.4321")
    assert "PatientName" not in film and "StudyInstanceUID" not in film
    assert not [element for element in film if element.tag.is_private]
    assert film.WindowWidth == 256 and list(film.VOILUTSequence[0]["LUTDescriptor"].value)[1:] == [
        int(FILM.min()),
        16,
    ]
    assert "LUTExplanation" not in film.VOILUTSequence[0]


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        ({"PatientSex": "F", "PatientAge": "007Y"}, {"sex": "F", "age_years": "7"}),
        ({"PatientSex": "Jane"}, {}),
        ({"PatientAge": "018M"}, {"age_years": "1"}),
        ({"PatientAge": "003W"}, {"age_years": "0"}),
        ({"PatientAge": "101Y"}, {"age_years": "90"}),
        ({"ViewPosition": "PA"}, {"view": "PA"}),
        ({"ViewPosition": "Jane"}, {"view": "other"}),
        ({"Manufacturer": "SIEMENS Healthineers"}, {"manufacturer": "siemens"}),
        ({"Manufacturer": "GE MEDICAL SYSTEMS"}, {"manufacturer": "ge"}),
        ({"Manufacturer": "George Doe"}, {"manufacturer": "other"}),
        ({"StudyDate": "20190304", "AcquisitionDate": "20200506"}, {"year": "2020"}),
        ({"StudyDate": "20190304"}, {"year": "2019"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_facts_come_through_a_sieve(fields, about):
    assert clean_film(dicom(**fields), "a", NAMES).about == about
    assert set(about) <= set(ABOUT)


def test_the_patient_of_a_film_is_the_one_its_header_names():
    assert dicom_patient(dicom()) == "MRN-4711-9"
    assert dicom_patient(dicom(PatientID="  ")) is None
    assert dicom_patient(bytes(128) + b"DICM\1\2") is None


KEPT = {
    "written anew": "Rows, Columns, SamplesPerPixel, PhotometricInterpretation, PlanarConfiguration, "
    "BitsAllocated, BitsStored, HighBit, PixelRepresentation, PixelData: as the decoder understood them",
    "the first number alone": ", ".join(NUMBERS),
    "the entries that pixels reach": ", ".join(TABLES),
    "kept if it is one of these words": "; ".join(
        f"{keyword}: {', '.join(known)}" + (f", else {other}" if other else "")
        for keyword, (known, other) in WORDS.items()
    ),
    "replaced with the site's secret": "PatientID (the patient's pseudonym), SOPInstanceUID",
    "kept in part, as a column of the manifest": "; ".join(
        f"{name}: {what[0]}" for name, what in ABOUT.items()
    ),
    "dropped": "everything else: other elements, private ones, sequences, overlays, palettes, comments, "
    "file names, bits beside the pixels and bytes behind them",
}


def test_the_documented_table_is_the_one_in_the_code():
    documented = (Path(__file__).parents[3] / "docs/films.md").read_text(encoding="utf-8")
    for fate, elements in KEPT.items():
        assert f"| {fate} | {elements} |" in documented


def test_pseudonyms_depend_on_the_secret_and_nothing_else():
    others = Pseudonyms(b"the secret of another site")
    assert NAMES.patient("a") == Pseudonyms(b"a secret of the site").patient("a") != others.patient("a")
    assert NAMES.patient("a") != NAMES.patient("b") and len(NAMES.uid("1.2.3")) <= 64
    with pytest.raises(BadInput, match="shorter than 16 bytes"):
        Pseudonyms(b"short")


@pytest.mark.parametrize("kind", ["folder", "zip", "csv"])
def test_nothing_that_was_planted_is_in_an_imported_folder(tmp_path, kind):
    source = tmp_path / "source"
    films = {
        "NORMAL/DOE^JANE.jpg": jpeg(),
        "NORMAL/person4711_MRN-4711-9.png": png(6),
        "NORMAL/Dr. Planted.tif": tiff(),
        "PNEUMONIA/MRN-4711-9_1.dcm": dicom(PatientSex="F", PatientAge="044Y"),
        "PNEUMONIA/MRN-4711-9_2.dcm": dicom(SOPInstanceUID=generate_uid(), ImageComments="another film"),
        "PNEUMONIA/DOE^JANE broken.png": b"DOE^JANE, not a film",
    }
    for name, content in films.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
            for name, content in films.items():
                archive.writestr(name, content)
        source = tmp_path / "s.zip"
    if kind == "csv":
        rows = [f"{name},{name.partition('/')[0]},DOE^JANE" for name in films]
        (source / "films.csv").write_text("\n".join(["path,label,patient", *rows]))
        source = source / "films.csv"
    import_films(source, tmp_path / "data", class_names=("NORMAL", "PNEUMONIA"), pseudonyms=NAMES)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["00000.tar", "films.csv"]
    for path in files:
        assert planted_in(path.read_bytes()) == [] and planted_in(str(path).encode()) == []
    table = pd.read_csv(tmp_path / "data/films.csv", dtype=str, keep_default_na=False)
    for row in table.itertuples():
        content = read_stored(f"{tmp_path}/data/{row.path}")
        assert planted_in(content) == []
        assert hashlib.sha256(content).hexdigest() == row.sha256 and row.sha256[:16] in row.path
    assert table.loc[table["sex"] == "F", "age_years"].tolist() == ["44"]
    dicoms = table[table["path"].str.endswith(".dcm")]
    assert dicoms["patient"].nunique() == 1 and len(dicoms) == 2
