import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pipeline.report.drift_page import build_drift_page
from pipeline.report.figure import written
from tests.pipeline.report.test_charts import NAMES, texts

pytestmark = pytest.mark.filterwarnings("error")


class Cells(HTMLParser):
    """Texts of the table cells of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self._inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = tag == "td"
        self.found += [""] * self._inside

    def handle_data(self, data):
        if self._inside:
            self.found[-1] += data


def films(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    measured = {name: rng.uniform(40, 200, size=240) for name in ("mean", "std", "width", "height")}
    return pd.DataFrame({"label": np.repeat(NAMES, 20), **measured})


def test_a_page_of_twelve_classes_holds_each_name_in_its_chart_and_its_table():
    difference = {"value": 0.01, "low": -0.02, "high": 0.03}
    share = {"reference": 0.08, "new": 0.09, "difference": difference}
    shift = {"aspect": "class share", "unit": "half the sum", "reason": "", "verdict": "none"}
    shift |= {"value": 0.02, "low": 0.01, "high": 0.03, "moderate": 0.1, "large": 0.2}
    compared = {"verdict": "none", "films": 240, "patients": 240}
    compared |= {"shifts": [shift | {"shares": dict.fromkeys(NAMES, share)}]}
    result = {"verdict": "none", "sentence": "No shift.", "accepted": False, "judged": "whole"}
    result |= {"champion": "1", "comparisons": {"whole": compared}}
    page = build_drift_page(result, {"version 1": films(1), "version 2": films(2)})

    charts = [base64.b64decode(each) for each in re.findall(r"svg\+xml;base64,([\w+/=]+)", page)]
    assert len(charts) == 5 and set(written(NAMES, 28)) <= set(texts(charts[0]))
    assert set(NAMES) <= set(Cells(page).found)
