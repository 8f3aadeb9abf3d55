"""The leakage firewall: what would let a test be known beforehand is stopped, or repaired and recorded.

Functions over tables of films, one row a film, with the columns id, sha256, perceptual_hash, patient,
label, declared_split, and later group and split, as the manifest and `openmed.dataset.splits` name them.
Their rows are numbered 0, 1, 2 .... Films are named by their ids, patients never.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from openmed.dataset.splits import LEAST_VALIDATION_SHARE, LEFT_OUT, families
from openmed.errors import BadInput

_NAMED_FILMS = 5  # in an error's sentence
# Films in an archive have their place in it before that (see openmed.archives, which training needs not).
_VALIDATION_FOLDER = r"films/(?:\d{5,}\.tar/\d+/)?validation/"
Outcome = Literal["clean", "repaired", "recorded"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked for.
        outcome: "clean" when nothing was found, "repaired" when the split was made without it,
            "recorded" when it was found and left as it is.
        found: How often it was found, in the unit that `detail` names.
        detail: The proof in words and counts.
        films: Ids of the films concerned.
    """

    check: str
    outcome: Outcome
    found: int
    detail: str
    films: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """Returns the plain content."""
        return asdict(self)


def copies(films: pd.DataFrame, pairs: np.ndarray, same: np.ndarray) -> Finding:
    """Records exact and near duplicates, and that patients who share one count as one group.

    The pairs are those of `near_duplicates`, and `same` what `same_film` said of each; the films have a
    group.
    """
    candidates, pairs = len(pairs), pairs[same]
    digests, patients = films["sha256"].to_numpy()[pairs], films["patient"].to_numpy()[pairs]
    exact = digests[:, 0] == digests[:, 1]
    crossing = patients[:, 0] != patients[:, 1]
    joined = films[films["patient"].isin(patients[crossing].ravel())]
    detail = (
        f"{len(pairs)} pairs: {exact.sum()} exact, {(~exact).sum()} near and confirmed on the pixels; "
        f"{candidates - len(pairs)} were alike by their hash alone. "
        f"{crossing.sum()} pairs are between patients, {(crossing & exact).sum()} of them exact"
    )
    if crossing.any():
        detail += f"; {joined['patient'].nunique()} patients became {joined['group'].nunique()} groups"
    check, ids = "copies of a film under several patients", _ids(films, pairs[crossing].ravel())
    return _finding(check, "repaired", int(crossing.sum()), detail, ids)


def pairs_across_labels(films: pd.DataFrame, pairs: np.ndarray) -> NDArray[np.int64]:
    """Spells out the near-duplicates of different content and label that `near_duplicates` stands for.

    int64 (n, 2), positions of pairs whose pixels decide; of equal contents one stands for all.
    """
    hashes, labels = films["perceptual_hash"].to_numpy(), films["label"].to_numpy()
    digests = films["sha256"].to_numpy()
    contents = films.loc[np.unique(pairs)].drop_duplicates(["sha256", "label"])
    members = contents.groupby("perceptual_hash").indices
    members = {name: contents.index.to_numpy()[places] for name, places in members.items()}

    def candidates() -> Iterator[tuple[int, int]]:
        for one, other in sorted({(hashes[i], hashes[j]) for i, j in pairs}):
            for i, j in product(members[one], members[other]):
                if labels[i] != labels[j] and digests[i] != digests[j] and (one != other or i < j):
                    yield i, j

    return np.array(list(candidates()), np.int64).reshape(-1, 2)


def label_conflicts(
    films: pd.DataFrame, same_pairs: np.ndarray, max_share: float
) -> tuple[np.ndarray, Finding]:
    """Finds films that are filed under two labels: none of their labels can be trusted.

    `same_pairs` were confirmed to be the same film. Copies of a copy are the same film too, and so are equal
    contents, which need no pair.

    Returns:
        bool, one a film: leave it out; and the finding.

    Raises:
        BadInput: More than `max_share` of all films are such.
    """
    exact = films.groupby("sha256")["label"].transform("nunique") > 1
    content = films.groupby("sha256").ngroup().to_numpy()
    family = families(content[same_pairs], len(films))[content]
    conflict = (films.groupby(family)["label"].transform("nunique") > 1).to_numpy()
    count, ids = int(conflict.sum()), _ids(films, np.flatnonzero(conflict))
    if count > max_share * len(films):
        raise BadInput(
            f"{count} of {len(films)} films are the same film under two labels, more than "
            f"`split.max_conflicting_share` {max_share:g} allows: correct the labels of {_named(ids)}"
        )
    detail = (
        f"{count} of {len(films)} films are the same film under two labels and left out of everything: "
        f"{int(exact.sum())} by equal content, {count - int(exact.sum())} by their pixels"
    )
    return conflict, _finding("one film under two labels", "repaired", count, detail, ids)


