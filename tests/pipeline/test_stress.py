"""Models whose rule is known, on films whose content is known."""

import numpy as np
import pandas as pd
import pytest

from openmed.data.perturbations import HIDDEN, ROBUSTNESS
from openmed.metrics.classification import auc
from openmed.models.factory import ModelFactory
from pipeline.judgement import Rules
from pipeline.stress import stress

N, SIDE = 60, 40
RULES = Rules(0.9, None, 0.95, 200, {}, 0)


@pytest.fixture(scope="module")
def films():
    """Films with the finding are brighter in the lungs, and bear a white mark in a corner."""
    rng, labels = np.random.default_rng(0), np.arange(N) % 2
    pixels = rng.integers(90, 110, (N, SIDE, SIDE)).astype(np.uint8)
    pixels[labels == 1, 14:24, 8:16] += 40
    pixels[labels == 1, :3, :3] = 250
    table = pd.DataFrame({"id": [f"{k:03d}" for k in range(N)], "patient": np.arange(N), "label": labels})
    return table, pixels


def stressed(films, where):
    """Stresses a model that looks at one part of the film alone."""
    spec = ModelFactory.create("vit", timm_name="test_vit", image_size_px=SIDE // 8 * 8).spec.with_threshold(
        0.5
    )

    def predict(pixels):
        score = np.clip(pixels[(slice(None), *where)].mean(axis=(1, 2)) / 255, 0, 1)
        return np.stack([1 - score, score], axis=1)

    table, pixels = films
    return stress(predict, table.assign(score=predict(pixels)[:, 1]), pixels, spec, RULES)


def test_a_model_that_reads_a_mark_is_found_by_hiding_the_border_and_the_lungs(films):
    found = stressed(films, (slice(0, 3), slice(0, 3)))
    assert found["border hidden"]["loss"]["low"] > 0.2
    assert found["lungs hidden"]["auc"] == 1.0 and found["lungs hidden"]["loss"]["value"] == 0


def test_a_model_that_reads_the_lungs_needs_them_and_nothing_else(films):
    found = stressed(films, (slice(14, 24), slice(8, 16)))
    assert found["border hidden"]["loss"]["value"] == 0 and found["lungs hidden"]["auc"] < 0.9
    assert found["turned"]["films"] == N
    assert all(found[name]["loss"]["value"] < 0.1 for name in ROBUSTNESS)


def test_every_change_is_measured_with_what_it_costs_and_its_uncertainty(films):
    found = stressed(films, (slice(14, 24), slice(8, 16)))
    assert list(found) == [*ROBUSTNESS, *HIDDEN]
    table, pixels = films
    darker = ROBUSTNESS["darker"](pixels)[:, 14:24, 8:16].mean(axis=(1, 2)) / 255
    assert found["darker"]["auc"] == pytest.approx(auc(table["label"], darker))
    for cost in found.values():
        for name in ("loss", "sensitivity", "specificity"):
            assert cost[name]["low"] <= cost[name]["value"] <= cost[name]["high"]
