"""What may be known of a patient: names become pseudonyms, films lose everything but pixels and a few facts.

The rules for DICOM follow the basic application level confidentiality profile of DICOM PS3.15, annex E,
with its options to retain patient characteristics and to clean dates. They are a list of what stays: an
element that nobody thought of does not.
"""

import hashlib
import hmac
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from openmed.data.dicom import is_dicom
from openmed.data.elements import read_elements
from openmed.data.scrub import scrub
from openmed.errors import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

UNREADABLE = b"This file was no film that could be read, so nothing of it was kept.\n"
"""Stands in for a file whose identifiers could not be told from its pixels; it is quarantined later."""
OLDEST_AGE_YEARS = 90
"""Higher ages are recorded as this one: few people are older, so the age alone could name them."""
VIEWS = ("PA", "AP", "LL", "RL", "RLD", "LLD", "RLO", "LLO")
_MANUFACTURERS = (
    *("agfa", "canon", "carestream", "delft", "fuji", "ge", "hologic", "kodak", "konica", "philips"),
    *("samsung", "sedecal", "shimadzu", "siemens", "swissray", "toshiba", "varex"),
)
# Needed to turn the stored numbers into grey levels; none of them says anything about a person.
_PIXELS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "PixelAspectRatio"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PresentationLUTShape", "PixelIntensityRelationship", "PixelIntensityRelationshipSign"),
    *("Modality", "SOPClassUID", "PixelData"),
)
_TABLES = {"ModalityLUTSequence", "VOILUTSequence"}
_TABLE_PARTS = ("LUTDescriptor", "LUTData")


@dataclass(frozen=True)
class CleanFilm:
    """A film without identifiers.

    Attributes:
        content: Bytes of the file to keep.
        suffix: Suffix of its name.
        about: sex, age_years, view, manufacturer and year as text, as far as they are known.
    """

    content: bytes
    suffix: str
    about: dict[str, str] = field(default_factory=dict)


class Pseudonyms:
    """Names that stand for patients and cannot be turned back without the secret of the site.

    Args:
        secret: At least 16 bytes that only the site knows. The same secret gives the same pseudonyms.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise BadInput("the site's secret is shorter than 16 bytes: give a longer one")
        self._secret = secret

    def patient(self, name: str) -> str:
        """Returns the pseudonym of a patient."""
        return f"p{self._digest('patient', name)[:16]}"

    def uid(self, uid: str) -> str:
        """Returns a DICOM UID that stands for another one."""
        return f"2.25.{int(self._digest('uid', uid)[:31], 16)}"

    def _digest(self, kind: str, text: str) -> str:
        return hmac.new(self._secret, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()


def clean_film(content: bytes, name: str, pseudonyms: Pseudonyms) -> CleanFilm:
    """Takes everything out of a film's file that is neither pixels nor one of the facts that are kept.

    Args:
        content: Bytes of a JPEG, PNG, TIFF or DICOM file.
        name: Its name, of which only the suffix is used.
        pseudonyms: Of the site.

    Returns:
        The cleaned film. What cannot be taken apart is replaced by `UNREADABLE`.
    """
    if is_dicom(content):
        try:
            return _clean_dicom(content, pseudonyms)
        except (
            Exception
        ):  # pydicom raises many kinds on damaged files, and none may let an identifier through
            return CleanFilm(UNREADABLE, ".dcm")
    cleaned, suffix = scrub(content)
    suffix = suffix or PurePosixPath(name).suffix.lower()
    return CleanFilm(UNREADABLE if content and not cleaned else cleaned, suffix)


def dicom_patient(content: bytes) -> str | None:
    """Returns the patient ID that a DICOM file carries, None when it has none or is not readable."""
    try:
        dataset = read_elements(content, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(dataset.get("PatientID") or "").strip() or None
    except Exception:  # what a damaged header raises is of no interest here: the film is quarantined later
        return None


def about_film(content: bytes) -> dict[str, str]:
    """Returns the facts of `ABOUT` that a film's header tells, as far as they are known; none without one."""
    if not is_dicom(content):
        return {}
    try:
        source = read_elements(content, stop_before_pixels=True)
        about = {column: rule(source) for column, (_, rule) in ABOUT.items()}
    except Exception:  # what a damaged header raises is of no interest here: the film is unusable
        return {}
    return {key: value for key, value in about.items() if value}


