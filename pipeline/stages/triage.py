"""Ranks films that a person should look at: bad films and likely label errors, on one sheet."""

import cv2
import numpy as np
import pandas as pd

from openmed.archives import film_bytes
from openmed.cache.film_cache import FilmCache
from openmed.dataset.decisions import COLUMNS, read_decisions
from openmed.dataset.label_errors import cross_fitted_probabilities, label_errors, pixel_features
from openmed.explain.overlay import encode_jpeg, fitted
from openmed.files import atomic_path, read_table, write_json, write_text
from openmed.films.images import decode_film
from openmed.measurement.quality import REASONS, suspicion
from pipeline.report.render import picture, render
from pipeline.settings.artifacts import CACHE, DATA, DECISIONS, MANIFEST, MANIFEST_COLUMNS, folder
from pipeline.settings.params import Params

_THUMBNAIL_PX, _JPEG_QUALITY = 144, 78
_DIGITS, _LIMIT = 4, 0.5
LABEL = "label"
MEANINGS = {LABEL: "label may be wrong"} | REASONS
"""Every score of the sheet with what a high one says."""


def run(params: Params) -> None:
    """Reads what earlier stages measured and predicted; writes the ranking and the sheet."""
    manifest = read_table(MANIFEST, needed=MANIFEST_COLUMNS)
    films = manifest[manifest["status"] == "accepted"].reset_index(drop=True)
    errors = _label_errors(films, params)
    ranking = _rank(films, errors, params.task.classes)
    target = folder("triage")
    with atomic_path(target / "ranking.csv") as temporary:
        ranking.to_csv(temporary, index=False)
    summary = _summary(films, ranking, errors)
    write_json(target / "summary.json", summary)
    write_text(target / "sheet.html", _sheet(ranking, films, summary, params))
    print(
        f"triage: {summary['ranked']} films ranked, {summary['suspicious']} suspicious, of these "
        f"{summary['reasons'][LABEL]} by their label; see artifacts/triage/sheet.html"
    )


def _label_errors(films: pd.DataFrame, params: Params) -> pd.DataFrame | None:
    """Judges all labels, the reviewed ones too: they teach the judge."""
    classes, seed = params.task.classes, params.run.seed
    size = min(params.preprocess.image_size_px[name] for name in params.architectures)
    cache = FilmCache(CACHE, size)
    features = pixel_features(cache, cache.rows(films["id"]), seed)
    labels = films["label"].to_numpy()
    pixels = cross_fitted_probabilities(features, labels, films["patient"].to_numpy(), len(classes), seed)
    if pixels is None:
        return None
    networks = _network_probabilities(films["id"], params)
    # The networks have learned the training films by heart; only what they never saw counts.
    errors = label_errors(labels, np.where(np.isnan(networks), pixels, (pixels + networks) / 2))
    # Rounded before anything is decided or sorted: the last bits differ between machines.
    return errors.round(_DIGITS)


def _network_probabilities(ids: pd.Series, params: Params) -> np.ndarray:
    """Mean over the networks for films held out of their training, NaN for the others."""
    columns = [f"probability_{name}" for name in params.task.classes]
    parts = [
        read_table(folder("evaluate", name) / "predictions.parquet", columns=["id", *columns])
        for name in params.architectures
    ]
    return pd.concat(parts).groupby("id").mean().reindex(ids).to_numpy()


def _rank(films: pd.DataFrame, errors: pd.DataFrame | None, classes: tuple[str, ...]) -> pd.DataFrame:
    """One row a film that nobody decided on yet, the most suspicious first."""
    scores = films[[f"quality_{name}" for name in REASONS]].set_axis(list(REASONS), axis=1)
    table = films[["id", "sha256", "label"]].assign(suggested_label="")
    table["label"] = [classes[label] for label in films["label"]]
    if errors is not None:
        scores[LABEL] = errors["score"]
        wrong = errors["score"] > _LIMIT
        table.loc[wrong, "suggested_label"] = [classes[label] for label in errors.loc[wrong, "suggested"]]
    scores = scores.round(_DIGITS)
    table["score"] = scores.max(axis=1)
    table["reasons"] = ["; ".join(_reasons(row)) for row in scores.to_dict("records")]
    table = pd.concat([table, scores.add_prefix("score_")], axis=1)[films["decision"] == ""]
    table = table.sort_values(["score", "id"], ascending=[False, True], ignore_index=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table


def _reasons(scores: dict[str, float]) -> list[str]:
    """Names of the scores over one half, the label's first."""
    label = [LABEL] if scores.get(LABEL, 0) > _LIMIT else []
    worst, names = suspicion(scores)
    return label + (names if worst > _LIMIT else [])


def _summary(films: pd.DataFrame, ranking: pd.DataFrame, errors: pd.DataFrame | None) -> dict:
    reasons = ranking["reasons"].str.split("; ").explode()
    return {
        "ranked": len(ranking),
        "decided": len(films) - len(ranking),
        "suspicious": int((ranking["score"] > _LIMIT).sum()),
        "reasons": {name: int((reasons == name).sum()) for name in (*REASONS, LABEL)},
        "estimated_label_errors": None if errors is None else int((errors["score"] > _LIMIT).sum()),
    }


def _sheet(ranking: pd.DataFrame, films: pd.DataFrame, summary: dict, params: Params) -> str:
    paths = films.set_index("id")["path"]
    classes = params.task.classes
    cards = []
    for row in ranking.head(params.triage.shown_films).to_dict("records"):
        scores = {name: row.get(f"score_{name}") for name in MEANINGS}
        cards.append(
            {key: row[key] for key in ("rank", "id", "sha256", "score", "label", "suggested_label")}
            | {"picture": picture(_thumbnail(paths[row["id"]], row["sha256"]), "jpeg")}
            | {"scores": {name: score for name, score in scores.items() if score is not None}}
            | {"reasons": [name for name in row["reasons"].split("; ") if name]}
            | {"others": sorted(set(classes) - {row["label"]}, key=lambda c: c != row["suggested_label"])}
        )
    decisions = read_decisions(DECISIONS, classes)[list(COLUMNS)].to_numpy().tolist()
    return render(
        "sheet.html",
        cards=cards,
        summary=summary,
        meanings=MEANINGS,
        columns=COLUMNS,
        decisions=decisions,
        classes=classes,
    )


def _thumbnail(path: str, sha256: str) -> bytes:
    small = fitted(decode_film(film_bytes(DATA, path, sha256), path), _THUMBNAIL_PX)
    return encode_jpeg(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB), _JPEG_QUALITY)
