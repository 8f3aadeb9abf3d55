"""The page that shows how far new films lie from those of the champion."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.report.charts import distribution_chart, interval_chart, share_chart
from pipeline.report.render import picture, render

SCOPES = {"added": "The added films alone", "whole": "The whole new version"}
_MEASUREMENTS = {
    "Brightness: mean of the grey levels of a film": lambda films: films["mean"],
    "Contrast: standard deviation of its grey levels": lambda films: films["std"],
    "Resolution: shorter side in pixels": lambda films: np.minimum(films["width"], films["height"]),
}


def build_drift_page(result: dict[str, Any], films: dict[str, pd.DataFrame]) -> str:
    """Builds the page of what `pipeline.monitoring.drift.check_drift` returns.

    The films of each set are as from `openmed.dataset.profile`, the reference first; empty when nothing was
    compared.
    """
    order = sorted(result["comparisons"], key=lambda name: name != result["judged"])
    comparisons = {
        name: result["comparisons"][name] | {"chart": interval_picture(result["comparisons"][name]["shifts"])}
        for name in order
    }
    shares = {name: table["label"].value_counts(normalize=True) for name, table in films.items()}
    charts = {"Films of each class": share_chart(shares)} | measurement_charts(films) if films else {}
    return render(
        "drift.html",
        result=result,
        comparisons=comparisons,
        scopes=SCOPES,
        charts={title: picture(svg, "svg+xml") for title, svg in charts.items()},
    )


def measurement_charts(films: dict[str, pd.DataFrame]) -> dict[str, bytes]:
    """Draws how measurements are distributed over sets of films; none where a set was not measured."""
    if not all({"mean", "std", "width", "height"} <= set(table.columns) for table in films.values()):
        return {}
    return {
        title: distribution_chart(
            {name: measure(table).dropna().to_numpy(float) for name, table in films.items()}
        )
        for title, measure in _MEASUREMENTS.items()
    }


def interval_picture(shifts: list[dict[str, Any]]) -> str:
    """Draws the shifts that could be measured; nothing where none could."""
    measured = [shift for shift in shifts if shift["value"] is not None]
    return picture(interval_chart(measured), "svg+xml") if measured else ""
