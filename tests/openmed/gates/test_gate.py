import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmed.errors import BadInput
from openmed.files import read_json, write_json
from openmed.gates.gate import (
    FAIL,
    INSUFFICIENT,
    OUTSIDE_PLAN,
    PASS,
    Gate,
    gates_to_json,
    judge,
    judge_difference,
    worst_verdict,
)
from openmed.metrics.intervals import Interval, judged_intervals, paired_difference

NAN = math.nan
anything = st.floats(-1, 1) | st.just(NAN)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.97, 0.95, 0.98), PASS),
        (Interval(0.95, 0.95, 0.95), PASS),
        (Interval(0.97, 0.949, 0.98), INSUFFICIENT),
        (Interval(0.95, 0.90, 0.98), INSUFFICIENT),
        (Interval(0.949, 0.93, 0.96), FAIL),
        (Interval(0.94, 0.96, 0.97), FAIL),
        (Interval(NAN, NAN, NAN), FAIL),
        (Interval(0.99, NAN, NAN), FAIL),
        (Interval(NAN, 0.99, 1.0), FAIL),
    ],
)
def test_the_three_verdicts(interval, verdict):
    result, (gate,) = judge({"sensitivity": interval}, {"sensitivity": 0.95})
    assert result == gate.verdict == verdict


@settings(deadline=None)
@given(anything, anything, anything, st.floats(0, 1))
def test_no_nan_and_nothing_below_its_floor_passes(value, low, high, floor):
    for verdict, (gate,) in (
        judge({"auc": Interval(value, low, high)}, {"auc": floor}),
        judge_difference({"auc": Interval(value, low, high)}, {"auc": floor}),
    ):
        if verdict == PASS:
            assert value >= gate.floor and low >= gate.floor
        if math.isnan(value) or math.isnan(low):
            assert verdict == FAIL
            assert "could not be measured" in gate.reason
        assert gate.reason.endswith(".") and "nan" not in gate.reason


@pytest.mark.parametrize(
    ("lows", "verdict"),
    [((0.9, 0.9), PASS), ((0.9, 0.7), INSUFFICIENT), ((0.7, None), FAIL), ((0.9, None), FAIL)],
)
def test_the_worst_gate_decides(lows, verdict):
    intervals = {
        name: Interval(0.5, 0.4, 0.6) if low is None else Interval(0.95, low, 0.99)
        for name, low in zip(("auc", "specificity"), lows, strict=True)
    }
    assert judge(intervals, {"auc": 0.8, "specificity": 0.8})[0] == verdict


def test_the_worst_verdict_is_the_overall_one():
    order = (FAIL, OUTSIDE_PLAN, INSUFFICIENT, PASS)
    for place, verdict in enumerate(order):
        assert worst_verdict(order[place:][::-1]) == verdict


def test_nothing_passes_unexamined():
    for judged in (lambda: judge({}, {}), lambda: judge_difference({}, {}), lambda: worst_verdict([])):
        with pytest.raises(BadInput, match="no gate is set"):
            judged()


@pytest.mark.parametrize(
    ("name", "floor", "message"),
    [
        ("brier", 0.1, "a floor on 'brier' is not possible; choose from auc, sensitivity"),
        ("f1", 0.9, "a floor on 'f1' is not possible"),
        ("ppv", 0.9, "'ppv', but it was not measured"),
        ("auc", NAN, "the floor on 'auc' must be between 0 and 1, found nan"),
        ("auc", 95, "found 95"),
    ],
)
def test_a_floor_that_cannot_be_judged_is_refused(name, floor, message):
    intervals = {key: Interval(0.9, 0.8, 1.0) for key in ("auc", "brier", "f1")}
    with pytest.raises(BadInput, match=message):
        judge(intervals, {name: floor})


