"""Scores of the champion on the test films of a retraining, taken while those films are at hand.

Hides how films are read, checked against the manifest and put through a model in batches.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput, IntegrityError
from pipeline.registry.decisions import champion
from pipeline.registry.models import load
from pipeline.registry.retraining import films_of
from pipeline.registry.store import MODEL_NAME, connect

if TYPE_CHECKING:
    import pandas as pd

    from openmed.models.base import BaseModel

_BATCH_FILMS = 32


def score_films(model: "BaseModel", data: Path, films: "pd.DataFrame") -> "pd.DataFrame":
    """Scores films with a model's own preprocessing.

    Args:
        model: The model.
        data: The data folder.
        films: Columns id, path, sha256.

    Returns:
        Columns id, sha256 and score, the probability of the model's positive class (0..1).

    Raises:
        IntegrityError: A film is not the one the manifest recorded.
    """
    import numpy as np

    from openmed.data.images import decode_film, resize_film

    scores = []
    for start in range(0, len(films), _BATCH_FILMS):
        batch = []
        for film in films.iloc[start : start + _BATCH_FILMS].itertuples():
            content = (Path(data) / film.path).read_bytes() if (Path(data) / film.path).is_file() else b""
            if hashlib.sha256(content).hexdigest() != film.sha256:
                raise IntegrityError(
                    f"film {film.id} was changed after it was validated: run the pipeline again"
                )
            batch.append(resize_film(decode_film(content, film.id), model.spec.image_size_px))
        scores.append(model.predict(np.stack(batch))[:, model.spec.positive_index])
    return films[["id", "sha256"]].assign(score=np.concatenate(scores) if scores else [])


def score_champion(workspace: Path) -> tuple[dict[str, Any], "pd.DataFrame | None"]:
    """Scores the current champion on the test films of a workspace.

    Returns:
        {version, threshold, positive, problem} and the scores. `version` is None when there is no
        champion; `problem` says why a champion could not be scored, else it is None.
    """
    films = films_of(workspace)
    with connect():
        now = champion()
        about: dict[str, Any] = {"version": now, "threshold": None, "positive": None, "problem": None}
        if now is None:
            return about, None
        try:
            model = load(f"models:/{MODEL_NAME}/{now}")
        except (BadInput, IntegrityError) as error:
            # A damaged champion must not stop the retraining that may replace it.
            return about | {"problem": str(error)}, None
    about |= {"threshold": model.spec.threshold, "positive": model.spec.positive}
    return about, score_films(model, Path(workspace) / "data", films[films["split"] == "test"])