def usable_validation(films: pd.DataFrame) -> tuple[pd.Series, Finding]:
    """Gives up a declared validation set of less than 1 % of the films: they become training films.

    Returns the declared split of each film, and the finding.
    """
    declared = films["declared_split"]
    small = declared == "validation"
    if small.sum() >= LEAST_VALIDATION_SHARE * len(films):
        small = small & False
    # The import has repaired what it could; where the films lie still tells what they were meant for.
    merged = films["path"].str.match(_VALIDATION_FOLDER) & (declared != "validation")
    count = int(small.sum() + merged.sum())
    least = f"{LEAST_VALIDATION_SHARE:.0%} of the films"
    detail = (
        f"{small.sum()} films are declared for validation, less than {least}, and {merged.sum()} lie in a "
        "validation folder without being declared, as the import leaves too small a set: they count as "
        "training films, and a validation split was drawn anew"
        if count
        else f"no declared validation set has less than {least}"
    )
    ids = _ids(films, np.flatnonzero(small | merged))
    check = "a declared validation set too small to use"
    return declared.mask(small, "train"), _finding(check, "repaired", count, detail, ids)


def patients_of_several_labels(films: pd.DataFrame) -> Finding:
    """Records patients with films of several labels: clinically possible, and never torn apart."""
    several = films.groupby("patient")["label"].transform("nunique") > 1
    count = films.loc[several, "patient"].nunique()
    patients = films["patient"].nunique()
    detail = f"{count} of {patients} patients have films of several labels, {several.sum()} films"
    ids = _ids(films, np.flatnonzero(several))
    return _finding("one patient under two labels", "recorded", count, detail, ids)


def declared_overlap(films: pd.DataFrame, conflict: np.ndarray) -> Finding:
    """Records the films left out, but for conflicts: their patient, or a copy, is in a declared set."""
    out = np.flatnonzero((films["split"] == LEFT_OUT).to_numpy() & ~conflict)
    detail = (
        f"{len(out)} films are left out: their patient, or a copy, is in a declared validation or test set"
    )
    check = "a patient of a declared set in another split"
    return _finding(check, "repaired", len(out), detail, _ids(films, out))


def verify_patients(films: pd.DataFrame) -> Finding:
    """Proves after the assignment that no patient is in two splits; BadInput where one is."""
    used = films[films["split"] != LEFT_OUT]
    torn = used[used.groupby("patient")["split"].transform("nunique") > 1]
    if len(torn):
        raise BadInput(
            f"{torn['patient'].nunique()} patient(s) are in two splits, with {_named(tuple(torn['id']))}: "
            "check the patients and declared splits of these films"
        )
    detail = f"each of {used['patient'].nunique()} patients is in one split"
    return Finding("a patient in two splits", "clean", 0, detail)


def verify_copies(films: pd.DataFrame, pairs: np.ndarray) -> Finding:
    """Proves after the assignment that films of a confirmed pair are in one split; BadInput where not."""
    used = films.assign(family=families(pairs, len(films)))[films["split"] != LEFT_OUT]
    torn = used[used.groupby("family")["split"].transform("nunique") > 1]
    if len(torn):
        ids = _named(tuple(torn["id"]))
        raise BadInput(f"copies of a film are in two splits, {ids}: check their declared splits")
    detail = f"each of {len(pairs)} pairs is in one split"
    return Finding("a near-duplicate pair in two splits", "clean", 0, detail)


def verify_training_rows(rows: pd.DataFrame, split: pd.DataFrame) -> int:
    """Proves that every training row is a film of the training split; BadInput where not. Counts the rows."""
    of_film = pd.Series(split["split"].to_numpy(), index=split["id"])
    place = rows["id"].map(of_film)
    wrong = {"that the split does not know": place.isna()}
    wrong["outside the training split"] = place.notna() & (place != "train")
    for what, bad in wrong.items():
        if bad.any():
            ids = _named(tuple(rows.loc[bad, "id"].unique()))
            raise BadInput(f"{bad.sum()} training rows are of films {what}, {ids}: run resample again")
    return len(rows)


def _finding(check: str, outcome: Outcome, found: int, detail: str, ids: tuple[str, ...]) -> Finding:
    return Finding(check, outcome if found else "clean", found, detail, ids)


def _ids(films: pd.DataFrame, positions: np.ndarray) -> tuple[str, ...]:
    return tuple(films["id"].to_numpy()[np.unique(positions).astype(np.int64)])


def _named(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _NAMED_FILMS} more" if len(ids) > _NAMED_FILMS else ""
    return f"film {', '.join(ids[:_NAMED_FILMS])}{more}"
