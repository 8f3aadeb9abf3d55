"""Films of one data folder move behind those of another."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from openmed.archives import FOLDER, number_behind, pack, place_of, read_stored
from openmed.dataset.manifest import ABOUT_COLUMNS, FILMS_COLUMNS, FILMS_FILE, read_films
from openmed.errors import BadInput
from openmed.files import sha256_bytes, sync
from openmed.intake.importing import write_list


def append_films(new: Path, data: Path, class_names: Sequence[str]) -> pd.DataFrame:
    """Puts the films of one data folder into archives of another one, behind those that are there.

    Films whose content is there already are passed over, so that the same call can be made again after a
    kill. What was there stays as it is, archives and places in films.csv. Both folders are on one disk.

    Returns:
        The rows that were added, which have their places in `data`.

    Raises:
        BadInput: A film is there already under another label.
        IntegrityError: An archive of either is damaged.
    """
    added, present = (_rows(folder, class_names) for folder in (new, data))
    unhashed = present["sha256"] == ""
    present.loc[unhashed, "sha256"] = [
        sha256_bytes(read_stored(f"{data}/{path}")) for path in present.loc[unhashed, "path"]
    ]
    label_of = dict(zip(present["sha256"], present["label"], strict=True))
    known = added["sha256"].map(label_of).fillna("")
    conflicting = (known != "") & (known != added["label"])
    if conflicting.any():
        first = present.loc[present["sha256"] == added.loc[conflicting, "sha256"].iloc[0], "path"].iloc[0]
        raise BadInput(
            f"{int(conflicting.sum())} of the new films are in the data already under another label, "
            f"the first as {data / first}: correct the label on one side"
        )
    return _appended(new, added[known == ""].reset_index(drop=True), data, present)


def _appended(new: Path, added: pd.DataFrame, data: Path, present: pd.DataFrame) -> pd.DataFrame:
    """Writes everything beside the data and moves it there at last: a kill leaves no part of a file."""
    ready = new / "ready"
    films = ((place_of(path).name, read_stored(f"{new}/{path}")) for path in added["path"])
    added = added.assign(path=list(pack(ready, films, number_behind(present["path"]))))
    write_list(ready / FILMS_FILE, pd.concat([present, added]).to_dict("records"))
    (data / FOLDER).mkdir(exist_ok=True)
    listed = {place_of(path).file for path in present["path"]}
    for archive in (data / FOLDER).glob("*.tar"):
        if archive.relative_to(data).as_posix() not in listed:
            archive.unlink()  # moved here by a call that was killed before it had listed them
    for archive in sorted((ready / FOLDER).iterdir()):
        archive.replace(data / FOLDER / archive.name)
    (ready / FILMS_FILE).replace(data / FILMS_FILE)
    sync(data)
    return added


def _rows(data: Path, class_names: Sequence[str]) -> pd.DataFrame:
    """The rows of films.csv as text, after a check; every column that a list may have is there."""
    read_films(data, class_names)
    films = pd.read_csv(data / FILMS_FILE, dtype=str, keep_default_na=False)
    return films.reindex(columns=[*FILMS_COLUMNS, *ABOUT_COLUMNS], fill_value="")
