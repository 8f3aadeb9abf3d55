"""External sets: labelled films from elsewhere, which judge models and teach none."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from openmed.dataset.duplicates import near_duplicates, same_film
from openmed.dataset.manifest import ABOUT_COLUMNS, FILMS_FILE, SOURCE_NAME, read_films
from openmed.dataset.profile import AGE_BANDS, age_band
from openmed.errors import BadInput
from openmed.intake.identity import Recognised
from openmed.intake.importing import LOOSE, cleaned_films, new_folder, write_list
from openmed.intake.packing import pack_rows
from openmed.intake.sources import LabelledFilm, Listing, list_source
from openmed.privacy.cleaning import VIEWS, Pseudonyms

SET_NAME = r"[a-z][a-z0-9-]{0,31}"
"""A name of an external set: lower-case letters, digits and dashes."""
SECOND_LABEL = "second_label"
"""Column of a list: the class that a second reader gave, empty where none did."""
_ABOUT = ("view", "sex", "age_band", "source")
_MORE_COLUMNS = ("age_band", SECOND_LABEL)
_AGE_BAND = rf"\d{{1,3}} ?(-|to) ?\d{{1,3}}|\d{{1,3}}\+|{'|'.join(map(re.escape, AGE_BANDS.values()))}"
_SEXES = ("F", "M", "O")


@dataclass(frozen=True)
class SetSummary:
    """What an external set holds.

    Attributes:
        films: Films imported.
        patients: Different patients.
        classes: Films of each class, those of a missing class too.
        views: Films of each view, "unknown" among them.
        second_labels: Films with a second label.
        skipped: Files of the source that were passed over.
        unmatched: Films that name no patient, so that each counts as a patient of its own.
        recognised: What names the patients, and how surely.
        withheld: Why nothing of some films was kept but the reason, and of how many.
    """

    films: int
    patients: int
    classes: dict[str, int]
    views: dict[str, int]
    second_labels: int
    skipped: int
    unmatched: int
    recognised: Recognised
    withheld: dict[str, int]

    def to_json(self) -> dict:
        """Returns the plain content."""
        return asdict(self)


def import_set(
    source: Path,
    target: Path,
    *,
    class_names: Sequence[str],
    pseudonyms: Pseudonyms,
    aliases: Mapping[str, str] | None = None,
    second_label: str | None = None,
    patients_from: str = "auto",
) -> SetSummary:
    """Lays an external set out as a data folder: patients by pseudonym, films in archives by their content.

    A source is one that `openmed.intake.importing.import_films` takes; it may lack films of some class, and
    its splits are passed over. A .csv may also have the columns view, sex (F, M, O), age_band (such as 40-64
    or 80+), source (a short plain name), and a second label. What is no such value is not kept.

    The target must not exist; it appears whole or not at all. `aliases` are what the source calls a class ->
    its name here, for both labels. `second_label` is the column of the .csv with the label of a second
    reader; what is neither a class nor an alias there is no second label.

    Raises:
        BadInput: The source cannot be used as it is, or an alias means an unknown class.
        ResourceError: The target cannot be written.
    """
    names = _class_of(class_names, aliases or {})
    # A name with a slash cannot be that of a folder, so it can only be a second label.
    more = [*_ABOUT, *filter(None, [(second_label or "").casefold()])]
    known = [name for name in names if "/" not in name]
    listing = list_source(source, known, patients_from=patients_from, more=more)
    if not listing.films:
        raise BadInput(f"{source} has no film of the classes {', '.join(class_names)}")
    films = [film._replace(label=names[film.label], split="") for film in listing.films]
    about = _about(Path(source), listing, names, second_label)
    with new_folder(Path(target).absolute()) as folder:
        loose = folder / LOOSE
        rows, withheld = cleaned_films(films, [film.label for film in films], loose, pseudonyms)
        # What the list says goes before what the header of a film says.
        rows = [row | listed for row, listed in zip(rows, about, strict=True)]
        columns = (*ABOUT_COLUMNS, *_MORE_COLUMNS)
        write_list(folder / FILMS_FILE, pack_rows(rows, loose, folder), columns)
    return _summary(films, rows, listing, class_names, withheld)


def read_set(folder: Path, class_names: Sequence[str]) -> pd.DataFrame:
    """Reads the list of films of an external set.

    Returns:
        What `read_films` returns without declared_split, with view, sex, age_band and source as text, empty
        when unknown, and second_label as Int64.

    Raises:
        BadInput: As `read_films`, or a second label is no class.
    """
    films = read_films(folder, class_names, more=_MORE_COLUMNS).drop(columns="declared_split")
    if "age_years" in films:
        years = films["age_years"].map(age_band, na_action="ignore").astype(object)
        known = films["age_band"] if "age_band" in films else pd.Series("", films.index)
        films["age_band"] = known.where(known != "", years.where(years.notna(), ""))
    for name in ("view", "sex", "age_band", "source", SECOND_LABEL):
        films[name] = films.get(name, "")
    second = films[SECOND_LABEL]
    labels = {name: index for index, name in enumerate(class_names)}
    if not second.isin(["", *labels]).all():
        raise BadInput(f"{folder / FILMS_FILE} has a second label other than {', '.join(labels)}")
    films[SECOND_LABEL] = second.map(labels).astype("Int64")
    return films


def films_in_training(films: pd.DataFrame, training: pd.DataFrame, max_bits: int, root: Path) -> np.ndarray:
    """Finds films of a set that a model has learnt from: themselves, or near-duplicates of them.

    Args:
        films: Of the set: path (below `root`), sha256, perceptual_hash.
        training: The same of the films that a model has seen.
        max_bits: Films whose perceptual hashes differ in at most as many bits are compared on their pixels.
        root: Folder that both lie below.

    Returns:
        bool, one a film of the set.

    Raises:
        IntegrityError: A film that had to be looked at is not what its sha256 says.
    """
    known = films["sha256"].isin(training["sha256"]).to_numpy(copy=True)
    both = pd.concat([films, training], ignore_index=True)
    pairs = _near_pairs(both["perceptual_hash"], len(films), max_bits)
    pairs = pairs[~known[pairs[:, 0]]]
    known[pairs[same_film(root, both, pairs), 0]] = True
    return known


def _near_pairs(hashes: pd.Series, first: int, max_bits: int) -> np.ndarray:
    """Pairs (i, j), i among the `first` films and j behind them, whose hashes differ in few bits."""
    codes, unique = pd.factorize(hashes)
    near = near_duplicates(list(unique), max_bits)
    each = np.stack([np.arange(len(unique))] * 2, 1)
    links = pd.DataFrame(np.concatenate([each, near, near[:, ::-1]]), columns=["own", "other"])
    own = pd.DataFrame({"own": codes[:first], "i": np.arange(first)})
    other = pd.DataFrame({"other": codes[first:], "j": np.arange(first, len(codes))})
    pairs = own.merge(links, on="own").merge(other, on="other")
    return pairs.sort_values(["i", "j"])[["i", "j"]].to_numpy(np.int64).reshape(-1, 2)


def _class_of(class_names: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Every name that stands for a class -> the class."""
    folded = {name.casefold(): name for name in class_names}
    names = {name: name for name in class_names}
    for alias, name in aliases.items():
        if name.casefold() not in folded:
            raise BadInput(f"{name!r} is no class: choose from {', '.join(class_names)}")
        if alias.casefold() in folded:
            raise BadInput(f"{alias!r} is the name of a class already: it needs no other")
        names[alias] = folded[name.casefold()]
    return names


