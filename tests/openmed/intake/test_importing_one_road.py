"""An imported film is the film that was decoded, and one that cannot be used keeps the decoder's sentence."""

import numpy as np
import pytest
from pydicom import uid

from openmed.cache.film_store import FilmStore
from openmed.dataset.manifest import measure_films, read_films
from openmed.errors import BadInput
from openmed.films.images import decode_film
from openmed.intake.importing import import_films
from openmed.privacy.cleaning import Pseudonyms, clean_film
from tests.openmed.films.stored import dicom, phantom, pil, wrapped
from tests.openmed.films.test_films_bad_files import CLASSES, FILMS
from tests.openmed.films.test_images_headers import COLOURS, HEADLESS

NAMES = Pseudonyms(b"a secret of the site")
FILM = phantom(64)
UNSUPPORTED = {
    "JPEG XL": "1.2.840.10008.1.2.4.110",
    "HTJ2K": "1.2.840.10008.1.2.4.201",
    "deflated frames": "1.2.840.10008.1.2.8.1",
    "JPIP": "1.2.840.10008.1.2.4.94",
}


def seen(content: bytes) -> np.ndarray | str:
    try:
        return decode_film(content, "the film")
    except BadInput as error:
        return str(error)


def same_after_import(content: bytes, name: str = "a.dcm") -> np.ndarray | str:
    before, after = seen(content), seen(clean_film(content, name, NAMES).content)
    assert isinstance(before, str) == isinstance(after, str)
    np.testing.assert_array_equal(before, after)
    return after


@pytest.mark.parametrize("kind", FILMS)
def test_each_kind_of_file_fares_the_same_after_an_import(tmp_path, kind):
    name, make, _ = FILMS[kind]
    content = make(tmp_path) if callable(make) else make
    if content is None:
        if not (tmp_path / name).is_file():
            return  # no file, so nothing to import
        content = (tmp_path / name).read_bytes()
    same_after_import(content, name)


@pytest.mark.parametrize("kind", [*HEADLESS, *COLOURS])
def test_a_film_whose_header_errs_is_the_same_after_an_import(kind):
    content = (HEADLESS | COLOURS)[kind]()
    assert not isinstance(same_after_import(content), str)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_codec_that_is_not_read_is_named_after_an_import_too(kind):
    known = UNSUPPORTED["HTJ2K"].encode()  # pydicom writes no others
    content = wrapped(b"\xff\x0a any stream", FILM, UNSUPPORTED["HTJ2K"])
    said = same_after_import(content.replace(known, UNSUPPORTED[kind].encode().ljust(len(known), b"\0")))
    assert said == "the film is DICOM in a transfer syntax that is not read: store it uncompressed"


@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_polarity_survives_an_import(kind, shape):
    same_after_import(dicom(FILM, PhotometricInterpretation=kind, PresentationLUTShape=shape))


def test_a_codestream_of_another_kind_survives_an_import():
    content = wrapped(pil(FILM, "JPEG", quality=95), FILM, uid.JPEG2000Lossless)
    assert not isinstance(same_after_import(content), str)


@pytest.mark.parametrize("listed", [False, True], ids=["class folders", "list"])
def test_files_without_heads_and_suffixes_are_imported(tmp_path, listed):
    content, rows = HEADLESS["implicit VR"](), ["path,label,patient"]
    for label in CLASSES:
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "source" / label / f"CR-{label}-{number}").write_bytes(content + bytes(2 * number))
            rows.append(f"{label}/CR-{label}-{number},{label},{label}-{number}")
    (tmp_path / "source/list.csv").write_text("\n".join(rows))
    source = tmp_path / "source" / ("list.csv" if listed else ".")
    import_films(source, tmp_path / "data", class_names=CLASSES, pseudonyms=NAMES)
    with FilmStore(tmp_path / "store") as store:
        films = measure_films(tmp_path / "data", read_films(tmp_path / "data", CLASSES), store)
    assert len(films) == 4 and set(films["status"]) == {"accepted"}
