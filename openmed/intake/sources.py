"""Sources of films: class folders, zips of them and lists, listed without unpacking anything."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from openmed.errors import BadInput
from openmed.files import sha256_bytes
from openmed.films.dicom.header import START_BYTES, is_dicom
from openmed.films.images import SUFFIXES
from openmed.intake.film_list import SPLIT_NAMES, read_list
from openmed.intake.identity import Clues, Recognised, identify
from openmed.intake.readers import FilmReader, file_reader, folder_files, is_plain, zip_files
from openmed.privacy.cleaning import dicom_patient

_IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
_MASKS = {"mask", "masks", "segmentation", "segmentations", "annotation", "annotations"}
_COPY_ENDING = re.compile(r" ?\(\d+\)$|( -)? copy( \d+| \(\d+\))?$", re.IGNORECASE)


class LabelledFilm(NamedTuple):
    """A film of a source.

    Attributes:
        name: Path below the source, POSIX.
        label: Class name.
        split: train, validation or test as the source has it, empty for none.
        patient: The patient it is filed under.
        reader: Gives the bytes when called.
        is_named: Whether something names the patient; otherwise the film is a patient of its own.
    """

    name: str
    label: str
    split: str
    patient: str
    reader: FilmReader
    is_named: bool = True


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
        recognised: What names the patients, and how surely.
        rows: Of a .csv the rows of the films, in order, by column in lower case; None of class folders.
    """

    films: list[LabelledFilm]
    skipped: int
    recognised: Recognised
    rows: list[dict[str, str]] | None = None


