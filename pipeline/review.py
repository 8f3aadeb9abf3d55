"""The page that a reviewer decides on: the verdict, and the films on which two models disagree."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import registry
from pipeline.gates import Comparison, Evidence, subgroups

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from openmed.models.base import BaseModel

_SHOWN = 8
_PICTURE_PX = 280


def build_review(judged: dict[str, Any], evidence: Evidence, compared: Comparison, workspace: Path) -> str:
    """Builds the page.

    Args:
        judged: What the gate says.
        evidence: On the version.
        compared: Its comparison with the champion.
        workspace: The workspace of its retraining, which holds the films.

    Returns:
        One HTML page that needs nothing else.

    Raises:
        IntegrityError: A model or a film is not what was registered.
    """
    from openmed.files import read_json
    from pipeline.report.render import render

    explained = registry.find_artifact(evidence.version, "explain.json")
    checks = read_json(explained) if explained else None
    films = compared.films if compared.films is not None else evidence.test
    return render(
        "review.html",
        judged=judged,
        groups=_groups(films, evidence, compared, Path(workspace)),
        subgroups=subgroups(evidence, compared),
        threshold=evidence.spec.threshold,
        champion_threshold=compared.other_threshold,
        positive=evidence.spec.positive,
        maps_trusted=bool(checks) and checks["faithfulness"][checks["primary_method"]]["trusted"],
    )


def _groups(
    films: "pd.DataFrame", evidence: Evidence, compared: Comparison, workspace: Path
) -> list[tuple[str, str, dict[str, Any]]]:
    """Title, kind and films of each way to disagree, what harms most first."""
    has = films["label"] == evidence.spec.positive_index
    flagged = films["score"] >= evidence.spec.threshold
    if compared.films is None:
        chosen = (
            ("Missed", "miss", has & ~flagged, True),
            ("False alarms", "alarm", ~has & flagged, False),
        )
        models = [("this version", registry.load(f"models:/{registry.MODEL_NAME}/{evidence.version}"))]
    else:
        before = films["score_other"] >= compared.other_threshold
        chosen = (
            ("New misses: the champion flags them", "miss", has & ~flagged & before, True),
            ("New false alarms: the champion passes them", "alarm", ~has & flagged & ~before, False),
            ("Newly found: the champion misses them", "gain", has & flagged & ~before, False),
            ("Newly passed: the champion raises false alarms", "gain", ~has & ~flagged & before, True),
        )
        models = [
            (name, registry.load(f"models:/{registry.MODEL_NAME}/{version}"))
            for name, version in (("this version", evidence.version), ("champion", compared.other))
        ]
    sources = registry.films_of(workspace).set_index("id")
    found = []
    for title, kind, where, lowest_first in chosen:
        some = films[where].sort_values(["score", "id"], ascending=[lowest_first, True])
        shown = [_case(film, sources, models, workspace, evidence) for film in some.head(_SHOWN).itertuples()]
        found.append((title, kind, {"total": len(some), "shown": shown}))
    return found


def _case(
    film: Any,
    sources: "pd.DataFrame",
    models: "list[tuple[str, BaseModel]]",
    workspace: Path,
    evidence: Evidence,
) -> dict[str, Any]:
    from openmed.data.images import decode_film
    from openmed.data.manifest import film_bytes

    source = sources.loc[film.id]
    grey = decode_film(film_bytes(workspace / "data", source["path"], source["sha256"]), f"film {film.id}")
    maps = [(name, _map(model, grey)) for name, model in models]
    return {
        "id": film.id,
        "label": evidence.spec.class_names[film.label],
        "score": float(film.score),
        "score_champion": float(getattr(film, "score_other", float("nan"))),
        "pictures": [("film", _picture(grey, None)), *((name, _picture(grey, heat)) for name, heat in maps)],
    }


def _map(model: "BaseModel", grey: "np.ndarray") -> "np.ndarray":
    from openmed.data.images import resize_film
    from openmed.explain.heatmap import explain, methods

    square, primary = resize_film(grey, model.spec.image_size_px), methods(model)[0]
    return explain(model, square[None], model.spec.positive_index, primary)[primary][0]


def _picture(grey: "np.ndarray", heat: "np.ndarray | None") -> str:
    import cv2

    from openmed.explain.overlay import encode_jpeg, fitted, overlay
    from pipeline.report.render import picture

    small = fitted(grey, _PICTURE_PX)
    shown = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB) if heat is None else overlay(small, heat)
    return picture(encode_jpeg(shown), "jpeg")
