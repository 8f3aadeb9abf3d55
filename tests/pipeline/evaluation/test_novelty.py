"""Films unlike those of the training: what the evaluate stage finds of them, and the gate."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openmed.cache.film_cache import FilmCache
from openmed.files import read_json
from openmed.fitted.feature_statistics import fit_statistics
from openmed.fitted.novelty import Novelty
from openmed.gates.gate import FAIL, PASS
from openmed.inference.checkpoint import load_model, read_spec
from pipeline.evaluation import novelty
from pipeline.evaluation.rules import Rules
from pipeline.promotion.gates.performance import unlike_films
from pipeline.settings.params import load_params

NETWORKS = ("resnet50", "vit", "inceptionv3")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stage_says_which_films_are_unlike(toy, name):
    folder = toy / "artifacts/evaluate" / name
    films, spec = pd.read_parquet(folder / "predictions.parquet"), read_spec(folder / "model")[0]
    model, cache = load_model(folder / "model"), FilmCache(toy / "artifacts/preprocess", spec.image_size_px)
    distances = model.assess(cache.films[cache.rows(films["id"])])[1]
    np.testing.assert_allclose(films["distance"], distances, atol=1e-4)
    test, found = films[films["split"] == "test"], read_json(folder / "metrics.json")["novelty"]
    assert found["films"] == (test["distance"] > spec.novelty.limit).sum()
    assert found["referred"]["value"] == pytest.approx(found["films"] / len(test))
    assert (found["limit"], found["share"]) == (spec.novelty.limit, 0.03)
    calibration = films[films["split"] == "calibration"]
    assert found["calibration_patients"] == calibration["patient"].nunique()
    assert (calibration["distance"] > spec.novelty.limit).mean() <= 0.03
    page = (toy / "artifacts/explain" / name / "report.html").read_text()
    assert "unlike those that the network learnt from" in page


def test_statistics_are_those_of_unique_training_films(toy, monkeypatch):
    monkeypatch.chdir(toy)
    split = pd.read_parquet("artifacts/split/split.parquet")
    model = load_model(toy / "artifacts/evaluate/vit/model")
    train = split[split["split"] == "train"].sort_values("id")
    assert train["id"].str.endswith("-2").sum() == 1, "the sample holds a copy"
    train = train[train["id"].str.len() == 16]
    cache = FilmCache(toy / "artifacts/preprocess", model.spec.image_size_px)
    expected = fit_statistics(model.examine(cache.films[cache.rows(train["id"])])[1], train["label"])
    found = novelty.learn_training_films(model, split, seed=1)
    assert found.to_bytes() == expected.to_bytes() == model.statistics.to_bytes()


def test_at_most_so_many_films_chosen_by_the_seed_are_learnt(toy, monkeypatch):
    monkeypatch.chdir(toy)
    monkeypatch.setattr(novelty, "_MOST_FILMS", 20)
    split, seen = pd.read_parquet("artifacts/split/split.parquet"), []
    model = load_model(toy / "artifacts/evaluate/vit/model")
    examine = model.examine
    monkeypatch.setattr(model, "examine", lambda films: seen.append(len(films)) or examine(films))
    drawn = [novelty.learn_training_films(model, split, seed).to_bytes() for seed in (1, 1, 2)]
    assert seen == [20, 20, 20] and drawn[0] == drawn[1] != drawn[2]


def evidence(distances, *, allowed, limit=1.0):
    count = len(distances)
    test = pd.DataFrame(
        {"id": [f"{n:04d}" for n in range(count)], "patient": [f"p{n // 2}" for n in range(count)]}
    ).assign(distance=distances)
    known = None if limit is None else Novelty(0.02, limit, 80, "")
    evaluation = SimpleNamespace(max_unlike=allowed)
    return SimpleNamespace(
        plan=SimpleNamespace(protocol=SimpleNamespace(evaluation=evaluation)),
        rules=Rules(0.9, None, "films", None, 0.95, 500, {}, 1),
        spec=SimpleNamespace(novelty=known),
        test=test,
    )


def test_the_gate_fails_where_surely_more_films_are_referred_than_the_plan_allows():
    none, some, many = (
        np.zeros(200),
        np.r_[np.full(14, 2.0), np.zeros(186)],
        np.r_[np.full(60, 2.0), np.zeros(140)],
    )
    few = unlike_films(evidence(none, allowed=0.05))
    assert (few.verdict, few.value, few.floor) == (PASS, 0.0, 0.05)
    # Seven of a hundred, though not surely more than five.
    unsure = unlike_films(evidence(some, allowed=0.05))
    assert unsure.verdict == PASS and unsure.low < 0.05 < unsure.value == 0.07
    failed = unlike_films(evidence(many, allowed=0.05))
    assert failed.verdict == FAIL and failed.low > 0.05
    assert failed.reason.startswith("Of 200 test films 60 are referred as unlike")


def test_the_gate_wants_the_check_where_the_plan_limits_it_and_not_where_an_old_plan_does_not():
    blind = evidence(np.zeros(20), allowed=0.05, limit=None)
    assert unlike_films(blind).verdict == FAIL and "evaluate.unlike_share" in unlike_films(blind).reason
    assert unlike_films(evidence(np.full(20, 9.0), allowed=None)).verdict == PASS


def test_the_shipped_settings_look_for_unlike_films(toy):
    assert load_params(toy / "params.yaml").evaluate.unlike_share == 0.03
