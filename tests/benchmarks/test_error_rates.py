"""A small run of benchmarks/error_rates.py: the gates' own code on simulated retrainings."""

import importlib.util
from pathlib import Path

import pytest

from openmed.gates.gate import PASS

_FILE = Path(__file__).parents[2] / "benchmarks" / "error_rates.py"


@pytest.fixture(scope="module")
def rates():
    spec = importlib.util.spec_from_file_location("error_rates", _FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def passed(rates, times, films, auc, **more):
    judges = rates.Judges(rates.Simulation(3), rates.COHORTS[0])
    return sum(judges.verdict(films, auc, **more) == PASS for _ in range(times))


def test_production_lets_an_equal_challenger_pass_and_no_shuffled_or_worse_one(rates):
    good = rates.GOOD["auc"]
    assert passed(rates, 20, 2000, good) >= 18
    assert passed(rates, 20, 600, good) >= 12
    assert passed(rates, 10, 600, 0.5, shuffled=True) == 0
    assert passed(rates, 20, 2000, good, shift=0.05) <= 1
    assert passed(rates, 20, 2000, rates.auc_where(0.90, 0.90)) <= 1


def test_the_simulated_champion_has_the_operating_point_that_is_claimed(rates):
    good, simulation = rates.GOOD, rates.Simulation(0)
    labels, patients = simulation.cohort(20_000, 20_000, rates.COHORTS[0])
    (scores,) = simulation.scores(labels, patients, rates.COHORTS[0], [good["auc"]])
    threshold = rates.threshold_for(good["sensitivity"], good["auc"])
    assert (scores[labels == 1] >= threshold).mean() == pytest.approx(good["sensitivity"], abs=0.005)
    assert (scores[labels == 0] < threshold).mean() == pytest.approx(good["specificity"], abs=0.01)
    assert rates.sensitivity_at(threshold, good["auc"]) == pytest.approx(good["sensitivity"])


def test_each_section_prints_a_row_for_each_promise(rates):
    for name in ("margins", "looks", "transfer"):
        rows, _ = rates.SECTIONS[name]
        found = [str(row) for row in rows(rates.Simulation(1), 2)]
        assert found and all(row.endswith(("PASS", "FAIL")) for row in found)
