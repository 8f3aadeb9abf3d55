"""Scores of earlier versions on the films that judge a retraining, taken while those films are at hand.

Hides how films are read, checked against the manifest and put through a model in batches.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from openmed.errors import BadInput, IntegrityError
from pipeline.ledger import champion, first_champion
from pipeline.registry.models import load
from pipeline.registry.retraining import external_films_of, films_of
from pipeline.tracking.store import MODEL_NAME, connect

if TYPE_CHECKING:
    import pandas as pd

    from openmed.models.base import BaseModel

_BATCH_FILMS = 32
Scored: TypeAlias = "tuple[dict[str, Any], pd.DataFrame | None, pd.DataFrame | None]"


def score_films(model: "BaseModel", data: Path, films: "pd.DataFrame") -> "pd.DataFrame":
    """Scores films with a model's own preprocessing.

    Args:
        model: The model.
        data: The data folder.
        films: Columns id, path, sha256.

    Returns:
        Columns id, sha256, score, the probability of the model's positive class (0..1), and
        probability_<CLASS> of each further finding.

    Raises:
        IntegrityError: A film is not the one the manifest recorded.
    """
    import numpy as np

    from openmed.films.images import decode_film, resize_film

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
        scores.append(model.predict(np.stack(batch)))
    spec = model.spec
    probabilities = np.concatenate([np.zeros((0, len(spec.class_names)), np.float32), *scores])
    columns = {"score": probabilities[:, spec.positive_index]}
    for name in spec.further_thresholds:
        columns[f"probability_{name}"] = probabilities[:, spec.class_names.index(name)]
    return films[["id", "sha256"]].assign(**columns)


def score_earlier(workspace: Path, versions: Mapping[str, str | None]) -> dict[str, Scored]:
    """Scores earlier versions on the test films and the external sets of a workspace.

    Args:
        workspace: A checkout in which the pipeline has run.
        versions: What a version stands for, see `earlier` -> version, None for none.

    Returns:
        The same names -> {version, threshold, positive, further_thresholds, problem}, the scores of the test
        films, and those of the external sets with the column set. `problem` says why a version could not be
        scored, or is None.
    """
    return {name: _score_version(workspace, version) for name, version in versions.items()}


def earlier() -> dict[str, str | None]:
    """Returns the versions that a new one is compared with: `champion`, and `first` where it is another one.

    The version that was approved first is one of them because every next champion may be a little worse than
    the last: small losses within the margin would add up unseen.
    """
    now, first = champion(), first_champion()
    return {"champion": now, "first": None if first == now else first}


def _score_version(workspace: Path, version: str | None) -> Scored:
    films, away = films_of(workspace), external_films_of(workspace)
    with connect():
        about: dict[str, Any] = {"version": version, "threshold": None, "positive": None, "problem": None}
        if version is None:
            return about, None, None
        try:
            model = load(f"models:/{MODEL_NAME}/{version}")
        except (BadInput, IntegrityError) as error:
            # A damaged version must not stop the retraining that may replace it.
            return about | {"problem": str(error)}, None, None
    about |= {name: getattr(model.spec, name) for name in ("threshold", "positive", "further_thresholds")}
    test = score_films(model, Path(workspace) / "data", films[films["split"] == "test"])
    elsewhere = score_films(model, Path(workspace) / "external", away)
    return about, test, elsewhere.assign(set=away["set"])