@pytest.mark.parametrize(
    ("name", "margin", "message"),
    [("accuracy", 0.1, "a margin on 'accuracy' is not possible"), ("auc", -0.1, "found -0.1")],
)
def test_a_margin_that_cannot_be_judged_is_refused(name, margin, message):
    with pytest.raises(BadInput, match=message):
        judge_difference({"auc": Interval(0.0, 0.0, 0.0)}, {name: margin})


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.001, -0.01, 0.02), PASS),
        (Interval(-0.005, -0.02, 0.02), PASS),
        (Interval(0.0, -0.021, 0.02), INSUFFICIENT),
        (Interval(-0.03, -0.05, 0.0), FAIL),
        (Interval(NAN, NAN, NAN), FAIL),
    ],
)
def test_not_worse_than_the_champion_by_more_than_the_margin(interval, verdict):
    result, (gate,) = judge_difference({"auc": interval}, {"auc": 0.02})
    assert result == gate.verdict == verdict
    assert (gate.name, gate.floor) == ("auc vs champion", -0.02)


def test_an_identical_model_passes_without_any_margin():
    verdict, (gate,) = judge_difference({"auc": Interval(0.0, 0.0, 0.0)}, {"auc": 0})
    assert verdict == PASS
    assert math.copysign(1, gate.floor) == 1


def test_the_reasons_read_as_plain_sentences():
    def reason(value, low, floor=0.95, name="sensitivity"):
        return judge({name: Interval(value, low, 1.0)}, {name: floor})[1][0].reason

    assert reason(0.98123, 0.96) == (
        "Sensitivity is 0.981 and, with its uncertainty, at least 0.960, which meets the required 0.950."
    )
    assert reason(0.97, 0.91, name="auc") == (
        "AUC is 0.970, but could be as low as 0.910: too few films to be sure of the required 0.950."
    )
    assert reason(0.9, 0.8, name="ppv") == "PPV is 0.900, below the required 0.950."
    # Rounded to three decimals this would say that 0.950 is below 0.950.
    assert reason(0.94996, 0.9, name="npv") == "NPV is 0.94996, below the required 0.95000."
    gate = judge_difference({"auc": Interval(-0.04, -0.06, 0.0)}, {"auc": 0.02})[1][0]
    assert gate.reason == "AUC vs champion: the difference is -0.040, below the accepted -0.020."


def test_gates_are_written_as_json_with_nan_as_null(tmp_path):
    intervals = {"auc": Interval(np.float64(0.97), 0.95, 0.98), "specificity": Interval(NAN, NAN, NAN)}
    gates = judge(intervals, {"auc": 0.9, "specificity": 0.85})[1]
    content = gates_to_json(gates)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    write_json(tmp_path / "gates.json", content)
    written = read_json(tmp_path / "gates.json")
    assert written["verdict"] == FAIL
    assert [list(gate) for gate in written["gates"]] == [
        ["name", "value", "low", "high", "floor", "verdict", "reason"]
    ] * 2
    assert written["gates"][0]["value"] == 0.97
    assert written["gates"][1]["value"] is None
    assert [Gate.from_json(gate).to_json() for gate in written["gates"]] == written["gates"]
    counted = Gate.plain("looks", PASS, "", 2)
    assert list(Gate(**vars(counted) | {"finding": "FRACTURE"}).to_json())[:3] == ["finding", "name", "value"]
    assert (counted.to_json()["value"], counted.to_json()["floor"]) == (2, None)


def measured(films, patients_with_errors=0):
    labels = np.repeat([0, 1], films)
    scores = np.where(labels == 1, 0.9, 0.1)
    scores[:patients_with_errors] = 0.8
    return labels, scores, np.arange(2 * films)


def test_a_perfect_model_needs_enough_films_to_pass():
    floors = {"sensitivity": 0.95, "specificity": 0.85, "auc": 0.95}
    few = judge(judged_intervals(*measured(20), 0.5), floors)
    many = judge(judged_intervals(*measured(200), 0.5), floors)
    assert [few[0], many[0]] == [INSUFFICIENT, PASS]


def test_a_worse_model_fails_against_the_champion():
    labels, worse, patients = measured(200, patients_with_errors=30)
    champion = measured(200)[1]
    difference = paired_difference(labels, worse, champion, patients, 0.5, 0.5)
    verdict, gates = judge_difference(difference, {"sensitivity": 0.02, "specificity": 0.02})
    assert verdict == FAIL
    assert [gate.verdict for gate in gates] == [PASS, FAIL]