def list_films(source: Path) -> list[Film]:
    """Lists the films of a folder or zip without labels, by name, and reads no more than headers.

    BadInput where the source is neither, cannot be used as it is, or holds no film.
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
        and (PurePosixPath(name).suffix.lower() in SUFFIXES or is_dicom(reader.start(START_BYTES)))
    ]
    if not films:
        raise BadInput(f"{source} holds no film: give a folder or zip of JPEG, PNG, TIFF or DICOM files")
    return films


def list_source(
    source: Path, class_names: Sequence[str], *, patients_from: str = "auto", more: Sequence[str] = ()
) -> Listing:
    """Lists a source's labelled films, see `import_films`; of DICOM files and of copies the content is read.

    `more` are further columns of a .csv in which rows of one film must agree. BadInput where the source
    cannot be used as it is, or it has to be asked who the patients are.
    """
    source, classes = Path(source), _by_folded_name(class_names)
    if source.is_dir():
        return _from_class_folders(folder_files(source), classes, source, patients_from)
    if not source.is_file():
        raise BadInput(f"{source} does not exist: give a folder, a .zip or a .csv of films")
    if source.suffix.lower() == ".zip":
        return _from_class_folders(zip_files(source), classes, source, patients_from)
    if source.suffix.lower() == ".csv":
        return _from_list(source, classes, patients_from, more)
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
    files: list[tuple[str, FilmReader]], classes: dict[str, str], source: Path, patients_from: str
) -> Listing:
    paths = {PurePosixPath(name): (name, reader) for name, reader in files}
    if len(paths) < len(files):
        raise BadInput(f"{source} holds two files under one name: pack it again")
    visible = sorted(path for path in paths if not any(_is_ignored(part) for part in path.parts))
    class_folder = {
        path: next((folder for folder in path.parents if folder.name.casefold() in classes), None)
        for path in visible
    }
    above = {ancestor for folder in class_folder.values() if folder for ancestor in folder.parents}
    if not any(class_folder.values()):
        raise BadInput(
            f"{source} has no folder named after a class ({', '.join(classes.values())}): "
            "give class folders, or a CSV with the columns path,label,patient"
        )
    films, skipped = [], 0
    for path in visible:
        folder, (name, reader) = class_folder[path], paths[path]
        is_image = path.suffix.lower() in SUFFIXES or (
            folder is not None and is_dicom(reader.start(START_BYTES))
        )
        if is_image and folder is not None and not _MASKS & {part.casefold() for part in path.parts}:
            films.append(_film_in_folder(path, folder, classes, name, reader))
        elif path.parent in above if is_image else folder is not None:
            skipped += 1
        elif is_image:
            # Taking it for a film would invent a label, passing it over would drop a class unseen.
            raise BadInput(
                f"{reader.place} is an image in a folder that is no class folder "
                f"({', '.join(classes.values())}): rename the folder or take it away"
            )
    kept, copies = without_copies(films)
    folders = {path: folder for path, folder in class_folder.items() if folder}
    films, recognised = _identified(kept, patients_from, source, folders)
    return Listing(films, skipped, recognised=replace(recognised, copies=copies, mixed=_mixed(films)))


def _film_in_folder(
    path: PurePosixPath, folder: PurePosixPath, classes: dict[str, str], name: str, reader: FilmReader
) -> LabelledFilm:
    if not is_plain(name):
        raise BadInput(f"{reader.place} has unusable characters in its name: rename it")
    above = (ancestor.name.casefold() for ancestor in folder.parents)
    split = next((SPLIT_NAMES[folder] for folder in above if folder in SPLIT_NAMES), "")
    return LabelledFilm(name, classes[folder.name.casefold()], split, "", reader)


def _identified(
    films: list[LabelledFilm],
    patients_from: str,
    source: Path,
    class_folder: Mapping[PurePosixPath, PurePosixPath],
) -> tuple[list[LabelledFilm], Recognised]:
    """Films with their patients."""
    clues, asks_headers = [], patients_from in ("auto", "header")
    for film in films:
        path = PurePosixPath(film.name)
        folders = path.parent.relative_to(class_folder[path]).parts
        has_header = asks_headers and is_dicom(film.reader.start(START_BYTES))
        stated = dicom_patient(film.reader()) if has_header else None
        clues.append(Clues(film.name, folders, stated, film.reader.place))
    identities, recognised = identify(clues, patients_from, source)
    named = [
        film._replace(patient=one.patient, is_named=bool(one.by))
        for film, one in zip(films, identities, strict=True)
    ]
    return named, recognised


def _mixed(films: Sequence[LabelledFilm]) -> int:
    """Counts the named patients with films of several classes."""
    seen = {(film.patient, film.label) for film in films if film.is_named}
    return sum(count > 1 for count in Counter(patient for patient, _ in seen).values())


def without_copies(films: list[LabelledFilm]) -> tuple[list[LabelledFilm], int]:
    """Takes films once that lie in several folders, as in an archive that holds itself again.

    A copy has the content, class, split and file name of another film; of file names the endings that file
    managers give to copies do not count. Copies under other names stay: they tell which patients are one.

    Returns:
        The films without copies, in order, of copies the one nearest to the top; and how many went.
    """
    places = defaultdict(list)
    for film in sorted(films, key=lambda film: (film.name.count("/"), len(film.name), film.name)):
        name = _COPY_ENDING.sub("", PurePosixPath(film.name).stem).casefold()
        places[film.split, film.label, name].append(film)
    copies = set()
    for alike in places.values():
        digests = [sha256_bytes(film.reader()) for film in alike] if len(alike) > 1 else [""]
        copies |= {film.name for n, film in enumerate(alike) if digests[n] in digests[:n]}
    return [film for film in films if film.name not in copies], len(copies)


def _is_ignored(part: str) -> bool:
    return part.startswith(".") or part.casefold() in _IGNORED


def _from_list(source: Path, classes: dict[str, str], patients_from: str, more: Sequence[str]) -> Listing:
    rows, repeated = read_list(source, classes, more)
    clues = [Clues(row["path"], (), row["patient"], "") for row in rows]
    identities, recognised = identify(clues, patients_from, source, is_list=True)
    films = [
        LabelledFilm(
            row["path"],
            classes[row["label"].casefold()],
            SPLIT_NAMES.get(row["split"].casefold(), ""),
            one.patient,
            file_reader(source.parent.resolve() / row["path"], row["place"]),
            bool(one.by),
        )
        for row, one in zip(rows, identities, strict=True)
    ]
    return Listing(films, 0, replace(recognised, repeated_rows=repeated, mixed=_mixed(films)), rows)
