from dataclasses import fields, replace

import pytest
from markdown_it import MarkdownIt

from openmed.gates.gate import Gate
from pipeline.promotion.judgement import Judgement
from pipeline.promotion.markdown import film_tables, gate_tables
from pipeline.promotion.review import Case, Group

NAMES = [
    "A_B",
    "_hidden_",
    "$x$",
    "50 % & <b>",
    "a|b|c",
    "two\nlines",
    "**bold**",
    "`code`",
    "[x](y)",
    "&lt;",
]


def cells(markdown: str) -> list[list[str]]:
    """Texts of the rows of all tables, as CommonMark reads them; anything else goes by its type."""
    rows, inside = [], False
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and inside:
            plain = ("text", "text_special")
            rows[-1].append("".join(c.content if c.type in plain else c.type for c in token.children))
        inside = token.type in ("th_open", "td_open")
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_keeps_its_row_whatever_the_finding_is_called(name):
    gate = Gate(f"sensitivity {name}", 0.9, 0.8, 0.95, 0.7, "PASS", f"0.9 < 1 for {name}")
    blank = Judgement(**dict.fromkeys(field.name for field in fields(Judgement)))
    note = f"Nothing to compare for {name}."
    judged = replace(blank, gates=[gate], comparison=[], note=note, limits=[name])
    name = " ".join(name.split())
    expected = [f"sensitivity {name}", "0.900", "0.800 to 0.950", "0.700", "PASS", f"0.9 < 1 for {name}"]
    assert cells(gate_tables(judged))[1] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_film_keeps_its_row_whatever_its_class_is_called(name):
    case = Case("f1", name, 0.9, None, (("film", b""), ("heat map", b"")))
    addresses = {("f1", "film"): "http://a/1.jpg", ("f1", "heat map"): "http://a/2.jpg"}
    found = cells(film_tables([Group("Missed", "miss", [case], [])], addresses, maps_trusted=True))
    assert found == [["film", "heat map"], [f"image {' '.join(name.split())}, film f1", "image 0.900"]]
