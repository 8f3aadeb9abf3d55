"""Import: class folders, zips of them and lists of labelled films become a data folder."""

import csv
import hashlib
import io
import lzma
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from openmed.data.images import SUFFIXES
from openmed.data.manifest import FILMS_COLUMNS, FILMS_FILE, is_inside
from openmed.errors import BadInput, ResourceError
from openmed.files import write_text

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
_IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
_LEAST_VALIDATION_SHARE = 0.01
_CHUNK_BYTES = 1 << 20
_MOST_ENTRY_BYTES = 512 << 20
_MOST_RATIO, _HARMLESS_BYTES = 200, 1 << 30
# What zipfile and its decompressors raise on damaged archives (RuntimeError: an unknown method).
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
_ZIP_ERRORS = (*_ARCHIVE_ERRORS, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class FilmReader:
    """Reads one film of a source when it is asked to, without extracting anything.

    Attributes:
        place: What to call the film in an error.
        opener: Opens the film's bytes.
    """

    place: str
    opener: Callable[[], BinaryIO]

    def __call__(self) -> bytes:
        """Returns the whole content. Raises BadInput as `chunks` does."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Yields the content piece by piece.

        Raises:
            BadInput: The film cannot be read or its place in the zip is damaged.
        """
        try:
            with self.opener() as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
        except (OSError, *_ZIP_ERRORS) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(f"{self.place} cannot be read ({reason}): get a whole copy") from None


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


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    Attributes:
        films: Films imported.
        per_class: Films of each class.
        patients: Different patients.
        skipped: Files of the source that were passed over, because they are no images by their
            suffix or lie above the class folders.
        unmatched: Imported films whose name matched no rule of `patient_of`, so that each counts
            as a patient of its own.
        splits: Films of each declared split; those without one are "undeclared".
        merged_validation: Films declared for validation that were put back into training,
            because they were too few to validate on.
    """

    films: int
    per_class: dict[str, int]
    patients: int
    skipped: int
    unmatched: int
    splits: dict[str, int]
    merged_validation: int = 0

    def to_json(self) -> dict:
        """Returns the plain content."""
        return asdict(self)


@dataclass(frozen=True)
class _Listing:
    films: list[LabelledFilm]
    skipped: int = 0
    is_list: bool = False


def import_films(
    source: Path, target: Path, *, class_names: Sequence[str], limit: int | None = None, seed: int = 0
) -> ImportSummary:
    """Lays out a data folder: films.csv and films/<split as found>/<CLASS>/<file name>.

    A source is a folder or a .zip of class folders, with or without train, val and test folders
    above them, or a .csv with the columns path, label, patient and perhaps split, whose paths stay
    as they are below films/. The column `split` of films.csv is what counts as declared: as found,
    except that a validation split of less than 1 % of the films becomes train, and that a train
    split without any other declares nothing.

    Args:
        source: Folder, .zip or .csv.
        target: The data folder; must not exist or be empty. It appears whole or not at all.
        class_names: The known classes; folders and labels may differ in case.
        limit: Import about this many films: whole patients, drawn at random, in the proportions of
            the classes. None imports all.
        seed: Seed of the draw.

    Returns:
        What was imported.

    Raises:
        BadInput: The source cannot be used as it is, or the target is taken.
        ResourceError: The target cannot be written.
    """
    target = Path(target).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"{target} exists and is not empty: choose another folder or move it away")
    listing = _list_source(source, class_names)
    missing = [name for name in class_names if name not in {film.label for film in listing.films}]
    if missing:
        raise BadInput(f"{source} has no film of class {missing[0]}: every class needs films")
    stored = _stored_paths(listing, source)
    declared, merged = _with_declared_splits(listing.films)
    chosen = range(len(stored)) if limit is None else _subset(declared, limit, seed)
    chosen = sorted(chosen, key=stored.__getitem__)
    films = [declared[index] for index in chosen]
    with _new_folder(target) as folder:
        for index, film in zip(chosen, films, strict=True):
            _copy(film.reader, folder / stored[index])
        rows = zip(chosen, films, strict=True)
        _write_list(folder / FILMS_FILE, ((stored[i], f.label, f.patient, f.split) for i, f in rows))
    return ImportSummary(
        films=len(films),
        per_class={name: sum(film.label == name for film in films) for name in class_names},
        patients=len({film.patient for film in films}),
        skipped=listing.skipped,
        unmatched=0 if listing.is_list else sum(not patient_of(film.name)[1] for film in films),
        splits=dict(sorted(Counter(film.split or "undeclared" for film in films).items())),
        merged_validation=merged,
    )


def iter_labelled(source: Path, class_names: Sequence[str]) -> Iterator[LabelledFilm]:
    """Lists the labelled films of a source that `import_films` takes, without reading them.

    The source is checked at once, not at the first film. Readers stay good after the iteration.

    Raises:
        BadInput: The source cannot be used as it is.
    """
    return iter(_list_source(source, class_names).films)


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


def _list_source(source: Path, class_names: Sequence[str]) -> _Listing:
    source, classes = Path(source), _by_folded_name(class_names)
    if source.is_dir():
        return _from_class_folders(_folder_files(source), classes, source)
    if not source.is_file():
        raise BadInput(f"{source} does not exist: give a folder, a .zip or a .csv of films")
    if source.suffix.lower() == ".zip":
        return _from_class_folders(_zip_files(source), classes, source)
    if source.suffix.lower() == ".csv":
        return _from_list(source, classes)
    raise BadInput(f"{source} is neither a folder nor a .zip or .csv file: give one of them")


def _by_folded_name(class_names: Sequence[str]) -> dict[str, str]:
    classes = {name.casefold(): name for name in class_names}
    if not classes or len(classes) < len(class_names):
        raise BadInput(f"the classes {list(class_names)} must be at least one, each with a name of its own")
    for name in class_names:
        if not _is_plain(name) or "/" in name or name in ("", "."):
            raise BadInput(f"the class name {name!r} cannot be the name of a folder: choose another")
    return classes


def _folder_files(source: Path) -> list[tuple[str, FilmReader]]:
    def refuse(error: OSError) -> None:
        raise BadInput(f"{error.filename} cannot be read: {error.strerror}") from None

    paths = [Path(folder, name) for folder, _, names in os.walk(source, onerror=refuse) for name in names]
    return [(path.relative_to(source).as_posix(), _file_reader(path)) for path in paths]


def _file_reader(path: Path) -> FilmReader:
    return FilmReader(str(path), partial(path.open, "rb"))


def _zip_files(source: Path) -> list[tuple[str, FilmReader]]:
    try:
        # Left open: the readers hold it, and it is closed with the last of them.
        archive = zipfile.ZipFile(source)
    except (OSError, *_ZIP_ERRORS) as error:
        raise BadInput(f"{source} is not a whole zip archive ({error}): get it again") from None
    entries = archive.infolist()
    for number, entry in enumerate(entries, 1):
        if danger := _danger(entry):
            raise BadInput(f"entry {number} of {source} {danger}: unpack and check it by hand")
    total = sum(entry.file_size for entry in entries)
    if total > max(_MOST_RATIO * source.stat().st_size, _HARMLESS_BYTES):
        raise BadInput(f"{source} would unpack to {total >> 20} MiB, more than {_MOST_RATIO} times its size")
    return [
        (entry.filename, FilmReader(f"entry {number} of {source}", partial(archive.open, entry)))
        for number, entry in enumerate(entries, 1)
        if not entry.is_dir()
    ]


def _danger(entry: zipfile.ZipInfo) -> str:
    """Says what is wrong with a zip entry. Its name is not repeated: it may hold a patient's."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not entry.filename or not _is_plain(entry.filename):
        return "has a path that leads out of the archive or cannot be written"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > _MOST_ENTRY_BYTES:
        return f"unpacks to more than {_MOST_ENTRY_BYTES >> 20} MiB"
    return ""


def _is_plain(path: str) -> bool:
    """Tells whether a path stays inside and has no control characters or undecodable bytes."""
    return is_inside(path) and not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in path)


