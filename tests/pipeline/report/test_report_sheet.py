from html.parser import HTMLParser

from pipeline.report.render import render
from pipeline.stages.triage import COLUMNS, MEANINGS
from tests.pipeline.report.test_charts import NAMES


class Choices(HTMLParser):
    """Labels that a sheet lets a person choose, as a browser hands them on."""

    def __init__(self, page: str):
        super().__init__()
        self.values = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "option":
            self.values.append(dict(attrs).get("value"))


def test_every_class_can_be_chosen_under_its_exact_name():
    film = {"rank": 1, "id": "film", "sha256": "0" * 64, "label": "NORMAL", "suggested_label": NAMES[0]}
    card = film | {"picture": "data:,", "scores": {"label": 0.9}, "reasons": ["label"], "others": NAMES}
    summary = {"ranked": 1, "suspicious": 1, "decided": 0, "estimated_label_errors": 1}
    page = render(
        "sheet.html",
        cards=[card],
        summary=summary,
        meanings=MEANINGS,
        columns=COLUMNS,
        decisions=[],
        classes=NAMES,
    )
    assert Choices(page).values == NAMES
