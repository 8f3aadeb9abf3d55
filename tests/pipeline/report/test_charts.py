import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from pipeline.report.charts import (
    confusion_chart,
    distribution_chart,
    interval_chart,
    score_chart,
    share_chart,
)
from pipeline.report.figure import series, width_in_columns, written

pytestmark = pytest.mark.filterwarnings("error")

TEXT = "{http://www.w3.org/2000/svg}text"
LEFT, RIGHT = (f"Lung Opacity / consolidation of the {side} lower lobe" for side in ("left", "right"))
CHINESE = "肺炎与胸腔积液的影像学表现"
NAMES = [
    *("A_B", "_hidden", "$x$", "50 % & <b>", LEFT, RIGHT, CHINESE, "Épanchement pleural"),
    *("\"quoted\" 'name'", "a|b|c", "two\nlines", "$\\frac{"),
]


def texts(svg: bytes) -> list[str]:
    """What stands in the chart, as a browser reads it."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(TEXT)]


def scores(names):
    rng = np.random.default_rng(1)
    return {name: rng.uniform(size=20 + place) for place, name in enumerate(names)}


def shares(names, sets=("the champion's films", "_added", "whole")):
    rng = np.random.default_rng(2)
    return {each: pd.Series(rng.dirichlet(np.ones(len(names))), index=names) for each in sets}


def test_scores_of_twelve_classes_stand_below_each_other_under_their_names():
    found = texts(score_chart(scores(NAMES), 0.4))
    for place, name in enumerate(written(NAMES)):
        assert found.count(f"{name}, {20 + place} films") == 1


def test_scores_of_two_classes_share_one_picture_whatever_they_are_called():
    for pair in (["NORMAL", "PNEUMONIA"], ["_hidden", "$x$"], [LEFT, CHINESE]):
        found = texts(score_chart(scores(pair), 0.4))
        assert [text for text in found if text in written(pair)] == written(pair)
        assert found.count("films") == 1


@pytest.mark.parametrize(
    ("finding", "label"),
    [
        (None, ["predicted probability of the finding"]),
        ("VIRUS_$2$", ["predicted probability of VIRUS_$2$"]),
        (LEFT, ["predicted probability of", written([LEFT])[0]]),
    ],
)
def test_the_scores_say_of_which_finding_they_are(finding, label):
    found = texts(score_chart(scores(["NORMAL", "OTHER"]), 0.4, finding))
    assert set(label) <= set(found)


def test_shares_of_twelve_classes_and_three_sets_are_all_there():
    tables = shares(NAMES)
    found = texts(share_chart(tables))
    assert set(written(NAMES, 28)) <= set(found) and set(tables) <= set(found)
    assert sum(text.endswith(" %") for text in found) == 36


def test_shares_of_more_sets_than_colours_are_all_there():
    tables = shares(["NORMAL", "PNEUMONIA"], [f"_set {number}" for number in range(10)])
    found = texts(share_chart(tables))
    assert set(tables) <= set(found) and sum(text.endswith(" %") for text in found) == 20


def test_a_class_that_one_set_lacks_has_a_share_of_zero():
    found = texts(share_chart({"old": pd.Series({"A": 1.0}), "new": pd.Series({"A": 0.996, "B": 0.004})}))
    assert [text for text in found if text.endswith(" %")] == ["100 %", "0 %", "99.6 %", "0.4 %"]


def test_distributions_and_intervals_hold_every_name():
    values = {name: np.random.default_rng(3).normal(size=30) for name in NAMES}
    assert set(written(NAMES)) <= set(texts(distribution_chart(values)))
    shift = {"value": 0.1, "low": 0.0, "high": 0.2, "moderate": 0.1, "large": 0.3, "verdict": "none"}
    found = texts(interval_chart([shift | {"aspect": name} for name in NAMES]))
    assert set(written(NAMES)) <= set(found)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_the_numbers_of_the_confusion_matrix_are_those_of_scikit_learn(count):
    rng = np.random.default_rng(count)
    true, called = rng.integers(count, size=400), rng.integers(count, size=400)
    called = np.where(rng.uniform(size=400) < 0.8, true, called)
    films = confusion_matrix(true, called, labels=range(count))
    found = texts(confusion_chart(films, NAMES[:count]))
    cells = [text for text in found if re.fullmatch(r"\d+", text)]
    assert [int(text) for text in cells] == films.ravel().tolist()
    percents = [float(text[:-2]) for text in found if text.endswith(" %")]
    expected = 100 * confusion_matrix(true, called, labels=range(count), normalize="true").ravel()
    np.testing.assert_allclose(percents, expected, atol=0.5)
    assert all(found.count(name) == 2 for name in written(NAMES[:count]))


def test_a_share_that_is_not_the_whole_is_not_called_the_whole():
    found = texts(confusion_chart(np.array([[999, 1], [0, 0]]), ["A", "B"]))
    assert "99.9 %" in found and "0.1 %" in found and "100 %" not in found
    assert found.count("–") == 2


def test_a_confusion_matrix_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="3 classes"):
        confusion_chart(np.ones((2, 2), int), ["A", "B", "C"])


def test_letters_that_the_font_of_the_layout_lacks_have_room():
    # Eight points a letter; the text ends at its anchor, on the left of the cells or below them.
    length, names = 8 * len(CHINESE), [CHINESE, "A", "B", "C", "D"]
    for svg, places in (
        (confusion_chart(np.eye(5, dtype=int), names), 2),
        (share_chart(shares(names)), 1),
    ):
        drawing = ElementTree.fromstring(svg)
        height = float(drawing.get("height").removesuffix("pt"))
        found = [text for text in drawing.iter(TEXT) if text.text == CHINESE]
        assert len(found) == places
        for text in found:
            if "rotate(-90" in text.get("transform"):
                assert float(text.get("y")) + length <= height
            else:
                assert float(text.get("x")) - length >= 0


def test_long_names_keep_what_tells_them_apart():
    left, right = written([LEFT, RIGHT])
    assert "left lower lobe" in left and "right lower lobe" in right
    assert max(map(width_in_columns, (left, right))) <= 32


def test_names_that_would_look_the_same_are_numbered():
    assert written(["A B", "A\nB", "C"]) == ["1: A B", "2: A B", "3: C"]
    twins = ["x" * 50 + middle + "y" * 50 for middle in "ab"]
    assert len(set(written(twins))) == 2 and max(map(len, written(twins))) <= 32


def test_no_character_can_break_the_svg():
    names = ["\x00\x1b\x07", "]]>", "<!--", "\u202eright to left", "مرض"]
    assert set(written(names)) <= set(texts(confusion_chart(np.eye(5, dtype=int), names)))


def test_no_two_lines_look_the_same():
    assert len({series(place) for place in range(100)}) == 100


def test_charts_are_the_same_in_every_run():
    for draw in (lambda: score_chart(scores(NAMES), 0.5), lambda: confusion_chart(np.eye(12), NAMES)):
        assert draw() == draw()
