"""Import: class folders, zips of them and lists of labelled films become a data folder."""

import csv
import hashlib
import io
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from openmed.data.manifest import FILMS_COLUMNS, FILMS_FILE
from openmed.data.sources import FilmReader, LabelledFilm, Listing, list_source, patient_of
from openmed.data.splits import LEAST_VALIDATION_SHARE
from openmed.errors import BadInput, ResourceError
from openmed.files import write_text


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
    listing = list_source(source, class_names)
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


def _stored_paths(listing: Listing, source: Path) -> list[str]:
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
    if 0 < found["validation"] < LEAST_VALIDATION_SHARE * len(films):
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
