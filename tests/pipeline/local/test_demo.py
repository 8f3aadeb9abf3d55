import re

import pytest

from pipeline import registry
from pipeline.local import demo

PASSED = {"version": "2", "architecture": "vit", "champion": None, "table_markdown": "table", "grounds": ""}
REFUSED = {"version": "1", "architecture": "resnet50", "verdict": "FAIL", "grounds": "Specificity is 0.5"}


@pytest.fixture
def conclusion(capsys, monkeypatch):
    """What the demo prints in the end."""
    monkeypatch.setattr(registry, "artifact", lambda version, name: f"artifacts/{version}/{name}")

    def printed(judged, outcome):
        demo._conclude(judged, outcome)
        return capsys.readouterr().out

    return printed


def test_without_a_champion_the_demo_says_why_and_names_a_version_that_exists(conclusion):
    text = conclusion(PASSED | {"grounds": "The border is read", "refused": [REFUSED]}, "rejected")
    assert "No candidate may become the champion of openmed-cxr: none passed its gates." in text
    assert "Version 1 (resnet50) was rejected: Specificity is 0.5." in text
    assert "Version 2 (vit) was rejected: The border is read." in text
    assert re.findall(r"models:/\S+", text) == ["models:/openmed-cxr/2"]


def test_a_champion_that_stays_is_the_one_to_try(conclusion):
    judged = PASSED | {"champion": "7", "grounds": "The border is read", "refused": []}
    text = conclusion(judged, "rejected")
    assert "version 7 stays the champion" in text
    assert re.findall(r"models:/\S+", text) == ["models:/openmed-cxr@champion"]


def test_a_promotion_names_what_was_refused_before_it(conclusion):
    text = conclusion(PASSED | {"refused": [REFUSED]}, "promoted")
    assert "Version 2 (vit) is the champion of openmed-cxr." in text
    assert "Version 1 (resnet50) was rejected: Specificity is 0.5." in text
    assert "Version 2 (vit) was rejected" not in text
