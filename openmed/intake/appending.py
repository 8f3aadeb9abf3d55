"""Films of one data folder move behind those of another."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from openmed.dataset.manifest import ABOUT_COLUMNS, FILMS_COLUMNS, FILMS_FILE, read_films
from openmed.errors import BadInput
from openmed.files import sha256_file
from openmed.intake.importing import write_list


def append_films(new: Path, data: Path, class_names: Sequence[str]) -> pd.DataFrame:
    """Moves the films of one data folder into another one, behind those that are there.

    Films whose content is there already are passed over, so that the same call can be made again after a
    kill. The films that were there keep their place in films.csv. The folder `new`, on the same disk, is used
    up. Returns the rows that were added; BadInput where a film is there already under another label.
    """
    added, present = (_rows(folder, class_names) for folder in (new, data))
    unhashed = present["sha256"] == ""
    present.loc[unhashed, "sha256"] = [sha256_file(data / path) for path in present.loc[unhashed, "path"]]
    label_of = dict(zip(present["sha256"], present["label"], strict=True))
    known = added["sha256"].map(label_of).fillna("")
    conflicting = (known != "") & (known != added["label"])
    if conflicting.any():
        first = present.loc[present["sha256"] == added.loc[conflicting, "sha256"].iloc[0], "path"].iloc[0]
        raise BadInput(
            f"{int(conflicting.sum())} of the new films are in the data already under another label, "
            f"the first as {data / first}: correct the label on one side"
        )
    added = added[known == ""]
    for path in added["path"]:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (new / path).replace(data / path)
    write_list(data / FILMS_FILE, pd.concat([present, added]).to_dict("records"))
    return added.reset_index(drop=True)


def _rows(data: Path, class_names: Sequence[str]) -> pd.DataFrame:
    """The rows of films.csv as text, after a check; every column that a list may have is there."""
    read_films(data, class_names)
    films = pd.read_csv(data / FILMS_FILE, dtype=str, keep_default_na=False)
    return films.reindex(columns=[*FILMS_COLUMNS, *ABOUT_COLUMNS], fill_value="")