def _clean_dicom(content: bytes, pseudonyms: Pseudonyms) -> CleanFilm:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    source = read_elements(content)
    clean = Dataset()
    for keyword in _PIXELS:
        if keyword in source:
            clean.add(source[keyword])
    for keyword in _TABLES:
        if keyword in source:
            setattr(clean, keyword, [_parts(item) for item in source[keyword].value])
    clean.SOPInstanceUID = pseudonyms.uid(str(source.get("SOPInstanceUID", "")))
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "Only pixels kept, after DICOM PS3.15 E"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = clean.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta = meta
    stream = io.BytesIO()
    clean.save_as(stream, enforce_file_format=True)
    about = {column: rule(source) for column, (_, rule) in ABOUT.items()}
    return CleanFilm(stream.getvalue(), ".dcm", {key: value for key, value in about.items() if value})


def _parts(item: "Dataset") -> "Dataset":
    from pydicom import Dataset

    kept = Dataset()
    for keyword in _TABLE_PARTS:
        if keyword in item:
            kept.add(item[keyword])
    return kept


def _text(source: "Dataset", keyword: str) -> str:
    return str(source.get(keyword) or "").strip()


def _sex(source: "Dataset") -> str:
    sex = _text(source, "PatientSex").upper()
    return sex if sex in ("F", "M", "O") else ""


def _age_years(source: "Dataset") -> str:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", _text(source, "PatientAge").upper())
    if not match:
        return ""
    days = int(match[1]) * {"D": 1, "W": 7, "M": 30.4375, "Y": 365.25}[match[2]]
    return str(min(int(days / 365.25 + 1e-9), OLDEST_AGE_YEARS))


def _view(source: "Dataset") -> str:
    view = _text(source, "ViewPosition").upper()
    return view if view in VIEWS else "other" if view else ""


def _manufacturer(source: "Dataset") -> str:
    words = re.findall("[a-z]+", _text(source, "Manufacturer").casefold())
    # Names are written in many ways (FUJIFILM Corporation), but no short one may begin a person's name.
    matches = (name for name in _MANUFACTURERS for word in words if word == name or _is_start(name, word))
    return next(matches, "other" if words else "")


def _is_start(name: str, word: str) -> bool:
    return len(name) > 3 and word.startswith(name)


def _year(source: "Dataset") -> str:
    for keyword in ("AcquisitionDate", "ContentDate", "StudyDate"):
        if match := re.match(r"(19[7-9]\d|20\d\d)[01]\d[0-3]\d", _text(source, keyword)):
            return match[1]
    return ""


ABOUT: dict[str, tuple[str, Callable[["Dataset"], str]]] = {
    "sex": ("PatientSex: F, M or O", _sex),
    "age_years": (f"PatientAge in whole years, at most {OLDEST_AGE_YEARS}", _age_years),
    "view": (f"ViewPosition: {', '.join(VIEWS)}, else `other`", _view),
    "manufacturer": ("Manufacturer: one of a list of makers, else `other`", _manufacturer),
    "year": ("year of AcquisitionDate, ContentDate or StudyDate", _year),
}
"""Columns of the manifest that come from DICOM: what they hold and how it is read."""
KEPT = {
    "kept as it is": ", ".join((*_PIXELS, *sorted(_TABLES))),
    "replaced with the site's secret": "PatientID (the patient's pseudonym), SOPInstanceUID",
    "kept in part, as a column of the manifest": "; ".join(
        f"{name}: {what[0]}" for name, what in ABOUT.items()
    ),
    "dropped": "everything else: other elements, private ones, sequences, overlays, comments, file names",
}
"""What becomes of the elements of a DICOM file, for people to read."""
