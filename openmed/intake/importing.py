"""Import: class folders, zips of them and lists of labelled films become a data folder."""

import csv
import hashlib
import io
import re
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path, PurePosixPath

from openmed.archives import place_of
from openmed.concurrency import ordered_map
from openmed.dataset.manifest import ABOUT_COLUMNS, FILMS_COLUMNS, FILMS_FILE, SOURCE_NAME
from openmed.dataset.splits import LEAST_VALIDATION_SHARE
from openmed.errors import BadInput, ResourceError
from openmed.files import sha256_bytes, write_text
from openmed.intake.identity import Recognised, own_patient
from openmed.intake.packing import pack_rows
from openmed.intake.sources import LabelledFilm, Listing, list_source
from openmed.privacy.cleaning import Pseudonyms, clean_film

LOOSE = ".loose"
"""Folder of a new data folder where films lie until they are packed."""


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    Attributes:
        films: Films imported.
        per_class: Films of each class.
        patients: Different patients.
        skipped: Files of the source that were passed over, because they are no images by their
            suffix or lie above the class folders.
        unmatched: Imported films that name no patient, so that each counts as a patient of its own.
        recognised: What names the patients of the source, and how surely.
        splits: Films of each declared split; those without one are "undeclared".
        merged_validation: Films declared for validation that were put back into training,
            because they were too few to validate on.
        withheld: Why nothing of some films was kept but the reason, and of how many.
    """

    films: int
    per_class: dict[str, int]
    patients: int
    skipped: int
    unmatched: int
    recognised: Recognised
    splits: dict[str, int]
    merged_validation: int = 0
    withheld: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict:
        """Returns the plain content."""
        return asdict(self)


def import_films(
    source: Path,
    target: Path,
    *,
    class_names: Sequence[str],
    pseudonyms: Pseudonyms | None = None,
    limit: int | None = None,
    seed: int = 0,
    every_class: bool = True,
    source_name: str = "",
    patients_from: str = "auto",
) -> ImportSummary:
    """Lays out a data folder: films.csv and, in archives, films/<split as found>/<CLASS>/<file name>.

    Args:
        source: A folder or .zip of class folders, with or without train, val and test folders above them, or
            a .csv with the columns path, label, patient and perhaps split.
        target: The data folder; must not exist or be empty. It appears whole or not at all.
        class_names: The known classes; folders and labels may differ in case.
        pseudonyms: Of the site: patients get pseudonyms, films are named after their content, cleaned of all
            that could name somebody and packed into archives. None leaves them as they are, each a file,
            which suits published films only.
        limit: About how many films: whole patients, drawn at random, in the proportions of the classes.
        seed: Of the draw.
        every_class: Refuse a source that lacks films of some class.
        source_name: Name of the hospital or archive, as `SOURCE_NAME`; drift and subgroups go by it.
        patients_from: One of `openmed.intake.identity.PATIENTS_FROM`.

    Raises:
        BadInput: The source cannot be used as it is, who its patients are is unclear, or the target is taken.
        ResourceError: The target cannot be written.
    """
    target = Path(target).absolute()
    _refuse(source_name, target)
    listing = list_source(source, class_names, patients_from=patients_from)
    _refuse_missing_class(listing, class_names, source, every_class)
    declared, merged = _with_declared_splits(listing.films)
    chosen = range(len(declared)) if limit is None else whole_patients(declared, limit, seed)
    films = [declared[index] for index in chosen]
    stored = _stored_paths(listing, source) if pseudonyms is None else []
    withheld = Counter[str]()
    with new_folder(target) as folder:
        if pseudonyms is None:
            rows = [_copied(declared[index], stored[index], folder) for index in chosen]
            rows.sort(key=itemgetter("path"))
        else:
            rows, withheld = _packed(films, [listing.films[index] for index in chosen], folder, pseudonyms)
        write_list(folder / FILMS_FILE, [row | {"source": source_name} for row in rows])
    return _summary(films, rows, class_names, listing, merged, withheld)


def _summary(
    films: Sequence[LabelledFilm],
    rows: Sequence[Mapping[str, str]],
    class_names: Sequence[str],
    listing: Listing,
    merged: int,
    withheld: Mapping[str, int],
) -> ImportSummary:
    return ImportSummary(
        films=len(films),
        per_class={name: sum(film.label == name for film in films) for name in class_names},
        patients=len({row["patient"] for row in rows}),
        skipped=listing.skipped,
        unmatched=sum(not film.is_named for film in films),
        recognised=listing.recognised,
        splits=dict(sorted(Counter(film.split or "undeclared" for film in films).items())),
        merged_validation=merged,
        withheld=dict(sorted(withheld.items())),
    )


def _refuse(source_name: str, target: Path) -> None:
    if source_name and not re.fullmatch(SOURCE_NAME, source_name):
        raise BadInput(
            f"{source_name!r} cannot name a source: up to 32 letters, digits, dots, dashes or underscores can"
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"{target} exists and is not empty: choose another folder or move it away")


def _refuse_missing_class(
    listing: Listing, class_names: Sequence[str], source: Path, every_class: bool
) -> None:
    missing = [name for name in class_names if name not in {film.label for film in listing.films}]
    if missing and (every_class or not listing.films):
        raise BadInput(f"{source} has no film of class {missing[0]}: every class needs films")


def _copied(film: LabelledFilm, path: str, folder: Path) -> dict[str, str]:
    """Copies a film as it is and returns its row of films.csv."""
    target, digest = folder / path, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as stream:
        for chunk in film.reader.chunks():
            digest.update(chunk)
            stream.write(chunk)
    return _row(film, path, film.patient, digest.hexdigest())


def _packed(
    films: Sequence[LabelledFilm], found: Sequence[LabelledFilm], folder: Path, pseudonyms: Pseudonyms
) -> tuple[list[dict[str, str]], Counter[str]]:
    """Cleans films into archives; their folders there say in which split they were found."""
    folders = ["/".join(filter(None, [film.split, film.label])) for film in found]
    rows, withheld = cleaned_films(films, folders, folder / LOOSE, pseudonyms)
    return pack_rows(rows, folder / LOOSE, folder), withheld


def cleaned_films(
    films: Sequence[LabelledFilm], folders: Sequence[str], target: Path, pseudonyms: Pseudonyms
) -> tuple[list[dict[str, str]], Counter[str]]:
    """Writes films without identifiers as files named after their content, each into its folder below films/.

    Returns a row of films.csv for each film, in order, with what its header tells; and why nothing of some
    films was kept, with their number.
    """
    rows, taken, withheld = [], Counter[str](), Counter[str]()
    clean = ordered_map(lambda film: clean_film(film.reader(), film.name, pseudonyms), films)
    for film, subfolder, cleaned in zip(films, folders, clean, strict=True):
        digest = sha256_bytes(cleaned.content)
        stem = f"films/{subfolder}/{digest[:16]}"
        taken[stem] += 1
        copy = f"-{taken[stem]}" if taken[stem] > 1 else ""
        path = f"{stem}{copy}{cleaned.suffix}"
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(cleaned.content)
        patient = film.patient if film.is_named else own_patient(digest)
        rows.append(_row(film, path, pseudonyms.patient(patient), digest, cleaned.about))
        if cleaned.reason:
            withheld[cleaned.reason] += 1
    return rows, withheld


def _row(
    film: LabelledFilm, path: str, patient: str, sha256: str, about: Mapping[str, str] | None = None
) -> dict[str, str]:
    named = {"path": path, "label": film.label, "patient": patient, "split": film.split, "sha256": sha256}
    return named | dict(about or {})


def _stored_paths(listing: Listing, source: Path) -> list[str]:
    """Where each film goes below the data folder; one place for two films is refused."""
    taken: dict[str, str] = {}
    stored = []
    for film in listing.films:
        parts = [film.split, film.label, PurePosixPath(film.name).name]
        stored.append(
            "/".join(["films", *filter(None, parts if listing.rows is None else [place_of(film.name).name])])
        )
        # Case is ignored, because a data folder must also fit on a disk that does so.
        other = taken.setdefault(stored[-1].casefold(), film.reader.place)
        if other != film.reader.place:
            raise BadInput(
                f"{source} has two films that would be stored under one name, {other} and "
                f"{film.reader.place}: rename one or import one folder"
            )
    return stored


def _with_declared_splits(films: list[LabelledFilm]) -> tuple[list[LabelledFilm], int]:
    """Films with the splits to declare, and how many validation films went back to train.

    As found, but a validation split of less than 1 % of the films becomes train, and a train split without
    any other declares nothing.
    """
    declared = Counter(film.split for film in films if film.split)
    becomes, merged = {}, 0
    if 0 < declared["validation"] < LEAST_VALIDATION_SHARE * len(films):
        becomes, merged = {"validation": "train"}, declared.pop("validation")
    if not declared.keys() & {"validation", "test"}:
        # A declared split of one part says nothing.
        becomes = {"train": "", "validation": ""}
    return [film._replace(split=becomes.get(film.split, film.split)) for film in films], merged


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
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


def write_list(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str] = ABOUT_COLUMNS) -> None:
    """Writes films.csv; of the columns that a list may have, those that some film has."""
    about = [name for name in columns if any(row.get(name) for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FILMS_COLUMNS, *about], "", "ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def whole_patients(films: Sequence[LabelledFilm], limit: int, seed: int) -> list[int]:
    """Draws whole patients until each class has its share of about so many films; returns their positions.

    BadInput where the limit cannot hold every class.
    """
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
