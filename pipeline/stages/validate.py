"""Measures every film, quarantines unusable ones and holds the manifest against expectations."""

import tempfile

import pandas as pd
import pyarrow as pa

from openmed.cache.film_store import FilmStore
from openmed.dataset.decisions import apply_decisions, read_decisions
from openmed.dataset.manifest import judge_films, read_films, repeated, write_manifest
from openmed.errors import BadInput
from openmed.files import read_table, write_json, write_text
from openmed.measurement.measure import DETAILS
from openmed.memory import give_back
from pipeline.report.render import render
from pipeline.settings.artifacts import DATA, DECISIONS, MANIFEST, film_store_folder, folder
from pipeline.settings.expectations import check
from pipeline.settings.params import Params
from pipeline.tools.terminal import progress


def run(params: Params) -> None:
    """Reads data/ and writes the manifest, the expectations' results and their page.

    Raises:
        BadInput: A critical expectation failed.
    """
    decided = _write_manifest(params)
    give_back()
    columns = read_table(MANIFEST, ["id", "sha256", "label", "patient", "status", "reason"])
    summary = _summary(columns, params.task.classes) | {"decisions": decided}
    bad = columns.loc[columns["status"] == "quarantined", ["id", "reason"]].to_dict("records")
    del columns
    result = check(MANIFEST, params)
    target = folder("validate")
    write_json(target / "summary.json", summary)
    write_json(target / "expectations.json", result)
    page = render("expectations.html", result=result, summary=summary, quarantined=bad[:200])
    write_text(target / "expectations.html", page)
    print(
        f"validate: {summary['films']} films of {summary['patients']} patients, "
        f"{summary['quarantined']} quarantined; reviewers excluded {decided['excluded']}, "
        f"relabelled {decided['relabelled']}, kept {decided['kept']}"
    )
    _stop_on_failure(result)


def _write_manifest(params: Params) -> dict[str, int]:
    """Measures the films, writes the manifest so that nobody holds it in memory, and counts the decisions."""
    classes, smallest = params.task.classes, params.validate_.min_side_px
    films, decisions = read_films(DATA, classes), read_decisions(DECISIONS, classes)
    MANIFEST.parent.mkdir(parents=True, exist_ok=True)
    # What only the finished file needs waits on the disk; it has no name and goes with the process.
    with tempfile.TemporaryFile(dir=MANIFEST.parent) as details:
        ticking = progress(len(films), "validate")
        with (
            FilmStore(film_store_folder()) as store,
            ticking as tick,
            pa.ipc.new_stream(details, DETAILS) as keep,
        ):
            manifest = judge_films(DATA, films, store, keep.write_table, min_side_px=smallest, tick=tick)
        del films
        give_back()
        manifest, decided = apply_decisions(manifest, decisions, classes, DECISIONS)
        details.seek(0)
        write_manifest(MANIFEST, manifest, pa.ipc.open_stream(details))
    return decided


def _summary(manifest: pd.DataFrame, classes: tuple[str, ...]) -> dict:
    accepted = manifest.loc[manifest["status"] == "accepted", ["sha256", "label"]]
    return {
        "films": len(manifest),
        "accepted": len(accepted),
        "quarantined": int((manifest["status"] == "quarantined").sum()),
        "patients": int(manifest["patient"].nunique()),
        "exact_copies": int(repeated(accepted["sha256"]).sum()),
        "classes": {name: int((accepted["label"] == index).sum()) for index, name in enumerate(classes)},
    }


def _stop_on_failure(result: dict) -> None:
    failed = [item for item in result["results"] if not item["success"] and item["severity"] == "critical"]
    if failed:
        first = failed[0]
        films = f" (films {', '.join(first['films'][:5])})" if first["films"] else ""
        raise BadInput(
            f'{len(failed)} critical expectation(s) failed; the first: "{first["meaning"]}" does not hold '
            f"for {first['unexpected'] or 'the table with'} of {first['checked']} rows{films}: "
            "see artifacts/validate/expectations.html"
        )
