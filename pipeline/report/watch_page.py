"""The page that shows how the champion does on new films."""

from typing import Any

import pandas as pd

from pipeline.report.charts import period_chart, score_chart
from pipeline.report.drift_page import interval_picture, measurement_charts
from pipeline.report.render import picture, render


def build_watch_page(result: dict[str, Any], reference: pd.DataFrame | None, films: pd.DataFrame) -> str:
    """Builds the page of what `pipeline.monitoring.watch` returns and the judged films, as the log has them.

    The reference are the films that the champion was trained on; None when they were not stored.
    """
    charts = {}
    for name, title in (("auc", "AUC"), ("sensitivity", "Sensitivity"), ("specificity", "Specificity")):
        if result["periods"]:
            charts[f"{title} of each period"] = period_chart(result["periods"], name)
    if len(films):
        scores = {"these films": films["score"].to_numpy()}
        charts["Probabilities; the line is the threshold"] = score_chart(scores, films["threshold"].iloc[-1])
    if reference is not None and len(films):
        both = {f"films of version {result['version']}": reference, "these films": films}
        charts |= measurement_charts(both)
    return render(
        "watch.html",
        result=result,
        drift=interval_picture(result["shifts"]),
        charts={title: picture(svg, "svg+xml") for title, svg in charts.items()},
    )
