"""Great Expectations on the manifest table, with the suite in expectations.yaml."""

import gc
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from openmed.files import read_table
from openmed.memory import give_back
from pipeline.settings.params import Params
from pipeline.settings.yaml_file import read_yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import great_expectations as gx
    import great_expectations.execution_engine.pandas_execution_engine as engine
    from great_expectations.data_context.types.base import ProgressBarsConfig

# Of larger tables no fingerprint is taken. Nobody reads it, and it takes more memory than the table.
engine.HASH_THRESHOLD = 0
SUITE = Path(__file__).with_name("expectations.yaml")


def check(manifest: Path, params: Params) -> dict[str, Any]:
    """Checks a manifest, a Parquet file, column by column to spare memory.

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
    columns = pq.read_schema(manifest).names
    results: list[dict[str, Any]] = [{}] * len(definitions)
    together: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    for i, item in enumerate(definitions):
        column = item["kwargs"].get("column")
        if item.get("optional", False) and column not in columns:
            results[i] = _skipped(item)
        else:
            condition = set(re.findall(r"\w+", item["kwargs"].get("row_condition") or ""))
            read = tuple(name for name in columns if name == column or name in condition) or ("id",)
            together.setdefault((read, item.get("accepted_only", False)), []).append(i)
    gc.freeze()  # so that collecting looks at nothing but what Great Expectations leaves behind
    try:
        for (read, accepted_only), chosen in together.items():
            found = _check_columns(manifest, read, accepted_only, [definitions[i] for i in chosen])
            for i, result in zip(chosen, found, strict=True):
                results[i] = result
            gc.collect()
            give_back()
    finally:
        gc.unfreeze()
    failed = [item for item in results if item["severity"] == "critical" and not item["success"]]
    return {"success": not failed, "results": results}


def _check_columns(
    manifest: Path, columns: tuple[str, ...], accepted_only: bool, definitions: list[dict]
) -> list[dict]:
    films = [("status", "==", "accepted")] if accepted_only else None
    table = _objects(read_table(manifest, columns, filters=films))
    give_back()
    found = _run(table, definitions)
    ids = read_table(manifest, ["id"], filters=films)["id"] if any(map(_rows, found)) else table.index
    return [_result(definition, raw, ids) for definition, raw in zip(definitions, found, strict=True)]


def _objects(table: pd.DataFrame) -> pd.DataFrame:
    """Makes texts Python's: Great Expectations would make them again and again of Arrow's."""
    texts = [name for name in table if pd.api.types.is_string_dtype(table[name])]
    return table.assign(**{name: pd.Series(list(table[name]), dtype=object) for name in texts})


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


def _rows(raw: dict) -> list[int]:
    """The rows that an expectation does not hold for."""
    return (raw.get("result") or {}).get("unexpected_index_list") or []


def _result(definition: dict, raw: dict, ids: pd.Series | pd.Index) -> dict[str, Any]:
    outcome = raw.get("result") or {}
    return {
        "type": definition["type"],
        "column": definition["kwargs"].get("column"),
        "meaning": definition["meaning"],
        "severity": definition["severity"],
        "success": bool(raw["success"]),
        "skipped": "",
        "checked": int(outcome.get("element_count") or len(ids)),
        "unexpected": int(outcome.get("unexpected_count") or 0),
        "films": [ids[row] for row in _rows(raw)[:10]],
        "error": (raw.get("exception_info") or {}).get("exception_message"),
    }
