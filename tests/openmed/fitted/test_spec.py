import dataclasses
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.special import softmax

from openmed.errors import BadInput
from openmed.fitted.calibration import Calibration
from openmed.fitted.novelty import Novelty
from openmed.fitted.spec import ModelSpec

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


PLATT = Calibration("platt", (0.1, 0.2, -1 / 3), (0.5, 0.0, -0.5), 1.7, films=90)
LOGITS = np.random.default_rng(0).normal(0, 3, (20, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        SPEC.with_threshold(0.1 + 0.2),
        SPEC.with_threshold(0.4, {"VIRUS": 0.3}),
        SPEC.with_calibration(PLATT).with_threshold(0.4),
        replace(SPEC, novelty=Novelty(0.02, 1.5, 80, "ab")),
    ],
)
def test_a_spec_survives_json(spec):
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_positive_label_is_the_index_of_its_class():
    assert SPEC.positive_index == 1


def test_a_threshold_is_set_on_a_copy():
    assert SPEC.with_threshold(0.25).threshold == 0.25
    assert SPEC.threshold is None


def test_a_spec_asked_for_another_finding_has_its_label_and_threshold():
    spec = SPEC.with_threshold(0.4, {"VIRUS": 0.3})
    assert spec.findings == ("BACTERIA", "VIRUS")
    asked = spec.of_finding("VIRUS")
    assert (asked.positive_index, asked.threshold, asked.further_thresholds) == (2, 0.3, {"BACTERIA": 0.4})
    assert asked.of_finding("BACTERIA") == spec == spec.of_finding("BACTERIA")
    with pytest.raises(BadInput, match="looks for BACTERIA, VIRUS, not for NORMAL"):
        spec.of_finding("NORMAL")


@pytest.mark.parametrize("further", [{"COVID": 0.5}, {"BACTERIA": 0.5}])
def test_a_further_finding_is_another_of_the_classes(further):
    with pytest.raises(BadInput, match="no further classes"):
        SPEC.with_threshold(0.4, further)


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


def test_a_description_from_before_novelty_loads_and_refers_nothing_as_unlike():
    content = SPEC.to_json()
    del content["novelty"], content["min_side_px"]
    assert ModelSpec.from_json(content) == SPEC


@pytest.mark.parametrize("content", [[], "vit", None, 3])
def test_a_description_that_is_no_object_is_refused(content):
    with pytest.raises(BadInput, match="not a model description"):
        ModelSpec.from_json(content)


def test_a_description_from_before_calibration_loads_and_means_the_plain_softmax():
    content = SPEC.with_threshold(0.5).to_json()
    del content["calibration"]
    spec = ModelSpec.from_json(content)
    assert spec == SPEC.with_threshold(0.5)
    probabilities = spec.probabilities(LOGITS)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, softmax(LOGITS, axis=1), atol=1e-6)


def test_probabilities_are_those_of_the_calibration():
    probabilities = SPEC.with_calibration(PLATT).probabilities(LOGITS)
    expected = softmax(1.7 * (LOGITS + np.array([0.1, 0.2, -1 / 3])) + [0.5, 0, -0.5], axis=1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_a_new_calibration_takes_the_threshold_of_the_old_probabilities_away():
    spec = SPEC.with_threshold(0.5, {"VIRUS": 0.3}).with_calibration(PLATT)
    assert spec.threshold is None and spec.further_thresholds == {}


@pytest.mark.parametrize(
    "calibration",
    [{}, [], "platt", asdict(Calibration.of_prior((0.0, 0.0))), asdict(PLATT) | {"scale": -1}],
)
def test_a_description_with_a_calibration_that_does_not_fit_is_refused(calibration):
    with pytest.raises(BadInput, match="calibration"):
        ModelSpec.from_json(SPEC.to_json() | {"calibration": calibration})


@pytest.mark.parametrize("calibration", [None, PLATT])
def test_logits_of_other_classes_are_refused(calibration):
    with pytest.raises(ValueError, match=r"logits must be \(N, 3\)"):
        dataclasses.replace(SPEC, calibration=calibration).probabilities(LOGITS[:, :2])


@pytest.mark.parametrize("text", ["\x1b[2J", "two\nlines", "\ud800", "", "x" * 201])
@pytest.mark.parametrize("place", ["timm_name", "explanation_layer", "class_names", "model_options", "x"])
def test_a_text_that_a_terminal_would_obey_is_refused_in_one_short_line(place, text):
    content = SPEC.to_json()
    content |= {
        "class_names": {"class_names": [*SPEC.class_names[:-1], text]},
        "model_options": {"model_options": {text: 1}},
        "x": {"x" + text: 1},
    }.get(place, {place: text})
    with pytest.raises(BadInput) as refused:
        ModelSpec.from_json(content)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200


def test_a_class_may_have_the_letters_of_any_language():
    names = ("без патологии", "Pneumonie à droite", "肺炎\u3000右")
    assert ModelSpec.from_json(SPEC.to_json() | {"class_names": names, "positive": names[1]}).positive


def test_an_unknown_field_of_a_calibration_is_named_in_one_short_line():
    content = SPEC.to_json() | {"calibration": asdict(PLATT) | {"sc\nale": 1}}
    with pytest.raises(BadInput, match=r"^a calibration has no field 'sc\\nale'$"):
        ModelSpec.from_json(content)
