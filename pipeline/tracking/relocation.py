"""A state folder that was moved or copied: its store is told where its files are now.

MLflow writes absolute addresses into its tables. Those of a copy would lead into the original.
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.request import url2pathname

from openmed.errors import ResourceError

STORE_FILE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_LOCK_WAIT_S = 120
_ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def relocate(home: Path, experiment: str) -> None:
    """Rewrites, in one transaction, the addresses in the store of a state folder that is elsewhere now.

    The address of the experiment says where the folder was. Of tables that came without their files those
    are read where they were, and none is added; see `check_own_files`.

    Raises:
        ResourceError: The files of the store are nowhere.
        sqlite3.Error: It cannot be read or written.
    """
    file, here = home / STORE_FILE, home / ARTIFACTS
    if not file.is_file():
        return
    with closing(sqlite3.connect(file, timeout=_LOCK_WAIT_S)) as store, store:
        if (before := _elsewhere(store, experiment, here)) is None:
            return
        if not here.is_dir() and store.execute("SELECT count(*) FROM runs").fetchone()[0]:
            if local_path(before).is_dir():
                return
            raise _without_files(file, before, here)
        _rewrite(store, before, here.as_uri())
    print(
        f"openmed: the state folder was moved or copied to {home}; its registry uses the files there",
        file=sys.stderr,
    )


def check_own_files(home: Path, experiment: str) -> None:
    """Refuses, by ResourceError, to add files to a store whose files lie elsewhere, in the original's."""
    file, here = home / STORE_FILE, home / ARTIFACTS
    with closing(sqlite3.connect(file, timeout=_LOCK_WAIT_S)) as store:
        before = _elsewhere(store, experiment, here)
    if before is not None:
        raise _without_files(file, before, here)


def _without_files(file: Path, before: str, here: Path) -> ResourceError:
    return ResourceError(f"{file} came without its files, which were at {before}: put that folder at {here}")


def local_path(address: str) -> Path:
    """Returns where artifacts of this machine lie."""
    return Path(url2pathname(address.removeprefix("file://")))


def _elsewhere(store: sqlite3.Connection, experiment: str, here: Path) -> str | None:
    """Where the files were if not `here`; None in an empty store and in one without a folder of its own."""
    if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return None
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    row = store.execute(query, (experiment,)).fetchone()
    if not (row and row[0].startswith("file:") and row[0].endswith(f"/{ARTIFACTS}")):
        return None
    recorded = local_path(row[0])
    # A link or a mount gives the same folder another name.
    same = recorded.is_dir() and here.is_dir() and recorded.samefile(here)
    return None if same or row[0] == here.as_uri() else row[0]


def _rewrite(store: sqlite3.Connection, before: str, now: str) -> None:
    for table, columns in _ADDRESSES.items():
        known = {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
        for column in known.intersection(columns):
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
            )
