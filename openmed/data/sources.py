"""Sources of films: class folders, zips of them and lists, listed without unpacking anything."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from openmed.data.dicom_header import is_dicom
from openmed.data.images import SUFFIXES
from openmed.data.manifest import FILMS_COLUMNS
from openmed.data.privacy import dicom_patient
from openmed.data.readers import FilmReader, file_reader, folder_files, is_plain, zip_files
from openmed.errors import BadInput

_SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_PATIENT_RULES = (
    (re.compile(r"person([A-Za-z0-9]+)_.+"), "person{}"),
    (re.compile(r"IM-(\d+)-\d+(?:-\d+)*"), "IM-{}"),
    (re.compile(r"NORMAL2-IM-(\d+)-\d+(?:-\d+)*"), "NORMAL2-IM-{}"),
    (re.compile(r"patient-?([A-Za-z0-9]+)_.+"), "patient{}"),
)
_DICOM_START_BYTES = 132
_IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}


class LabelledFilm(NamedTuple):
    """A film of a source.

    Attributes:
        name: Path below the source, POSIX.
        label: Class name.
        split: train, validation or test as the source has it, empty for none.
        patient: The patient it is filed under.
        reader: Gives the bytes when called.
    """

    name: str
    label: str
    split: str
    patient: str
    reader: FilmReader

    @property
    def stem(self) -> str:
        """Its file name without the suffix, which stands for the patient when nothing else does."""
        return PurePosixPath(self.name).stem


class Film(NamedTuple):
    """A film of a source without labels.

    Attributes:
        name: Path below the source, POSIX.
        reader: Gives the bytes when called.
        path: Its file, None inside a zip.
    """

    name: str
    reader: FilmReader
    path: Path | None


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        films: The labelled films.
        skipped: Files that were passed over.
        is_list: Whether the source is a .csv, which names the patients itself.
    """

    films: list[LabelledFilm]
    skipped: int = 0
    is_list: bool = False


def iter_labelled(source: Path, class_names: Sequence[str]) -> Iterator[LabelledFilm]:
    """Iterates over a source's labelled films without reading them.

    The source is checked at once, not at the first film. Readers stay good after the iteration.

    Raises:
        BadInput: The source cannot be used as it is.
    """
    return iter(list_source(source, class_names).films)


def list_films(source: Path) -> list[Film]:
    """Lists the films of a folder or zip that has no labels, by name, without reading more than headers.

    Raises:
        BadInput: The source is neither, cannot be used as it is, or holds no film.
    """
    source = Path(source)
    is_folder = source.is_dir()
    if is_folder:
        files = folder_files(source)
    elif source.suffix.lower() == ".zip" and source.is_file():
        files = zip_files(source)
    else:
        raise BadInput(f"{source} is no folder and no .zip file: give one of films")
    films = [
        Film(name, reader, source / name if is_folder else None)
        for name, reader in sorted(files, key=itemgetter(0))
        if not any(_is_ignored(part) for part in PurePosixPath(name).parts)
        and (PurePosixPath(name).suffix.lower() in SUFFIXES or is_dicom(reader.start(_DICOM_START_BYTES)))
    ]
    if not films:
        raise BadInput(f"{source} holds no film: give a folder or zip of JPEG, PNG, TIFF or DICOM files")
    return films


def patient_of(file_name: str) -> tuple[str, bool]:
    """Reads the patient from a film's file name.

    Rules: person<P>_... is person<P>; IM-<P>-<n>[-<m>] is IM-<P>; NORMAL2-IM-<P>-<n>[-<m>] is
    NORMAL2-IM-<P>; patient<P>_... and patient-<P>_... are patient<P>. Any other film is a patient
    of its own, named by the file's stem.

    In the published Guangzhou set the numbers of the train and the test folder overlap. Nothing
    tells whether equal numbers are one child, so they are taken for one: such patients' training
    films are left out when the declared test set is used.

    Args:
        file_name: Name with its suffix; folders before it are ignored.

    Returns:
        The patient, and whether a rule matched.
    """
    stem = PurePosixPath(file_name).stem
    for pattern, form in _PATIENT_RULES:
        if match := pattern.fullmatch(stem):
            return form.format(match[1]), True
    return stem, False


def list_source(source: Path, class_names: Sequence[str]) -> Listing:
    """Lists a source's labelled films without reading them.

    Args:
        source: Folder, .zip or .csv, as `openmed.data.importing.import_films` takes it.
        class_names: The known classes; folders and labels may differ in case.

    Raises:
        BadInput: The source cannot be used as it is.
    """
    source, classes = Path(source), _by_folded_name(class_names)
    if source.is_dir():
        return _from_class_folders(folder_files(source), classes, source)
    if not source.is_file():
        raise BadInput(f"{source} does not exist: give a folder, a .zip or a .csv of films")
    if source.suffix.lower() == ".zip":
        return _from_class_folders(zip_files(source), classes, source)
    if source.suffix.lower() == ".csv":
        return _from_list(source, classes)
    raise BadInput(f"{source} is neither a folder nor a .zip or .csv file: give one of them")


