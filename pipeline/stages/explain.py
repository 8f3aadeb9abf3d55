"""Draws heat maps of test films, checks that they can be trusted, and writes the report."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from openmed.archives import film_bytes
from openmed.cache.film_cache import FilmCache
from openmed.explain.checks import LIMITS, check_maps
from openmed.explain.heatmap import explain, methods
from openmed.explain.overlay import encode_jpeg, fitted, overlay
from openmed.files import read_table, write_bytes, write_json, write_text
from openmed.films.images import decode_film
from openmed.fitted.spec import ModelSpec
from openmed.inference.checkpoint import load_model
from openmed.models.base import BaseModel
from pipeline.evaluation.judgement import scored_for
from pipeline.report.page import build_report
from pipeline.settings.artifacts import CACHE, DATA, MANIFEST, MANIFEST_COLUMNS, folder
from pipeline.settings.params import Params
from pipeline.tools.device import pick_device, use_device

_PICTURE_PX = 320
OUTCOMES = ("true_positive", "false_positive", "false_negative", "true_negative")


def run(params: Params, architecture: str) -> None:
    """Explains example films of each outcome and writes heat maps, their check and the report."""
    use_device(params)
    model = load_model(folder("evaluate", architecture) / "model").to(pick_device(params.run.device))
    predictions = read_table(folder("evaluate", architecture) / "predictions.parquet")
    test = predictions[predictions["split"] == "test"].reset_index(drop=True)
    target, primary = folder("explain", architecture), methods(model)[0]
    explained = {name: _explain_finding(model, test, name, params, target) for name in model.spec.findings}
    content = {
        "architecture": architecture,
        "primary_method": primary,
        "layer": model.spec.explanation_layer,
        "limits": LIMITS,
        **explained[model.spec.positive],
    }
    if further := {name: explained[name] for name in model.spec.further_thresholds}:
        content["findings"] = further
    write_json(target / "explain.json", content)
    write_text(target / "report.html", build_report(params, architecture, model.spec, content))
    for name, own in explained.items():
        check = own["faithfulness"][primary]
        print(
            f"explain {architecture}: {name}, {len(own['examples'])} films; maps "
            f"{'can be trusted' if check['trusted'] else 'cannot be trusted'}: {check['reason']}"
        )


def _explain_finding(
    model: BaseModel, test: pd.DataFrame, finding: str, params: Params, target: Path
) -> dict[str, Any]:
    """Checks the maps of one finding, and draws those of the example films."""
    spec = model.spec.of_finding(finding)
    films = scored_for(test, model.spec, finding)
    films = films.assign(outcome=_outcomes(films, spec))
    return {
        "faithfulness": _check_maps(model, films, spec, params),
        "examples": _draw_examples(model, _choose(films, params.explain.examples), spec, target / "examples"),
    }


def _outcomes(test: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    has = (test["label"] == spec.positive_index).to_numpy()
    flagged = (test["score"] >= spec.threshold).to_numpy()
    return np.select([has & flagged, ~has & flagged, has & ~flagged], OUTCOMES[:3], default=OUTCOMES[3])


def _choose(test: pd.DataFrame, each: int) -> pd.DataFrame:
    """The clearest films of each outcome: the surest right ones and the worst wrong ones."""
    parts = []
    for outcome in OUTCOMES:
        films = test[test["outcome"] == outcome]
        high_first = outcome in ("true_positive", "false_positive")
        parts.append(films.sort_values(["score", "id"], ascending=not high_first).head(each))
    return pd.concat(parts).reset_index(drop=True)


def _check_maps(model: BaseModel, test: pd.DataFrame, spec: ModelSpec, params: Params) -> dict[str, dict]:
    """The checks of each method on films that the model flags rightly."""
    films = test[test["outcome"] == "true_positive"].sort_values("id").head(params.explain.checked_films)
    cache = FilmCache(CACHE, spec.image_size_px)
    pixels = cache.films[cache.rows(films["id"])]
    checks = check_maps(model, pixels, spec.positive_index, params.run.seed)
    return {method: asdict(check) for method, check in checks.items()}


def _draw_examples(
    model: BaseModel, films: pd.DataFrame, spec: ModelSpec, target: Path
) -> list[dict[str, Any]]:
    """Writes each film and its overlays; the map always speaks of the finding that is asked for."""
    cache = FilmCache(CACHE, spec.image_size_px)
    maps = explain(model, cache.films[cache.rows(films["id"])], spec.positive_index)
    # A film may be an example of several findings, each with maps of its own.
    of_which = "" if spec.positive == model.spec.positive else f"_{spec.positive_index}"
    sources = read_table(MANIFEST, needed=MANIFEST_COLUMNS).set_index("id")
    target.mkdir(parents=True, exist_ok=True)
    examples = []
    for position, film in enumerate(films.itertuples()):
        content = film_bytes(DATA, sources.at[film.id, "path"], sources.at[film.id, "sha256"])
        picture = fitted(decode_film(content, f"film {film.id}"), _PICTURE_PX)
        names = {"film": f"{film.id}.jpg"} | {method: f"{film.id}_{method}{of_which}.jpg" for method in maps}
        write_bytes(target / names["film"], encode_jpeg(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)))
        for method, heat in maps.items():
            write_bytes(target / names[method], encode_jpeg(overlay(picture, heat[position])))
        examples.append(
            {
                "id": film.id,
                "outcome": film.outcome,
                "label": spec.class_names[film.label],
                "score": float(film.score),
                "pictures": names,
            }
        )
    return examples
