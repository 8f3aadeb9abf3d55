"""Where the artefacts of the stages lie, and which columns they share."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.settings.project import state_folder

if TYPE_CHECKING:
    from openmed.cache.film_store import FilmStore

DATA = Path("data")
DECISIONS = Path("decisions.csv")
MANIFEST = Path("artifacts/validate/manifest.parquet")
SPLIT = Path("artifacts/split/split.parquet")
MANIFEST_COLUMNS = (
    *("id", "path", "label", "patient", "declared_split", "sha256"),
    *("status", "reason", "perceptual_hash", "embedding"),
)
SPLIT_COLUMNS = ("id", "patient", "label", "split")
CACHE = Path("artifacts/preprocess")
ROWS = Path("artifacts/resample/rows.parquet")
VAULT = Path("weights")


def folder(stage: str, architecture: str | None = None) -> Path:
    """Where a stage writes, relative to the project."""
    return Path("artifacts", stage, architecture or "")


def film_store() -> "FilmStore":
    """The films that this machine has read before, whatever the run; in the state folder."""
    from openmed.cache.film_store import FilmStore

    return FilmStore(state_folder() / "films")
