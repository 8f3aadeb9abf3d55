"""What MLflow shows of further findings, whatever these are called."""

import pytest
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from pipeline.registry.evidence import numbers, settings

ODD = (
    "VIRUS",
    "test",
    "validation",
    "a/b",
    "a_b",
    "a_b 1",
    "../x",
    ". .",
    "x" * 400,
    "q\"u,(o)t'e",
    "Pneumonie é",
)
AUC = {"value": 0.5, "low": 0.25, "high": 0.75}


@pytest.fixture
def shown(tmp_path):
    """Name -> value of a first finding and of further ones, each with another AUC."""
    findings = {name: {"test": {"auc": AUC | {"value": place / 100}}} for place, name in enumerate(ODD)}
    metrics = {"validation": {"auc": 0.9}, "test": {"auc": AUC}, "findings": findings}
    return {name: value for name, _, value in numbers(metrics, tmp_path / "history.csv")}


def test_the_numbers_of_every_finding_are_logged_beside_each_other(shown):
    values = [value for name, value in shown.items() if name.endswith("_auc")]
    assert sorted(values) == sorted([0.9, 0.5, *(place / 100 for place in range(len(ODD)))])
    assert shown["test_auc"] == 0.5 and shown["VIRUS_auc"] == 0


def test_mlflow_takes_the_names_of_all_numbers_and_settings(shown):
    findings = {name: {"floors": {"auc": place / 100}} for place, name in enumerate(ODD)}
    found = settings({"evaluate": {"findings": findings, "confidence": 0.95}}, "vit")
    assert len(found) == len(ODD) + 1 and found["evaluate.findings.VIRUS.floors.auc"] == "0.0"
    for name in shown:
        _validate_metric_name(name)
    for name in found:
        _validate_param_name(name)
        assert len(name) <= 250
