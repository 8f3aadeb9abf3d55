"""What may be known of a patient: names become pseudonyms, films lose everything but pixels and a few facts.

The rules for DICOM follow the basic application level confidentiality profile of DICOM PS3.15, annex E,
with its options to retain patient characteristics and to clean dates. They are a list of what stays: an
element that nobody thought of does not.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from openmed.errors import BadInput
from openmed.films.dicom.elements import read_elements
from openmed.films.dicom.header import is_dicom
from openmed.films.grey import quiet
from openmed.films.images import SUFFIXES
from openmed.films.withheld import withheld, withheld_reason
from openmed.privacy.confidentiality import word_in, written_anew
from openmed.privacy.scrub import scrub

if TYPE_CHECKING:
    from pydicom import Dataset

OLDEST_AGE_YEARS = 90
"""Higher ages are recorded as this one: few people are older, so the age alone could name them."""
_FILM = "the film"
VIEWS = ("PA", "AP", "LL", "RL", "RLD", "LLD", "RLO", "LLO")
_MANUFACTURERS = (
    *("agfa", "canon", "carestream", "delft", "fuji", "ge", "hologic", "kodak", "konica", "philips"),
    *("samsung", "sedecal", "shimadzu", "siemens", "swissray", "toshiba", "varex"),
)


@dataclass(frozen=True)
class CleanFilm:
    """A film without identifiers.

    Attributes:
        content: Bytes of the file to keep.
        suffix: Suffix of its name.
        about: sex, age_years, view, manufacturer and year as text, as far as they are known.
        reason: Why nothing of the film was kept, a sentence; empty for a film that can be used.
    """

    content: bytes
    suffix: str
    about: dict[str, str] = field(default_factory=dict)
    reason: str = ""


class Pseudonyms:
    """Names that stand for patients and cannot be turned back without the secret of the site.

    The same secret, of 16 bytes or more that only the site knows, gives the same pseudonyms.
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

    Of a file that cannot be used as a film, or that says that its pixels show whose it is, nothing is kept
    but the reason, with which decoders refuse it. Of its name only a known suffix is used.
    """
    if not content:
        return CleanFilm(content, _suffix(name))
    try:
        if withheld_reason(content):  # another's word is not repeated
            raise BadInput(f"{_FILM} was not kept by an import before")
        with quiet():
            return (
                _clean_dicom(content, pseudonyms) if is_dicom(content) else CleanFilm(*scrub(content, _FILM))
            )
    except MemoryError:
        raise
    except BadInput as error:
        reason = str(error)
    except Exception as error:  # pydicom raises many kinds on damaged files; none may let an identifier pass
        reason = f"{_FILM} cannot be decoded: it is damaged ({type(error).__name__})"
    return CleanFilm(withheld(content, reason.removeprefix(f"{_FILM} ")), _suffix(name), reason=reason)


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in SUFFIXES else ".dcm"


def dicom_patient(content: bytes) -> str | None:
    """Returns the patient ID that a DICOM file carries, None when it has none or is not readable."""
    try:
        with quiet():
            dataset = read_elements(content, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(dataset.get("PatientID") or "").strip() or None
    except Exception:  # what a damaged header raises is of no interest here: the film is quarantined later
        return None


def about_film(content: bytes) -> dict[str, str]:
    """Returns the facts of `ABOUT` that a film's header tells, as far as they are known; none without one."""
    if not is_dicom(content):
        return {}
    try:
        with quiet():
            return _about(read_elements(content, stop_before_pixels=True))
    except Exception:  # what a damaged header raises is of no interest here: the film is unusable
        return {}


def _clean_dicom(content: bytes, pseudonyms: Pseudonyms) -> CleanFilm:
    source, clean = written_anew(content, pseudonyms.uid, _FILM)
    return CleanFilm(clean, ".dcm", _about(source))


def _about(source: "Dataset") -> dict[str, str]:
    return {column: text for column, (_, rule) in ABOUT.items() if (text := rule(source))}


def _sex(source: "Dataset") -> str:
    sex = word_in(source, "PatientSex")
    return sex if sex in ("F", "M", "O") else ""


def _age_years(source: "Dataset") -> str:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", word_in(source, "PatientAge"))
    if not match:
        return ""
    days = int(match[1]) * {"D": 1, "W": 7, "M": 30.4375, "Y": 365.25}[match[2]]
    return str(min(int(days / 365.25 + 1e-9), OLDEST_AGE_YEARS))


def _view(source: "Dataset") -> str:
    view = word_in(source, "ViewPosition")
    return view if view in VIEWS else "other" if view else ""


def _manufacturer(source: "Dataset") -> str:
    words = re.findall("[a-z]+", str(source.get("Manufacturer") or "").casefold())
    # Names are written in many ways (FUJIFILM Corporation), but no short one may begin a person's name.
    pairs = ((name, word) for name in _MANUFACTURERS for word in words)
    makers = (name for name, word in pairs if word == name or (len(name) > 3 and word.startswith(name)))
    return next(makers, "other" if words else "")


def _year(source: "Dataset") -> str:
    for keyword in ("AcquisitionDate", "ContentDate", "StudyDate"):
        if match := re.match(r"(19[7-9]\d|20\d\d)[01]\d[0-3]\d", word_in(source, keyword)):
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
