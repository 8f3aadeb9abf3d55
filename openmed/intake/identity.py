"""Whose a film is: what names the patients of a source, how surely, and when that has to be asked."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

from openmed.errors import BadInput

PatientsFrom = Literal["auto", "header", "folder", "name", "film", "list"]
PATIENTS_FROM = get_args(PatientsFrom)
"""Where patients are taken from: what is recognised; or, at its word, the PatientID of DICOM headers, the
folder below the class folder, file names of a known pattern, nothing (each film is a patient of its own), or
the column of a list."""
_HEADER, _LIST = "the PatientID in their headers", "the column patient of the list"
_FOLDER, _FOLDERS, _NAMES = "the folders below the class folders", "folders", "file names"
# Guangzhou (the first three; Kermany et al., Cell 2018), NIH ChestX-ray14, BIDS.
_NAME_RULES = (
    ("person<P>_<any>", re.compile(r"person([A-Za-z0-9]+)_.+"), "person{}"),
    ("IM-<P>-<n>", re.compile(r"IM-(\d+)-\d+(?:-\d+)*"), "IM-{}"),
    ("NORMAL2-IM-<P>-<n>", re.compile(r"NORMAL2-IM-(\d+)-\d+(?:-\d+)*"), "NORMAL2-IM-{}"),
    ("patient<P>_<any>", re.compile(r"patient-?([A-Za-z0-9]+)_.+"), "patient{}"),
    ("<8 digits>_<3 digits>", re.compile(r"(\d{8})_\d{3}"), "{}"),
    ("sub-<P>_<any>", re.compile(r"sub-([A-Za-z0-9]+)_.+"), "sub-{}"),
)
# CheXpert, MIMIC-CXR, BIDS.
_FOLDER_RULES = (
    ("patient<P>", re.compile(r"patient[-_]?(\d+)", re.IGNORECASE), "patient{}"),
    ("p<8 digits>", re.compile(r"p(\d{8})"), "p{}"),
    ("sub-<P>", re.compile(r"sub-([A-Za-z0-9]+)"), "sub-{}"),
)
_NOBODY = re.compile(
    r"anon(ym|ymous|ymi[sz]ed)?( patient)?|(de ?)?identified|de ?id|(patient )?(id |name )?removed|"
    r"redacted|confidential|hidden|unknown|unspecified|unnamed|undefined|missing|default|empty|x{2,}|"
    r"none|null|nil|nan|n ?a|no ?(id|name|patient|value)|not ?(available|applicable|known|given)|"
    r"(test|demo|dummy|sample|unknown|no|anonymous)? ?(patient|subject|person)?( ?(id|name))?"
)
_LEAST_FILMS = 10
"""Fewer films of one patient are believed, whatever their share."""
_FEWEST_PATIENTS = 4
_GO_ON = "say --patients-from film to count each film as a patient of its own"


class Clues(NamedTuple):
    """A film of a source, and what may name its patient.

    Attributes:
        name: Path below the source, POSIX.
        folders: Folders between the class folder and the film.
        stated: What its header or its list says, None where it says nothing.
        place: What to call the film in an error.
    """

    name: str
    folders: tuple[str, ...]
    stated: str | None
    place: str


class Identity(NamedTuple):
    """Whose a film is.

    Attributes:
        patient: The patient it is filed under.
        by: What names the patient, in words; empty where nothing does and the film is a patient of its own.
    """

    patient: str
    by: str = ""


@dataclass(frozen=True)
class Recognised:
    """What was recognised in a source, and how surely.

    Attributes:
        films: Films that were taken.
        by: What names patients, in words -> films.
        unnamed: Films that name no patient, so that each counts as one of its own.
        returning: Those of them with a file name that returns in another folder.
        nobody: Those of them with an identifier that stands for nobody, such as ANONYMOUS.
        copies: Further copies of these films, which were passed over.
        repeated_rows: Rows of a list that say the same again.
        mixed: Named patients with films of several classes: clinically possible, or numbers that begin anew.
    """

    films: int
    by: dict[str, int] = field(default_factory=dict)
    unnamed: int = 0
    returning: int = 0
    nobody: int = 0
    copies: int = 0
    repeated_rows: int = 0
    mixed: int = 0

    def to_json(self) -> dict:
        """Returns the plain content."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """Tells people of it; nothing that names a patient is repeated."""
        lines = [f"patients from {by}: {count} of {self.films} films" for by, count in self.by.items()]
        if self.mixed:
            lines.append(
                f"{self.mixed} of these patients have films of several classes: where that cannot be, their "
                "numbers begin anew in each folder"
            )
        if self.unnamed:
            why = [f"{self.returning} have a name that returns in another folder"] * bool(self.returning)
            why += [f"{self.nobody} an identifier that stands for nobody"] * bool(self.nobody)
            details = f" ({', '.join(why)})" if why else ""
            lines.append(
                f"{self.unnamed} films name no patient{details}: each counts as a patient of its own"
            )
        if self.copies:
            lines.append(f"{self.copies} of {self.films + self.copies} films are copies, taken once")
        if self.repeated_rows:
            lines.append(
                f"{self.repeated_rows} rows of the list repeat another one: each film was taken once"
            )
        return lines


def identify(
    films: Sequence[Clues], patients_from: str, source: Path, *, is_list: bool = False
) -> tuple[list[Identity], Recognised]:
    """Says whose each film of a source is.

    A film belongs to the patient that its header or list states; else to that of a folder or a file name of a
    known pattern, see `patient_of`; else it is a patient of its own, named by its file name, or by its path
    where that name returns in the source. A list states the patients itself.

    Returns:
        An identity a film, and what was recognised.

    Raises:
        BadInput: It is to be found out, and most films would be of a few patients, or have an identifier
            that stands for nobody, or nothing says what the folders below the class folders are.
    """
    known = ("auto", "film", "list") if is_list else tuple(set(PATIENTS_FROM) - {"list"})
    if patients_from not in known:
        raise BadInput(
            f"patients of {source} cannot be taken from {patients_from!r}: choose {', '.join(sorted(known))}"
        )
    named = [_named(film, patients_from, is_list) for film in films]
    nobody = [patients_from == "auto" and is_nobody(film.stated) for film in films]
    if patients_from == "auto":
        _ask_about_folders(films, named, source)
        _ask_about_patients(named, nobody, source, "list" if is_list else "header")
    stems = [PurePosixPath(film.name).stem for film in films]
    names = Counter(stems)
    own = [film.name if names[stem] > 1 else stem for film, stem in zip(films, stems, strict=True)]
    without = [place for place, one in enumerate(named) if one is None]
    return [one or Identity(name) for one, name in zip(named, own, strict=True)], Recognised(
        films=len(films),
        by=dict(Counter(one.by for one in named if one).most_common()),
        unnamed=len(without),
        returning=sum(names[stems[place]] > 1 for place in without),
        nobody=sum(nobody[place] for place in without),
    )


def patient_of(file_name: str) -> tuple[str, bool]:
    """Reads the patient from a film's file name by `_NAME_RULES`; any other is one of its own, by the stem.

    In the published Guangzhou set the numbers of the train and the test folder overlap. Nothing
    tells whether equal numbers are one child, so they are taken for one: such patients' training
    films are left out when the declared test set is used.

    Returns:
        The patient, and whether a rule matched.
    """
    stem = PurePosixPath(file_name).stem
    matched = _matched(stem, _NAME_RULES, _NAMES)
    return (matched.patient, True) if matched else (stem, False)


def is_nobody(identifier: str | None) -> bool:
    """Tells whether an identifier is there but stands for nobody: ANONYMOUS, unknown, NA and the like."""
    if identifier is None:
        return False
    words = re.sub(r"[\W_]+", " ", identifier.casefold()).strip()
    return _NOBODY.fullmatch(words) is not None


def patient_of_one(name: str, header: str | None, sha256: str) -> str:
    """Says whose a single film is, by its header, its name or, where they name nobody, its content."""
    if header and not is_nobody(header):
        return header
    patient, is_known = patient_of(name)
    return patient if is_known else own_patient(sha256)


def own_patient(sha256: str) -> str:
    """Names the patient of a film that names none, by its content: names such as 0001 return elsewhere."""
    return f"film {sha256}"


def _named(film: Clues, patients_from: str, is_list: bool) -> Identity | None:
    """Whom a film names as its patient, None for nobody."""
    auto = patients_from == "auto"
    if film.stated and (patients_from in ("header", "list") or (auto and not is_nobody(film.stated))):
        return Identity(film.stated, _LIST if is_list else _HEADER)
    if patients_from == "folder" and film.folders:
        return Identity(film.folders[0], _FOLDER)
    if is_list or patients_from not in ("auto", "name"):
        return None
    of_folders = [_matched(folder, _FOLDER_RULES, _FOLDERS) for folder in film.folders] if auto else []
    of_name = _matched(PurePosixPath(film.name).stem, _NAME_RULES, _NAMES)
    return next(filter(None, (*of_folders, of_name)), None)


def _matched(text: str, rules: Sequence[tuple[str, re.Pattern, str]], kind: str) -> Identity | None:
    for shown, pattern, form in rules:
        if match := pattern.fullmatch(text):
            return Identity(form.format(match[1]), f"{kind} by the pattern of {shown}")
    return None


def _ask_about_folders(films: Sequence[Clues], named: Sequence[Identity | None], source: Path) -> None:
    """Refuses films in folders below a class folder of which nothing says what they are."""
    # A name of a known pattern is not enough: masks are named after the films that they belong to.
    clear = [one is not None and not one.by.startswith(_NAMES) for one in named]
    unclear = [film for film, is_clear in zip(films, clear, strict=True) if film.folders and not is_clear]
    if unclear:
        raise BadInput(
            f"{source} has {len(unclear)} films in folders below a class folder, the first is "
            f"{unclear[0].place}, and nothing says what these folders are: say --patients-from folder if "
            f"each is a patient, {_GO_ON}, or take them away"
        )


def _ask_about_patients(
    named: Sequence[Identity | None], nobody: Sequence[bool], source: Path, stated: str
) -> None:
    """Refuses identifiers that are hardly those of patients: few cover most films, or most name nobody."""
    go_on = f"{_GO_ON}, or give a CSV with the columns path,label,patient"
    if sum(nobody) >= _LEAST_FILMS and 2 * sum(nobody) > len(named):
        raise BadInput(
            f"{source} does not say who the patients are: in {sum(nobody)} of {len(named)} films "
            f"{_LIST if stated == 'list' else _HEADER} stands for nobody, as ANONYMOUS does: {go_on}"
        )
    films = Counter(one for one in named if one)
    (most, count), *_ = films.most_common(1) or [(Identity(""), 0)]
    alone = len(named) - films.total()
    # What equally large patients would be worth as much (Kish): two that share all films are 2, one is 1.
    worth = len(named) ** 2 / max(1, alone + sum(number**2 for number in films.values()))
    if count >= _LEAST_FILMS and worth < _FEWEST_PATIENTS:
        kind = {_LIST: "list", _HEADER: "header"}.get(
            most.by, "name" if most.by.startswith(_NAMES) else "folder"
        )
        raise BadInput(
            f"{source} has hardly any patients: {len(films)} in {films.total()} of {len(named)} films, one "
            f"of them in {count} by {most.by}: {go_on}, or --patients-from {kind} if it is so"
        )