def _from_class_folders(
    files: list[tuple[str, FilmReader]], classes: dict[str, str], source: Path
) -> _Listing:
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
        is_image = path.suffix.lower() in SUFFIXES
        if is_image and path.parent in folders:
            films.append(_film_in_folder(path, classes, *paths[path]))
        elif path.parent in folders or (is_image and path.parent in above):
            skipped += 1
        elif is_image:
            # Taking it for a film would invent a label, passing it over would drop a class unseen.
            raise BadInput(
                f"{source} has images in the folder {path.parent.as_posix()!r}, which is no class folder "
                f"({', '.join(classes.values())}): rename it or take it away"
            )
    return _Listing(films, skipped)


def _film_in_folder(
    path: PurePosixPath, classes: dict[str, str], name: str, reader: FilmReader
) -> LabelledFilm:
    if not _is_plain(name):
        raise BadInput(f"a film in {path.parent.as_posix()!r} has unusable characters in its name: rename it")
    above = (ancestor.name.casefold() for ancestor in path.parent.parents)
    split = next((_SPLIT_FOLDERS[folder] for folder in above if folder in _SPLIT_FOLDERS), "")
    return LabelledFilm(name, classes[path.parent.name.casefold()], split, patient_of(path.name)[0], reader)


def _is_ignored(part: str) -> bool:
    return part.startswith(".") or part.casefold() in _IGNORED