def _about(
    source: Path, listing: Listing, names: Mapping[str, str], second_label: str | None
) -> list[dict[str, str]]:
    """What the list says of each film, nothing where the source is no list."""
    column = (second_label or "").casefold()
    if listing.rows is None:
        if column:
            raise BadInput(f"{source} is no .csv file, so it has no column {second_label}")
        return [{} for _ in listing.films]
    if column and column not in listing.rows[0]:
        raise BadInput(f"{source} has no column {second_label}")
    folded = {alias.casefold(): name for alias, name in names.items()}
    return [_values(row, folded, column) for row in listing.rows]


def _values(cells: Mapping[str, str], names: Mapping[str, str], second_label: str) -> dict[str, str]:
    """The values of a line that are kept; free text never is, for it may name somebody."""
    view, sex = cells.get("view", "").upper(), cells.get("sex", "").upper()
    band, site = cells.get("age_band", ""), cells.get("source", "")
    values = {
        "view": view if view in VIEWS else "other" if view else "",
        "sex": sex if sex in _SEXES else "",
        "age_band": band if re.fullmatch(_AGE_BAND, band) else "",
        "source": site if re.fullmatch(SOURCE_NAME, site) else "",
        SECOND_LABEL: names.get(cells.get(second_label, "").casefold(), ""),
    }
    return {column: text for column, text in values.items() if text}


def _summary(
    films: Sequence[LabelledFilm],
    rows: Sequence[Mapping[str, str]],
    listing: Listing,
    class_names: Sequence[str],
    withheld: Mapping[str, int],
) -> SetSummary:
    views = pd.Series([row.get("view") or "unknown" for row in rows]).value_counts().sort_index()
    return SetSummary(
        films=len(films),
        patients=len({row["patient"] for row in rows}),
        classes={name: sum(film.label == name for film in films) for name in class_names},
        views={str(view): int(count) for view, count in views.items()},
        second_labels=sum(bool(row.get(SECOND_LABEL)) for row in rows),
        skipped=listing.skipped,
        unmatched=sum(not film.is_named for film in films),
        recognised=listing.recognised,
        withheld=dict(sorted(withheld.items())),
    )
