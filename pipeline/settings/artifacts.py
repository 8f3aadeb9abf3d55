"""Where the artefacts of the stages lie, and which columns they share."""

from pathlib import Path

from pipeline.settings.project import state_folder

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


def film_store_folder(home: Path | None = None) -> Path:
    """Where this machine keeps what it learnt from films, whatever the run; see `FilmStore`."""
    return state_folder(home) / "films"
