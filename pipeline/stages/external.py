"""Scores films from elsewhere, which taught nothing, with the finished model.

Every set of `external/` is scored on every film. Without any set the stage says so in its outputs and loads
neither model nor film.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.cache.film_store import FilmStore
from openmed.errors import BadInput
from openmed.files import atomic_path, read_table, write_json
from pipeline.evaluation.judgement import describe_external
from pipeline.evaluation.rules import Rules
from pipeline.settings.artifacts import DATA, MANIFEST, SPLIT, SPLIT_COLUMNS, film_store_folder, folder
from pipeline.settings.params import Params
from pipeline.tools.terminal import progress
from pipeline.versioning.external_sets import EXTERNAL, external_sets

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from openmed.fitted.spec import ModelSpec

_BATCH_FILMS = 256
_COLUMNS = (
    *("set", "id", "path", "sha256", "patient", "label", "second_label"),
    *("view", "sex", "age_band", "source", "score"),
)


def run(params: Params, architecture: str) -> None:
    """Writes the predictions on the films of every external set, and what they amount to.

    Raises:
        BadInput: A set is not here, has no usable film, or holds films that the model has learnt from.
        IntegrityError: A set is not the one that was added.
    """
    import pandas as pd

    target, sets = folder("external", architecture), external_sets(Path())
    films, shown = pd.DataFrame(columns=list(_COLUMNS)), {}
    if sets:
        films, unusable = _usable_films(sets, params)
        _refuse_known_films(films, params)
        films, spec = _scored(films, architecture, params)
        shown = describe_external(films, spec, Rules.of(params.model_dump(), "params.yaml"))
        shown = {name: {"unusable": unusable[name], **content} for name, content in shown.items()}
    with atomic_path(target / "predictions.parquet") as temporary:
        films.to_parquet(temporary)
    write_json(target / "metrics.json", {"architecture": architecture, "sets": shown})
    print(f"external {architecture}: {_summary(shown)}")


def _usable_films(sets: dict[str, Path], params: Params) -> "tuple[pd.DataFrame, dict[str, int]]":
    """The usable films of all sets, paths below external/, and how many of each set are unusable."""
    import pandas as pd

    from openmed.dataset.manifest import measure_films
    from openmed.intake.external_set import read_set

    parts, unusable = [], {}
    for name, path in sets.items():
        films = read_set(path, params.task.classes)
        with FilmStore(film_store_folder()) as store, progress(len(films), f"external {name}") as tick:
            smallest = params.validate_.min_side_px
            films = measure_films(path, films, store, min_side_px=smallest, tick=tick)
        usable = films[films["status"] == "accepted"]
        if usable.empty:
            raise BadInput(f"none of the {len(films)} films of the external set {name} is usable")
        unusable[name] = len(films) - len(usable)
        parts.append(usable.assign(set=name, path=f"{name}/" + usable["path"]))
    return pd.concat(parts, ignore_index=True), unusable


def _refuse_known_films(films: "pd.DataFrame", params: Params) -> None:
    """Stops when a film of a set, or a near-duplicate of it, is among the films of any split."""
    from openmed.dataset.splits import LEFT_OUT
    from openmed.intake.external_set import films_in_training

    split = read_table(SPLIT, needed=SPLIT_COLUMNS)
    manifest = read_table(MANIFEST, columns=["id", "path", "sha256", "perceptual_hash"])
    own = manifest[manifest["id"].isin(split.loc[split["split"] != LEFT_OUT, "id"])]
    own = own.assign(path=f"{DATA.name}/" + own["path"])
    away = films.assign(path=f"{EXTERNAL.name}/" + films["path"])[["set", *own.columns]]
    for name, part in away.groupby("set", sort=False):
        known = films_in_training(part.reset_index(drop=True), own, params.split.near_duplicate_bits, Path())
        if count := int(known.sum()):
            raise BadInput(
                f"{count} of {len(part)} films of the external set {name} are in {DATA}/ too, as they are or "
                "nearly: nothing may have been learnt from a film that judges, so add a set without them"
            )


def _scored(films: "pd.DataFrame", architecture: str, params: Params) -> "tuple[pd.DataFrame, ModelSpec]":
    """Adds score, logit_<CLASS> and distance, as the finished model has them; returns its description."""
    from openmed.inference.checkpoint import load_model
    from pipeline.evaluation.novelty import logits_and_distances
    from pipeline.tools.device import pick_device, use_device

    use_device(params)
    model = load_model(folder("evaluate", architecture) / "model").to(pick_device(params.run.device))
    logits, distances = logits_and_distances(model, _squares(films, model.spec.image_size_px))
    scores = model.spec.probabilities(logits)[:, model.spec.positive_index]
    columns = {f"logit_{name}": logits[:, k] for k, name in enumerate(model.spec.class_names)}
    if distances is not None:
        columns["distance"] = distances
    return films.assign(score=scores)[list(_COLUMNS)].assign(**columns), model.spec


def _squares(films: "pd.DataFrame", size_px: int) -> "Iterator[np.ndarray]":
    """Decodes films, uint8 (n, S, S) a batch."""
    import numpy as np

    from openmed.archives import film_bytes
    from openmed.concurrency import ordered_map
    from openmed.films.images import decode_squares

    def square(film: tuple[str, str]) -> np.ndarray:
        path, sha256 = film
        return decode_squares(film_bytes(EXTERNAL, path, sha256), [size_px], path)[0]

    for start in range(0, len(films), _BATCH_FILMS):
        part = films.iloc[start : start + _BATCH_FILMS]
        squares = ordered_map(square, zip(part["path"], part["sha256"], strict=True))
        yield np.stack(list(squares))


def _summary(sets: dict[str, Any]) -> str:
    if not sets:
        return "there is no external set, so nothing is known about films from elsewhere"
    sentences = []
    for name, content in sets.items():
        whole = content["groups"][0]
        values = [
            f"{key} {whole[key]['value']:.3f}"
            for key in ("auc", "sensitivity", "specificity")
            if whole[key]["value"] is not None
        ]
        if "unlike" in content:
            values.append(f"{content['unlike']['value']:.0%} unlike the training films")
        sentences.append(f"{name}, {content['films']} films: {', '.join(values)}")
    return "; ".join(sentences)
