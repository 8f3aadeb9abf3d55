"""Great Expectations on the manifest table, with the suite in expectations.yaml."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.settings.params import Params
from pipeline.settings.yaml_file import read_yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

SUITE = Path(__file__).with_name("expectations.yaml")


def check(manifest: pd.DataFrame, params: Params) -> dict[str, Any]:
    """Checks a manifest.

    Returns:
        success (bool: no critical expectation failed) and results, one each: type, column,
        meaning, severity, success, skipped (why it was not checked; else empty), checked, unexpected,
        films (ids of the first offending rows).
    """
    definitions = read_yaml(SUITE)
    values = {
        "$labels": list(range(len(params.task.classes))),
        "$accepted_share": 1 - params.validate_.max_quarantined_share,
        "$min_side_px": params.validate_.min_side_px,
    }
    for definition in definitions:
        definition["kwargs"] = {
            k: values.get(v, v) if isinstance(v, str) else v for k, v in definition["kwargs"].items()
        }
    accepted = manifest["status"] == "accepted"
    results: list[dict[str, Any]] = [{}] * len(definitions)
    for accepted_only in (False, True):
        chosen = []
        for i, item in enumerate(definitions):
            if item.get("optional", False) and item["kwargs"]["column"] not in manifest.columns:
                results[i] = _skipped(item)
            elif item.get("accepted_only", False) == accepted_only:
                chosen.append(i)
        # Great Expectations hashes and copies every column of a table, whether it is checked or not.
        used = {definitions[i]["kwargs"].get("column") for i in chosen}
        table = manifest[[name for name in manifest.columns if name in used]]
        ids = manifest["id"]
        if accepted_only:
            table, ids = (all_of[accepted].reset_index(drop=True) for all_of in (table, ids))
        for i, raw in zip(chosen, _run(table, [definitions[i] for i in chosen]), strict=True):
            results[i] = _result(definitions[i], raw, ids)
    failed = [item for item in results if item["severity"] == "critical" and not item["success"]]
    return {"success": not failed, "results": results}


def _run(table: pd.DataFrame, definitions: list[dict]) -> list[dict]:
    """Runs one suite on one table; results come in the order of the definitions."""
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("films")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    expectations = [
        {"type": item["type"], "kwargs": item["kwargs"], "meta": {"position": position}}
        for position, item in enumerate(definitions)
    ]
    suite = gx.ExpectationSuite(name="manifest", expectations=expectations)
    raw = batch.validate(suite, result_format="COMPLETE").to_json_dict()["results"]
    return sorted(raw, key=lambda item: item["expectation_config"]["meta"]["position"])


def _skipped(definition: dict) -> dict[str, Any]:
    column = definition["kwargs"]["column"]
    outcome = {"success": True, "skipped": f"the manifest has no column {column}", "checked": 0}
    about = {name: definition[name] for name in ("type", "meaning", "severity")}
    return {**about, "column": column, **outcome, "unexpected": 0, "films": [], "error": None}


def _result(definition: dict, raw: dict, ids: pd.Series) -> dict[str, Any]:
    outcome = raw.get("result") or {}
    rows = outcome.get("unexpected_index_list") or []
    return {
        "type": definition["type"],
        "column": definition["kwargs"].get("column"),
        "meaning": definition["meaning"],
        "severity": definition["severity"],
        "success": bool(raw["success"]),
        "skipped": "",
        "checked": int(outcome.get("element_count") or len(ids)),
        "unexpected": int(outcome.get("unexpected_count") or 0),
        "films": [str(ids.iloc[row]) for row in rows[:10]],
        "error": (raw.get("exception_info") or {}).get("exception_message"),
    }
