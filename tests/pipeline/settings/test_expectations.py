"""The suite as a data steward edits it, and what it says of real and of planted manifests."""

import json

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.report.render import render
from pipeline.settings import expectations
from pipeline.settings.expectations import SUITE, check
from pipeline.settings.params import load_params
from tests.conftest import ROOT

OPTIONAL = {"sex": "F", "age_years": 4.5, "view": "AP", "year": 2015}
SUMMARY = {"films": 1, "patients": 1, "quarantined": 0, "exact_copies": 0, "classes": {}}


@pytest.fixture(scope="module")
def manifest(toy):
    return pd.read_parquet(toy / "artifacts/validate/manifest.parquet")


@pytest.fixture
def check_table(tmp_path, params):
    """Checks a table as the file that a stage would have written."""

    def run(table):
        table.to_parquet(tmp_path / "manifest.parquet")
        return check(tmp_path / "manifest.parquet", params)

    return run


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "params.yaml")


def by_column(result):
    return {item["column"]: item for item in result["results"] if item["column"] in OPTIONAL}


def test_every_entry_of_the_suite_is_understood_and_said_in_words():
    entries = yaml.safe_load(SUITE.read_text())
    assert len(entries) == 17
    for entry in entries:
        assert {"meaning", "severity", "type", "kwargs"} <= set(entry)
        assert set(entry) <= {"meaning", "severity", "type", "kwargs", "accepted_only", "optional"}
        assert entry["severity"] in ("critical", "warning") and entry["meaning"].endswith(".")
        kind = getattr(gxe, "".join(part.capitalize() for part in entry["type"].split("_")))
        assert set(entry["kwargs"]) <= set(
            kind.model_fields if hasattr(kind, "model_fields") else kind.__fields__
        )


def test_columns_that_are_not_there_are_skipped_and_it_is_said(manifest, check_table):
    result = check_table(manifest)
    assert result["success"]
    assert [item["column"] for item in result["results"] if item["skipped"]] == list(OPTIONAL)
    page = render("expectations.html", result=result, summary=SUMMARY, quarantined=[])
    for name in OPTIONAL:
        assert f"not checked: the manifest has no column {name}" in page


def test_missing_values_of_optional_columns_are_fine(manifest, check_table):
    known = manifest.assign(**OPTIONAL)
    known.loc[:20, ["sex", "view"]] = ""
    known.loc[:20, ["age_years", "year"]] = np.nan
    unknown = manifest.assign(
        sex="", view="", age_years=np.nan, year=pd.array([None] * len(manifest), "Int64")
    )
    for table in (known, unknown):
        found = by_column(check_table(table))
        assert all(item["success"] and not item["skipped"] for item in found.values())


@pytest.mark.parametrize(
    ("column", "value"), [("sex", "X"), ("age_years", 900), ("view", "KNEE"), ("year", 19)]
)
def test_an_impossible_value_is_shown_with_its_film_and_stops_nothing(manifest, check_table, column, value):
    table = manifest.assign(**OPTIONAL)
    table.loc[3, column] = value
    result = check_table(table)
    assert result["success"]
    found = by_column(result)
    assert {name for name, item in found.items() if not item["success"]} == {column}
    assert found[column]["films"] == [table.loc[3, "id"]] and found[column]["unexpected"] == 1


def test_the_films_of_an_expectation_on_accepted_ones_are_told_by_their_own_ids(manifest, check_table):
    table = manifest.copy()
    table.loc[[0, 4], "status"] = "excluded"
    table.loc[[2, 7], "sha256"] = table.loc[2, "sha256"]
    table.loc[5, "sha256"] = "no hash"
    found = {item["meaning"]: item for item in check_table(table)["results"]}
    copies = found["No film is an exact copy of another."]
    hashes = found["Every film's content is fixed by a hash."]
    assert (
        set(table.loc[[2, 7], "id"])
        <= set(copies["films"])
        <= set(table.loc[table["status"] == "accepted", "id"])
    )
    assert hashes["films"] == [table.loc[5, "id"]]
    assert copies["checked"] == hashes["checked"] == (table["status"] == "accepted").sum()
    assert found["There are films."]["checked"] == len(table)


def test_an_expectation_may_hold_for_rows_that_another_column_tells(
    manifest, check_table, tmp_path, monkeypatch
):
    table = manifest.assign(sex=manifest["label"].map({0: "F", 1: "M"}))
    entry = {"type": "expect_column_values_to_be_in_set", "meaning": "All with a finding are men."}
    kwargs = {"column": "sex", "value_set": ["M"], "condition_parser": "pandas"}
    for condition, success in (("label == 1", True), ("label == 0", False)):
        (tmp_path / "suite.yaml").write_text(
            json.dumps([entry | {"severity": "critical", "kwargs": kwargs | {"row_condition": condition}}])
        )
        monkeypatch.setattr(expectations, "SUITE", tmp_path / "suite.yaml")
        assert check_table(table)["success"] is success


def test_the_report_shows_the_expectations_and_says_where_the_page_is(toy):
    page = (toy / "artifacts/explain/vit/report.html").read_text()
    assert "<details>" in page and "artifacts/validate/expectations.html" in page
    for entry in yaml.safe_load(SUITE.read_text()):
        assert entry["meaning"].replace("'", "&#39;") in page