def _by_folded_name(class_names: Sequence[str]) -> dict[str, str]:
    classes = {name.casefold(): name for name in class_names}
    if not classes or len(classes) < len(class_names):
        raise BadInput(f"the classes {list(class_names)} must be at least one, each with a name of its own")
    for name in class_names:
        if not is_plain(name) or "/" in name or name in ("", "."):
            raise BadInput(f"the class name {name!r} cannot be the name of a folder: choose another")
    return classes


def _from_class_folders(
    files: list[tuple[str, FilmReader]], classes: dict[str, str], source: Path
) -> Listing:
    paths = {PurePosixPath(name): (name, reader) for name, reader in files}
    if len(paths) < len(files):
        raise BadInput(f"{source} holds two files under one name: pack it again")
    visible = sorted(path for path in paths if not any(_is_ignored(part) for part in path.parts))
    folders = {path.parent for path in visible if path.parent.name.casefold() in classes}
    if not folders:
        raise BadInput(
            f"{source} has no folder named after a class ({', '.join(classes.values())}): "
            "give class folders, or a CSV with the columns path,label,patient"
        )
    above = {ancestor for folder in folders for ancestor in folder.parents}
    films, skipped = [], 0
    for path in visible:
        is_image = path.suffix.lower() in SUFFIXES or (
            path.parent in folders and is_dicom(paths[path][1].start(_DICOM_START_BYTES))
        )
        if is_image and path.parent in folders:
            films.append(_film_in_folder(path, classes, *paths[path]))
        elif path.parent in folders or (is_image and path.parent in above):
            skipped += 1
        elif is_image:
            # Taking it for a film would invent a label, passing it over would drop a class unseen.
            raise BadInput(
                f"{paths[path][1].place} is an image in a folder that is no class folder "
                f"({', '.join(classes.values())}): rename the folder or take it away"
            )
    return Listing(films, skipped)


def _film_in_folder(
    path: PurePosixPath, classes: dict[str, str], name: str, reader: FilmReader
) -> LabelledFilm:
    if not is_plain(name):
        raise BadInput(f"{reader.place} has unusable characters in its name: rename it")
    above = (ancestor.name.casefold() for ancestor in path.parent.parents)
    split = next((_SPLIT_FOLDERS[folder] for folder in above if folder in _SPLIT_FOLDERS), "")
    patient = _patient_in(reader) or patient_of(path.name)[0]
    return LabelledFilm(name, classes[path.parent.name.casefold()], split, patient, reader)


def _patient_in(reader: FilmReader) -> str | None:
    """The patient that the film's own header names, if it is DICOM."""
    return dicom_patient(reader()) if is_dicom(reader.start(_DICOM_START_BYTES)) else None


def _is_ignored(part: str) -> bool:
    return part.startswith(".") or part.casefold() in _IGNORED


def _from_list(source: Path, classes: dict[str, str]) -> Listing:
    root, films = source.parent.resolve(), []
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            rows.fieldnames = [column.strip().casefold() for column in rows.fieldnames or ()]
            if missing := {"path", "label", "patient"} - set(rows.fieldnames):
                raise BadInput(f"{source} has no column {min(missing)}: it needs path, label and patient")
            for row in rows:
                cells = {column: (row.get(column) or "").strip() for column in FILMS_COLUMNS}
                if problem := _problem(cells, root, classes):
                    raise BadInput(f"{source} has {problem} on line {rows.line_num}: correct or remove it")
                films.append(
                    _film_in_list(cells, root, classes, f"the film on line {rows.line_num} of {source}")
                )
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{source} cannot be read as CSV in UTF-8: {error}") from None
    return Listing(films, is_list=True)


def _problem(cells: dict[str, str], root: Path, classes: dict[str, str]) -> str:
    """Says what is wrong with a line. Its content is not repeated: it may hold a patient's name."""
    path = cells["path"]
    if not path or not is_plain(path) or not (root / path).resolve().is_relative_to(root):
        return "a path that leads out of the folder of the list"
    if Path(path).suffix.lower() not in SUFFIXES:
        return f"a file that is none of {', '.join(SUFFIXES)}"
    if not (root / path).is_file():
        return "a file that is not there"
    if cells["label"].casefold() not in classes:
        return f"a label other than {', '.join(classes.values())}"
    if not cells["patient"]:
        return "no patient"
    if cells["split"] and cells["split"].casefold() not in _SPLIT_FOLDERS:
        return "a split other than train, validation and test"
    return ""


def _film_in_list(cells: dict[str, str], root: Path, classes: dict[str, str], place: str) -> LabelledFilm:
    path = PurePosixPath(cells["path"]).as_posix()
    label, split = classes[cells["label"].casefold()], _SPLIT_FOLDERS.get(cells["split"].casefold(), "")
    return LabelledFilm(path, label, split, cells["patient"], file_reader(root / path, place))
