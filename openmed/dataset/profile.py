"""The profile of a data version: what is kept of its films to compare a later version with."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import pandas as pd

from openmed.dataset.splits import families

COLUMNS = ("sha256", "patient", "label", "mean", "std", "width", "height", "bits", "embedding")
OPTIONAL_COLUMNS = ("manufacturer", "view", "sex", "age_band", "source")
AGE_BANDS = {0: "below 2", 2: "2 to 17", 18: "18 to 39", 40: "40 to 64", 65: "65 and older"}
"""First year of a band -> its name: infants, minors and adults' chests look different."""


def profile_films(manifest: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns what is compared of a data version: one row an accepted film, without path or file name.

    Those of the columns `COLUMNS` and `OPTIONAL_COLUMNS` that the manifest has; labels become class names.
    """
    films = manifest[manifest["status"] == "accepted"].reset_index(drop=True)
    if "age_years" in films:
        known = films["age_years"].map(age_band, na_action="ignore")
        films = films.assign(age_band=known.astype(object).where(known.notna(), ""))
    columns = [name for name in (*COLUMNS, *OPTIONAL_COLUMNS) if name in films.columns]
    return films[columns].assign(label=films["label"].map(dict(enumerate(class_names))))


def age_band(years: int) -> str:
    """Returns the band of an age in whole years (0 and up)."""
    return list(AGE_BANDS.values())[bisect_right(list(AGE_BANDS), years) - 1]


def link_patients(reference: pd.DataFrame, new: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gives both tables one numbering of patients.

    The names of the two need not agree: patients who share a film (the same SHA-256) are the same. They are
    numbered by the content of their films: neither names nor the order of the rows change what a seed draws.
    In the copies that are returned `patient` is a whole number.
    """
    owners, numbers = zip(*(pd.factorize(table["patient"])[::-1] for table in (reference, new)), strict=True)
    first, second = numbers[0], numbers[1] + len(owners[0])
    films = pd.DataFrame({"sha256": [*reference["sha256"], *new["sha256"]], "node": [*first, *second]})
    films["anchor"] = films.groupby("sha256")["node"].transform("first")
    edges = films[["node", "anchor"]].to_numpy()
    films["component"] = families(edges, len(owners[0]) + len(owners[1]))[films["node"]]
    lowest = films.groupby("component")["sha256"].transform("min").to_numpy(str)
    patient = np.unique(lowest, return_inverse=True)[1].astype(np.int64)
    return reference.assign(patient=patient[: len(reference)]), new.assign(patient=patient[len(reference) :])


def added_films(reference: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Returns the films of the new version whose content is not in the reference."""
    return new[~new["sha256"].isin(reference["sha256"])]
