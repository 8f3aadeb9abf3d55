import dataclasses
import json

import pytest

from openmed.errors import BadInput
from openmed.models.spec import ModelSpec

SPEC = ModelSpec(
    architecture="vit",
    timm_name="test_vit",
    image_size_px=32,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    class_names=("NORMAL", "BACTERIA", "VIRUS"),
    positive="BACTERIA",
    explanation_layer="blocks",
    model_options={"patch_size": 8},
    weights={"kind": "none", "source": None, "revision": None, "sha256": None},
)


@pytest.mark.parametrize("spec", [SPEC, SPEC.with_threshold(0.1 + 0.2)])
def test_a_spec_survives_json(spec):
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_positive_label_is_the_index_of_its_class():
    assert SPEC.positive_index == 1


def test_a_threshold_is_set_on_a_copy():
    assert SPEC.with_threshold(0.25).threshold == 0.25
    assert SPEC.threshold is None


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.threshold = 0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("timm_name"),
        lambda content: content.update(colour="red"),
        lambda content: content.update(mean=None),
        lambda content: content.update(positive="COVID"),
        lambda content: content.update(class_names=["BACTERIA"]),
    ],
)
def test_a_description_with_a_wrong_field_is_refused(change):
    content = SPEC.to_json()
    change(content)
    with pytest.raises(BadInput):
        ModelSpec.from_json(content)


@pytest.mark.parametrize("content", [[], "vit", None, 3])
def test_a_description_that_is_no_object_is_refused(content):
    with pytest.raises(BadInput, match="not a model description"):
        ModelSpec.from_json(content)
