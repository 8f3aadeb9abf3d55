"""The films that a retraining stood on, kept so that a later version of the data can be compared with them.

Hides where the profile lies, how it is found from the champion, and how a changed or lost one is told from a
store that does not answer.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.errors import IntegrityError, ResourceError
from openmed.files import sha256_file
from pipeline.ledger import champion, recorded_champion
from pipeline.registry.retraining import Retraining, read_table
from pipeline.tracking.store import connect
from pipeline.tracking.versions import find

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

PROFILE_FILE = "data_profile.parquet"
_DIGEST_TAG = "data_profile_sha256"


def stage_profile(done: Retraining, folder: Path) -> list[str]:
    """Writes the profile of the data version; returns its name when it must be left out instead."""
    from openmed.dataset.profile import OPTIONAL_COLUMNS, profile_films

    manifest = read_table(done.workspace / "artifacts" / "validate" / "manifest.parquet")
    films = profile_films(manifest, done.params["task"]["classes"])
    texts = {str(value) for name in OPTIONAL_COLUMNS if name in films for value in films[name].unique()}
    if done.names_a_patient("\n".join(sorted(texts))):
        return [PROFILE_FILE]
    numbers = done.pseudonyms()
    # Patients whose films are all in no split have no number yet.
    others = films[~films["patient"].isin(numbers)].groupby("patient")["sha256"].min().sort_values()
    numbers |= {patient: f"x{number:06d}" for number, patient in enumerate(others.index, start=1)}
    films.assign(patient=films["patient"].map(numbers)).to_parquet(folder / PROFILE_FILE, index=False)
    return []


def profile_digest(folder: Path) -> dict[str, str]:
    """Returns the tag that fixes the profile in a folder; none when there is no profile."""
    path = folder / PROFILE_FILE
    return {_DIGEST_TAG: sha256_file(path)} if path.is_file() else {}


def champion_profile(*, moved_too: bool = False) -> "tuple[str | None, pd.DataFrame | None]":
    """Returns the champion and the films it learnt from and was judged on; see `openmed.dataset.profile`.

    Without a champion both are None, without stored films these.

    Args:
        moved_too: Whether the champion is the record's, although its alias may have been moved.

    Raises:
        IntegrityError: The stored films were changed or lost.
    """
    with connect():
        version = recorded_champion()[0] if moved_too else champion()
        return version, None if version is None else profile_of(version)


def profile_of(version: str) -> "pd.DataFrame | None":
    """Returns the films that a version learnt from and was judged on; None where they were not stored.

    Raises:
        IntegrityError: The stored films were changed or lost.
    """
    with connect() as client:
        parent = client.get_run(find(client, version).run_id).data.tags["mlflow.parentRunId"]
        expected = client.get_run(parent).data.tags.get(_DIGEST_TAG)
        return None if expected is None else _fetch(client, parent, expected, version)


def _fetch(client: "MlflowClient", run_id: str, expected: str, version: str) -> "pd.DataFrame":
    remedy = f"{PROFILE_FILE} of the retraining of version {version}"
    try:
        if PROFILE_FILE not in {file.path for file in client.list_artifacts(run_id)}:
            raise IntegrityError(f"{remedy} is lost: restore it, or promote a newly trained version")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(client.download_artifacts(run_id, PROFILE_FILE, folder))
            if sha256_file(path) != expected:
                raise IntegrityError(f"{remedy} was changed: restore it, or promote a newly trained version")
            return read_table(path)
    except OSError as error:
        kind = type(error).__name__
        raise ResourceError(f"{remedy} cannot be fetched ({kind}): check the artifact store") from error
