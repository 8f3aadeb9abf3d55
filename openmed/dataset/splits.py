"""Patient-grouped, stratified, reproducible splits."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from openmed.errors import BadInput
from openmed.files import sha256_bytes

SPLITS = ("train", "validation", "calibration", "test")
LEFT_OUT = "left_out"
LEAST_VALIDATION_SHARE = 0.01
"""A declared validation set with a smaller share of the films is too small to validate on."""
_GROUPS_AT_CUT = 40  # on either side
_LEAST_GAIN = 0.005  # of chi-square


def group_patients(patients: pd.Series, pairs: np.ndarray) -> pd.Series:
    """Joins patients who share a near-duplicate film, so that the film cannot cross a split.

    Of the patient of each film and pairs of films: a group name a film, the first (alphabetically) of the
    joined patients.
    """
    codes, names = pd.factorize(patients, sort=True)
    family = families(codes[pairs], len(names))
    first = names[np.unique(family, return_index=True)[1]]
    return pd.Series(first[family[codes]].tolist(), index=patients.index, name="group")


def families(pairs: NDArray[np.intp], count: int) -> NDArray[np.int32]:
    """Numbers the connected components of 0 .. count - 1 that the pairs (n, 2) make."""
    links = coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def assign(
    films: pd.DataFrame, shares: Mapping[str, float], seed: int, class_names: Sequence[str] | None = None
) -> pd.Series:
    """Assigns films to splits by group, stratified by label.

    Groups are ordered by a hash of their name and cut at the shares; then groups next to a cut change
    splits as long as that brings the counts of the classes nearer to the shares. Adding patients therefore
    moves few of the old ones, and neither the order of the rows nor the platform matters.

    Declared test and validation sets are used as they are, and the other films are shared out among
    the remaining splits. Where a group has films in a declared set, its other films are left out of
    everything; a group in both declared sets is kept in the test set only.

    Of films with the columns group, label and declared_split. The shares are those of train, validation,
    calibration and test and add up to 1. Every class named must then be in every split.

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
    counts = pd.crosstab(rest["group"], rest["label"]).sort_index()
    # A group with films of several classes counts for the rarest of them, so that no class is starved.
    by_rarity = films["label"].value_counts().sort_index().sort_values(kind="stable").index
    rarest = (counts.reindex(columns=by_rarity, fill_value=0).to_numpy() > 0).argmax(axis=1)
    order = np.argsort([sha256_bytes(f"{seed}:{name}".encode()) for name in counts.index])
    names, parts = list(free), np.array(list(free.values())) / sum(free.values())
    split_of, at_cut = _cut(counts.to_numpy(), rarest, order, parts)
    split_of = _balance(counts.to_numpy(), split_of, at_cut, parts)
    chosen = {group: names[k] for group, k in zip(counts.index, split_of, strict=True)}
    split.loc[rest.index] = rest["group"].map(chosen)
    _check(films, split, class_names)
    return split


def _cut(
    counts: np.ndarray, stratum: np.ndarray, order: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts each stratum at the shares of its films.

    Of films, int (groups, classes), the stratum of each group, the groups in order, and shares (splits,):
    the split of each group, and the groups next to a cut, the nearest first.
    """
    split_of = np.zeros(len(counts), np.int64)
    groups, distances = [np.zeros(0, np.int64)], [np.zeros(0)]
    for number in np.unique(stratum):
        members = order[stratum[order] == number]
        sizes = counts[members].sum(axis=1)
        edges = np.cumsum(shares)[:-1] * sizes.sum()
        split_of[members] = np.searchsorted(edges, np.cumsum(sizes) - sizes / 2, side="right")
        cuts = np.searchsorted(split_of[members], np.arange(1, len(shares)))
        distance = np.abs(np.arange(len(members))[:, None] + 0.5 - cuts).min(axis=1, initial=np.inf)
        near = distance < _GROUPS_AT_CUT
        groups.append(members[near])
        distances.append(distance[near])
    return split_of, np.concatenate(groups)[np.argsort(np.concatenate(distances), kind="stable")]


def _balance(counts: np.ndarray, split_of: np.ndarray, movable: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Moves one group after the other to where it lowers chi-square most, each once.

    Chi-square is the sum over splits and classes of (films - expected)^2 / expected (Pearson).

    Of films, int (groups, classes), the split of each group, those that may move, and shares (splits,): the
    new split of each group.
    """
    split_of, films, steps = split_of.copy(), counts[movable].astype(float), np.arange(len(movable))
    expected = np.outer(shares, counts.sum(axis=0))
    excess = -expected
    np.add.at(excess, split_of, counts)
    weight, free = 1 / expected, np.ones(len(movable), bool)
    while free.any():
        here = split_of[movable]
        change = ((films[:, None] + 2 * excess) * films[:, None] * weight).sum(axis=2)
        change += ((films - 2 * excess[here]) * films * weight[here]).sum(axis=1)[:, None]
        change[steps, here] = change[~free] = 0
        step, to = np.unravel_index(np.argmin(change.round(9)), change.shape)
        if change[step, to] > -_LEAST_GAIN:
            break
        excess[here[step]] -= films[step]
        excess[to] += films[step]
        split_of[movable[step]], free[step] = to, False
    return split_of


def _check(films: pd.DataFrame, split: pd.Series, class_names: Sequence[str] | None) -> None:
    counts = pd.crosstab(split, films["label"])
    labels = sorted(films["label"].unique()) if class_names is None else range(len(class_names))
    for name in SPLITS:
        for label in labels:
            if name not in counts.index or label not in counts or counts.at[name, label] == 0:
                of_class = f"with label {label}" if class_names is None else f"of class {class_names[label]}"
                raise BadInput(
                    f"the {name} split has no film {of_class}, of which there are "
                    f"{int((films['label'] == label).sum())} in all: add films or change `split.shares`"
                )
