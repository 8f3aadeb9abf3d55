"""DICOM films are written anew: what names somebody is nowhere in them, and they look as before."""

import io
import warnings

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from openmed.errors import BadInput
from openmed.films.dicom.pixels import decode_dicom
from openmed.films.grey import quiet
from openmed.films.images import decode_film
from openmed.privacy.cleaning import Pseudonyms, about_film, clean_film, dicom_patient
from tests.openmed.films import stored
from tests.openmed.privacy.planted import FILM, NAME, compressed_dicoms, dicoms, planted_in, with_element

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Unknown encoding")
NAMES = Pseudonyms(b"a secret of the site")
COLOUR = np.dstack([FILM, FILM // 2, 255 - FILM])
TWELVE = stored.deep(FILM, 12)


def decoded(content: bytes):
    try:
        return decode_film(content, "the film")
    except BadInput as error:
        return str(error)


def kept(content: bytes) -> bytes:
    """The cleaned film; nothing planted is in it and it decodes as the film did, or is refused alike."""
    before, film = decoded(content), clean_film(content, "film.dcm", NAMES)
    after = decoded(film.content)
    assert planted_in(film.content) == []
    if film.reason and not isinstance(before, str):
        assert after == film.reason
    else:
        np.testing.assert_array_equal(after, before)
    return film.content


with quiet():  # pydicom warns of what is planted
    PLANTED_FILMS = dict(dicoms())


@pytest.mark.parametrize(("place", "content"), PLANTED_FILMS.items(), ids=list(PLANTED_FILMS))
def test_a_name_is_gone_wherever_it_was(place, content):
    assert b"DOE" in content or "bits" in place or "bytes above" in place
    film = kept(content)
    if decoded(film) is not str and b"SHA-256" not in film:
        source = pydicom.dcmread(io.BytesIO(film))
        stored_bits = np.frombuffer(source.PixelData, f"<u{source.BitsAllocated // 8}")
        assert int(stored_bits.max()) < 1 << source.BitsStored
        assert (
            len(source.PixelData)
            == source.Rows * source.Columns * source.SamplesPerPixel * stored_bits.itemsize
        )


# Decoders refuse these, before the cleaning as after it.
UNREAD = {f"{kind}, another fragment" for kind in ("JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "RLE")}
UNREAD |= {place.replace("another fragment", "behind the fragments") for place in UNREAD}
UNREAD |= {"JPEG-LS, segment e1", "JPEG-LS, segment ef", "RLE, behind the stream"}


def test_a_name_in_a_compressed_stream_or_beside_it_is_gone(tmp_path):
    films = dict(compressed_dicoms(tmp_path))
    assert len(films) == 5 * 3 + 3 * 4 + 1 and all(NAME in content for content in films.values())
    unread = [place for place, content in films.items() if b"SHA-256" in kept(content)]
    assert unread == [place for place in films if place in UNREAD]


def test_no_warning_and_no_log_repeats_a_value(caplog):
    # pydicom warns of odd values when they are looked at, and puts them into the text.
    keywords = ("SOPClassUID", "PatientAge", "WindowCenter", "PatientID", "SpecificCharacterSet")
    with quiet():
        films = [with_element(stored.dataset(FILM), keyword) for keyword in keywords]
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in films:
            clean_film(content, "film.dcm", NAMES)
            about_film(content)
            dicom_patient(content)
    assert not caplog.records


def test_only_known_words_come_through():
    film = stored.dataset(FILM, Modality="Doe", SOPClassUID="9.8.7", PresentationLUTShape="identity")
    kept_film = pydicom.dcmread(io.BytesIO(kept(stored.written(film))))
    assert kept_film.Modality == "OT" and kept_film.SOPClassUID == uid.SecondaryCaptureImageStorage
    assert kept_film.PresentationLUTShape == "IDENTITY"
    assert kept_film.file_meta.MediaStorageSOPClassUID == kept_film.SOPClassUID
    assert kept_film.file_meta.MediaStorageSOPInstanceUID == kept_film.SOPInstanceUID
    wanted = {"Modality", "SOPClassUID", "SOPInstanceUID", "PatientIdentityRemoved", "DeidentificationMethod"}
    wanted |= {"Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation"}
    wanted |= {"BitsAllocated", "BitsStored", "HighBit", "PixelData", "PresentationLUTShape"}
    assert {element.keyword for element in kept_film} == wanted


@pytest.mark.parametrize("keyword", ["BurnedInAnnotation", "RecognizableVisualFeatures"])
@pytest.mark.parametrize("word", ["YES", "yes ", "YES\\NO", "DOE^JANE"])
def test_a_film_that_may_show_whose_it_is_is_not_kept(keyword, word):
    content = with_element(stored.dataset(FILM), keyword, word.encode())
    film = clean_film(content, "film.dcm", NAMES)
    assert f"the film may show who it is of ({keyword} is " in film.reason
    assert decoded(film.content) == film.reason and planted_in(film.content) == []


@pytest.mark.parametrize("word", ["NO", "", "no"])
def test_a_film_without_burned_in_text_is_kept(word):
    assert not clean_film(stored.dicom(FILM, BurnedInAnnotation=word), "film.dcm", NAMES).reason


def table(count: int, first: int, bits: int = 12) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count % (1 << 16), first, bits])
    curve = np.rint(np.linspace(0, 1, count) ** 0.5 * ((1 << bits) - 1)).astype("<u2")
    item.add_new("LUTData", "OW", curve.tobytes())
    return item


SIGNED = (TWELVE.astype(int) - 2048).astype(np.int16)
HONEST = {
    "8 bits": stored.dicom(FILM),
    "12 bits": stored.dicom(TWELVE, BitsStored=12),
    "16 bits": stored.dicom(stored.deep(FILM, 16)),
    "signed": stored.dicom(SIGNED, BitsStored=12),
    "inverted": stored.dicom(FILM, PhotometricInterpretation="MONOCHROME1"),
    "high bits": stored.dicom(TWELVE << 4, BitsStored=12, HighBit=15),
    "colour": stored.dicom(COLOUR),
    "rescaled": stored.dicom(
        TWELVE, BitsStored=12, RescaleSlope="-0.0009765625", RescaleIntercept="4095.123"
    ),
    "window": stored.dicom(TWELVE, BitsStored=12, WindowCenter=["2047.5", "9"], WindowWidth=["3001.25", "9"]),
    "sigmoid": stored.dicom(
        TWELVE, BitsStored=12, WindowCenter="1800", WindowWidth="900", VOILUTFunction="SIGMOID"
    ),
    "table": stored.dicom(TWELVE, BitsStored=12, VOILUTSequence=Sequence([table(4096, 0)])),
    "short table": stored.dicom(TWELVE, BitsStored=12, VOILUTSequence=Sequence([table(1000, 700, 10)])),
    "longest table": stored.dicom(stored.deep(FILM, 16), VOILUTSequence=Sequence([table(1 << 16, 0, 16)])),
    "signed table": stored.dicom(SIGNED, BitsStored=12, VOILUTSequence=Sequence([table(4096, -2048)])),
    "modality table, window": stored.dicom(
        TWELVE,
        BitsStored=12,
        ModalityLUTSequence=Sequence([table(4096, 0, 16)]),
        WindowCenter="30000",
        WindowWidth="50000",
    ),
    "both tables": stored.dicom(
        TWELVE,
        BitsStored=12,
        ModalityLUTSequence=Sequence([table(4096, 0, 12)]),
        VOILUTSequence=Sequence([table(4096, 0, 12)]),
    ),
    "RLE": stored.compressed(TWELVE, uid.RLELossless, BitsStored=12),
    "JPEG 2000": stored.compressed(TWELVE, uid.JPEG2000Lossless, BitsStored=12),
    "JPEG": stored.wrapped(stored.pil(FILM, "JPEG"), FILM, uid.JPEGBaseline8Bit),
    "JPEG in colour": stored.wrapped(
        stored.pil(COLOUR, "JPEG"), COLOUR, uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"
    ),
    "JPEG in RGB": stored.wrapped(
        stored.pil(COLOUR, "JPEG", keep_rgb=True),
        COLOUR,
        uid.JPEGBaseline8Bit,
        PhotometricInterpretation="RGB",
    ),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_film_looks_the_same_and_stays_so_when_cleaned_again(kind):
    before, bits = decode_dicom(HONEST[kind], "it")
    once = clean_film(HONEST[kind], "film.dcm", NAMES)
    after, bits_after = decode_dicom(once.content, "it")
    np.testing.assert_array_equal(after, before)
    assert bits_after == bits and not once.reason
    np.testing.assert_array_equal(decode_film(clean_film(once.content, "film.dcm", NAMES).content), before)


@pytest.mark.parametrize(
    "kind", ["8 bits", "12 bits", "16 bits", "signed", "high bits", "colour", "JPEG 2000", "RLE"]
)
def test_pydicom_reads_the_same_values_from_a_cleaned_film(kind):
    before = pydicom.dcmread(io.BytesIO(HONEST[kind]))
    after = pydicom.dcmread(io.BytesIO(kept(HONEST[kind])))
    values = TWELVE if kind == "high bits" else before.pixel_array
    np.testing.assert_array_equal(after.pixel_array, values)
    assert after.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian


def test_the_scans_of_a_lossy_film_stay_and_cost_no_more_room():
    film = pydicom.dcmread(io.BytesIO(kept(HONEST["JPEG"])))
    assert film.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    assert stored.pil(FILM, "JPEG") in film.PixelData


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless]
)
def test_a_name_drawn_above_the_pixels_of_a_compressed_film_is_gone(syntax, tmp_path):
    film, drawn = stored.deep(stored.phantom(256), 12), np.zeros((256, 256), np.uint8)
    cv2.putText(drawn, "DOE JOHN", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 1, 3)
    content = stored.dicom(film | drawn.astype(np.uint16) << 12)
    if syntax in (uid.RLELossless, uid.JPEG2000Lossless):
        named = pydicom.dcmread(io.BytesIO(content))
        named.compress(syntax, generate_instance_uid=False)
    else:
        named = pydicom.dcmread(io.BytesIO(stored.transcoded(content, syntax, tmp_path)))
    named.BitsStored, named.HighBit = 12, 11
    clean = pydicom.dcmread(io.BytesIO(kept(stored.written(named))))
    np.testing.assert_array_equal(clean.pixel_array, film)