def _from_list(source: Path, classes: dict[str, str]) -> _Listing:
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
                films.append(_film_in_list(cells, root, classes))
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{source} cannot be read as CSV in UTF-8: {error}") from None
    return _Listing(films, is_list=True)


def _problem(cells: dict[str, str], root: Path, classes: dict[str, str]) -> str:
    """Says what is wrong with a line. Its content is not repeated: it may hold a patient's name."""
    path = cells["path"]
    if not path or not _is_plain(path) or not (root / path).resolve().is_relative_to(root):
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


def _film_in_list(cells: dict[str, str], root: Path, classes: dict[str, str]) -> LabelledFilm:
    path = PurePosixPath(cells["path"]).as_posix()
    label, split = classes[cells["label"].casefold()], _SPLIT_FOLDERS.get(cells["split"].casefold(), "")
    return LabelledFilm(path, label, split, cells["patient"], _file_reader(root / path))


def _stored_paths(listing: _Listing, source: Path) -> list[str]:
    """Where each film goes below the data folder; one place for two films is refused."""
    taken: dict[str, str] = {}
    stored = []
    for film in listing.films:
        name = PurePosixPath(film.name)
        parts = [film.name] if listing.is_list else [film.split, film.label, name.name]
        stored.append("/".join(["films", *filter(None, parts)]))
        # Case is ignored, because a data folder must also fit on a disk that does so.
        folder, other = name.parent.as_posix(), taken.get(stored[-1].casefold())
        if other is not None:
            raise BadInput(
                f"{source} has two films that would be stored under one name, from the folders {other!r} and "
                f"{folder!r}: rename one or import one folder"
            )
        taken[stored[-1].casefold()] = folder
    return stored


def _with_declared_splits(films: list[LabelledFilm]) -> tuple[list[LabelledFilm], int]:
    """Films with the splits to declare, and how many validation films went back to train."""
    found = Counter(film.split for film in films if film.split)
    becomes, merged = {}, 0
    if 0 < found["validation"] < _LEAST_VALIDATION_SHARE * len(films):
        becomes, merged = {"validation": "train"}, found.pop("validation")
    if not found.keys() & {"validation", "test"}:
        # A declared split of one part says nothing.
        becomes = {"train": "", "validation": ""}
    return [film._replace(split=becomes.get(film.split, film.split)) for film in films], merged


def _subset(films: list[LabelledFilm], limit: int, seed: int) -> list[int]:
    """Positions of whole patients until each class has its share of the limit."""
    counts = Counter(film.label for film in films)
    if limit < len(counts):
        raise BadInput(f"a limit of {limit} films cannot hold {len(counts)} classes: give at least that many")
    by_patient = defaultdict(list)
    for index, film in enumerate(films):
        by_patient[film.patient].append(index)
    wanted = {label: max(1, round(limit * count / len(films))) for label, count in counts.items()}
    chosen = []
    for patient in sorted(by_patient, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        labels = Counter(films[index].label for index in by_patient[patient])
        # A patient of several classes comes in for the rarest, which has the fewest patients.
        if wanted[min(labels, key=lambda label: (counts[label], label))] > 0:
            chosen += by_patient[patient]
            wanted = {label: want - labels[label] for label, want in wanted.items()}
    return chosen


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Gives a folder that becomes `target` when the block ends well and vanishes otherwise."""
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(target)
    except OSError as error:
        raise ResourceError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(reader: FilmReader, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.writelines(reader.chunks())


def _write_list(path: Path, rows: Iterable[tuple[str, str, str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FILMS_COLUMNS)
    writer.writerows(rows)
    write_text(path, text.getvalue())
