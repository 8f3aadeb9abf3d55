"""Scores of earlier versions on the films that judge a retraining, taken while those films are at hand.

Hides how films are read, checked against the manifest and put through a model in batches.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput, IntegrityError
from openmed.files import read_json, read_table, write_json
from pipeline.ledger import champion, first_champion
from pipeline.registry.models import load
from pipeline.registry.retraining import EXTERNAL_PREDICTIONS, external_films_of, films_of
from pipeline.tracking.store import MODEL_NAME
from pipeline.tracking.versions import Files

if TYPE_CHECKING:
    import pandas as pd

    from openmed.models.base import BaseModel

_BATCH_FILMS = 32


@dataclass(frozen=True)
class Unscored:
    """An earlier version that there is not, or that could not be scored; `problem` says why."""

    version: str | None
    problem: str | None

    def save(self, folder: Path, name: str) -> None:
        """Writes that among the evidence on a candidate."""
        about = {"version": self.version, "threshold": None, "positive": None, "problem": self.problem}
        write_json(folder / f"{name}.json", about)


@dataclass(frozen=True)
class Scored:
    """An earlier version on the films that judge a retraining.

    Attributes:
        thresholds: Finding -> operating point, 0..1; the first finding first.
        test: Scores of the test films, see `film_scores`.
        external: Those of the external sets, with the column set; None where a version of before has none.
    """

    version: str
    thresholds: dict[str, float]
    test: "pd.DataFrame"
    external: "pd.DataFrame | None"

    @classmethod
    def stored(cls, files: Files, name: str) -> "Scored | None":
        """Reads what was scored when a version was registered; None where that could not be done."""
        file = files.find(f"{name}.json")
        about: dict[str, Any] = read_json(file) if file else {"version": None, "problem": None}
        if about["version"] is None or about["problem"] is not None:
            return None
        test = read_table(files.get(f"{name}_predictions.parquet"))
        external = files.find(f"{name}_{EXTERNAL_PREDICTIONS}")
        # Versions of before know one finding alone.
        thresholds = {about["positive"]: about["threshold"], **about.get("further_thresholds", {})}
        return cls(about["version"], thresholds, test, None if external is None else read_table(external))

    def save(self, folder: Path, name: str) -> None:
        """Writes it among the evidence on a candidate."""
        (positive, threshold), *further = self.thresholds.items()
        about = {"version": self.version, "threshold": threshold, "positive": positive, "problem": None}
        write_json(folder / f"{name}.json", about | {"further_thresholds": dict(further)})
        self.test.reset_index(drop=True).to_parquet(folder / f"{name}_predictions.parquet", index=False)
        if self.external is not None:
            external = self.external.reset_index(drop=True)
            external.to_parquet(folder / f"{name}_{EXTERNAL_PREDICTIONS}", index=False)

    def of_finding(self, finding: str) -> "Scored":
        """Returns the same with the scores of one of its findings."""
        if finding == next(iter(self.thresholds)):
            return self
        test, external = (
            None if table is None else table.assign(score=table[f"probability_{finding}"])
            for table in (self.test, self.external)
        )
        return replace(self, thresholds={finding: self.thresholds[finding]}, test=test, external=external)


def film_scores(model: "BaseModel", data: Path, films: "pd.DataFrame") -> "pd.DataFrame":
    """Scores films (id, path below `data`, sha256) with a model's own preprocessing.

    Returns:
        Columns id, sha256, score, the probability of the model's positive class (0..1), and
        probability_<CLASS> of each further finding.

    Raises:
        IntegrityError: A film is not the one the manifest recorded.
    """
    import numpy as np

    from openmed.archives import film_bytes
    from openmed.films.images import decode_film, resize_film

    scores = []
    for start in range(0, len(films), _BATCH_FILMS):
        batch = []
        for film in films.iloc[start : start + _BATCH_FILMS].itertuples():
            try:
                content = film_bytes(data, film.path, film.sha256)
            except IntegrityError:
                # Its path is not told: folders of before name films as their source did.
                raise IntegrityError(
                    f"film {film.id} was changed after it was validated: run the pipeline again"
                ) from None
            batch.append(resize_film(decode_film(content, film.id), model.spec.image_size_px))
        scores.append(model.predict(np.stack(batch)))
    spec = model.spec
    probabilities = np.concatenate([np.zeros((0, len(spec.class_names)), np.float32), *scores])
    columns = {"score": probabilities[:, spec.positive_index]}
    for name in spec.further_thresholds:
        columns[f"probability_{name}"] = probabilities[:, spec.class_names.index(name)]
    return films[["id", "sha256"]].assign(**columns)


def score_earlier(workspace: Path, version: str | None) -> Scored | Unscored:
    """Scores an earlier version, if there is one, on the test films and external sets of a workspace."""
    films, away = films_of(workspace), external_films_of(workspace)
    if version is None:
        return Unscored(None, None)
    try:
        model = load(f"models:/{MODEL_NAME}/{version}")
    except (BadInput, IntegrityError) as error:
        # A damaged version must not stop the retraining that may replace it.
        return Unscored(version, str(error))
    test = film_scores(model, Path(workspace) / "data", films[films["split"] == "test"])
    external = film_scores(model, Path(workspace) / "external", away).assign(set=away["set"])
    spec = model.spec
    return Scored(version, {spec.positive: spec.operating_point, **spec.further_thresholds}, test, external)


def earlier() -> dict[str, str | None]:
    """Returns the versions that a new one is compared with: `champion`, and `first` where it is another one.

    The version that was approved first is one of them because every next champion may be a little worse than
    the last: small losses within the margin would add up unseen.
    """
    now, first = champion(), first_champion()
    return {"champion": now, "first": None if first == now else first}
