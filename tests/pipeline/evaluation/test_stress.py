"""Models whose rule is known, on films whose content is known."""

import numpy as np
import pandas as pd
import pytest

from openmed.metrics.classification import auc
from openmed.models.factory import ModelFactory
from openmed.perturbations.hidden_parts import HIDDEN
from openmed.perturbations.simulated_sites import SITES
from pipeline.evaluation.rules import Rules
from pipeline.evaluation.stress import at_sites, changed_probabilities, chosen_films, hidden

N, SIDE = 60, 40
RULES = Rules(0.9, None, "films", None, 0.95, 200, {}, 0)


@pytest.fixture(scope="module")
def films():
    """Films with the finding are brighter in the lungs, and bear a white mark in a corner."""
    rng, labels = np.random.default_rng(0), np.arange(N) % 2
    pixels = rng.integers(90, 110, (N, SIDE, SIDE)).astype(np.uint8)
    pixels[labels == 1, 14:24, 8:16] += 40
    pixels[labels == 1, :3, :3] = 250
    table = pd.DataFrame({"id": [f"{k:03d}" for k in range(N)], "patient": np.arange(N), "label": labels})
    return table, pixels


def reading(films, where):
    """Asks of a model that looks at one part of the film alone: what sites make of it, and hidden parts."""
    spec = ModelFactory.create("vit", timm_name="test_vit", image_size_px=SIDE // 8 * 8).spec.with_threshold(
        0.5
    )

    def predict(pixels):
        score = np.clip(pixels[(slice(None), *where)].mean(axis=(1, 2)) / 255, 0, 1)
        return np.stack([1 - score, score], axis=1)

    table, pixels = films
    table = table.assign(score=predict(pixels)[:, 1])
    said = (changed_probabilities(predict, pixels, changes) for changes in (SITES, HIDDEN))
    return at_sites(next(said), table, spec, RULES), hidden(next(said), table, spec, RULES)


CORNER, LUNG = (slice(0, 3), slice(0, 3)), (slice(14, 24), slice(8, 16))


def test_a_model_that_reads_a_mark_is_found_by_hiding_the_border_and_the_lungs(films):
    _, parts = reading(films, CORNER)
    assert list(parts) == list(HIDDEN)
    assert parts["border hidden"].loss.low > 0.2
    assert parts["lungs hidden"].auc == 1.0 and parts["lungs hidden"].loss.value == 0


def test_a_model_that_reads_the_lungs_needs_them_and_nothing_else(films):
    _, parts = reading(films, LUNG)
    assert parts["border hidden"].loss.value == 0 and parts["lungs hidden"].auc < 0.9


def test_a_fixed_grey_level_serves_at_home_and_fails_at_the_site_that_moves_it(films):
    sites, _ = reading(films, LUNG)
    assert list(sites.sites) == list(SITES) and sites.films == N
    assert sites.sites["turned"].sensitivity.value == 1.0
    # Lungs of 140 of 255 become 92 of 255 there, and those of 100 become 146 at the other.
    assert sites.worst["sensitivity"].value == 0 and sites.worst["specificity"].value == 0
    assert sites.worst["specificity"].site == "gamma 0.6"


def test_each_site_is_measured_on_its_own_films(films):
    sites, _ = reading(films, LUNG)
    table, pixels = films
    scores = SITES["flat"](pixels)[:, 14:24, 8:16].mean(axis=(1, 2)) / 255
    flat = sites.sites["flat"]
    assert flat.auc == pytest.approx(auc(table["label"], scores))
    assert flat.sensitivity.value == (scores[table["label"] == 1] >= 0.5).mean()
    for found in (*sites.worst.values(), flat.sensitivity, flat.specificity):
        assert found.low <= found.value <= found.high


def test_of_many_films_some_are_drawn_the_same_again():
    many = pd.DataFrame({"id": range(2000)})
    one, other = chosen_films(many, 1), chosen_films(many, 1)
    assert len(one) == 500 and one.equals(other) and one["id"].is_monotonic_increasing
