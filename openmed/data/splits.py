"""Patient-grouped, stratified, reproducible splits."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from openmed.errors import BadInput

SPLITS = ("train", "validation", "calibration", "test")
LEFT_OUT = "left_out"
LEAST_VALIDATION_SHARE = 0.01
"""A declared validation set with a smaller share of the films is too small to validate on."""


def group_patients(patients: pd.Series, pairs: np.ndarray) -> pd.Series:
    """Joins patients who share a near-duplicate film, so that the film cannot cross a split.

    Args:
        patients: Patient of each film.
        pairs: What `duplicates.near_duplicates` returned for the same films.

    Returns:
        A group name a film: the first (alphabetically) of the joined patients.
    """
    names = patients.to_numpy()
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for i, j in pairs:
        a, b = sorted((root(names[i]), root(names[j])))
        parent[b] = a
    return pd.Series([root(name) for name in names], index=patients.index, name="group")


def assign(films: pd.DataFrame, shares: Mapping[str, float], seed: int) -> pd.Series:
    """Assigns films to splits by group, stratified by label.

    Groups are ordered by a hash of their name and cut at the shares. Adding patients therefore
    moves few of the old ones, and neither the order of the rows nor the platform matters.

    Declared test and validation sets are used as they are, and the other films are shared out among
    the remaining splits. Where a group has films in a declared set, its other films are left out of
    everything; a group in both declared sets is kept in the test set only.

    Args:
        films: Columns group, label, declared_split.
        shares: Share of each of train, validation, calibration, test; they add up to 1.
        seed: Changes the assignment.

    Returns:
        One of `SPLITS` or "left_out" a film.

    Raises:
        BadInput: A split ends up without films of some class.
    """
    split = pd.Series(LEFT_OUT, index=films.index, name="split")
    rest, free = films, dict(shares)
    for name in ("test", "validation"):
        declared = rest[rest["declared_split"] == name]
        if len(declared):
            split.loc[declared.index] = name
            rest = rest[~rest["group"].isin(declared["group"])]
            free.pop(name, None)
    total = sum(free.values())
    # A group with films of several classes counts for the rarest of them, so that no class is starved.
    rarity = films["label"].map(films["label"].value_counts())
    ranked = rest.assign(rarity=rarity).sort_values(["rarity", "label"])
    stratum = ranked.groupby("group")["label"].first()
    sizes = rest.groupby("group").size()
    chosen: dict[str, str] = {}
    for _, members in sorted(stratum.groupby(stratum)):
        ordered = sorted(members.index, key=lambda name: _key(name, seed))
        middle = np.cumsum(sizes[ordered]) - sizes[ordered] / 2
        edges = np.cumsum([share / total for share in free.values()]) * sizes[ordered].sum()
        names = list(free)
        places = np.searchsorted(edges[:-1], middle.to_numpy(), side="right")
        chosen |= {group: names[place] for group, place in zip(ordered, places, strict=True)}
    split.loc[rest.index] = rest["group"].map(chosen)
    _check(films, split)
    return split


def _key(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _check(films: pd.DataFrame, split: pd.Series) -> None:
    counts = pd.crosstab(split, films["label"])
    for name in SPLITS:
        for label in sorted(films["label"].unique()):
            if name not in counts.index or counts.at[name, label] == 0:
                raise BadInput(
                    f"the {name} split has no film with label {label}: add films or change `split.shares`"
                )
