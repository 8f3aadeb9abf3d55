"""What is shown in Airflow and in a terminal, as Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmed.gates.gate import Gate
    from pipeline.promotion.judgement import Judgement
    from pipeline.promotion.review import Case, Group

# What Markdown takes for more than text: an underscore only at the edge of a word, an angle bracket only
# where a tag may begin, an ampersand only before the name of a letter.
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def gate_tables(judged: "Judgement") -> str:
    """Writes the verdict on a version with all its gates."""
    lines = [f"**Version {judged.version} ({judged.architecture}): {judged.verdict}**", ""]
    lines += ["Requirements", "", *_table(judged.gates, "required"), ""]
    lines += ["Comparison with the champion", "", _plain(judged.note), ""]
    if judged.comparison:
        lines += [*_table(judged.comparison, "accepted"), ""]
    if judged.limits:
        lines += ["What this test could and could not have shown", ""]
        lines += [*(f"- {_plain(sentence)}" for sentence in judged.limits), ""]
    if judged.review:
        lines += [f"The page to decide on, with films and heat maps: {_link(judged.review)}", ""]
    lines.append(f"Report with films and heat maps: {_link(judged.report)}")
    return "\n".join(lines) + "\n"


def film_tables(
    groups: "Sequence[Group]", addresses: Mapping[tuple[str, str], str], *, maps_trusted: bool
) -> str:
    """Writes how many films there are of each group, and those whose pictures a browser finds.

    The addresses are by film id and caption; films without are left to the page.
    """
    lines = []
    if addresses and not maps_trusted:
        lines += ["**Do not rely on the heat maps of this version:** they did not pass their checks.", ""]
    for group in groups:
        lines += [f"**{_plain(group.title)}: {group.total}**", ""]
        rows = [row for case in group.shown if (row := _pictured(case, addresses))]
        if rows:
            captions = [caption for caption, _ in group.shown[0].pictures]
            lines += [_row(map(_plain, captions)), _row(["---"] * len(captions)), *rows, ""]
    return "\n".join(lines)


def _pictured(case: "Case", addresses: Mapping[tuple[str, str], str]) -> str | None:
    pictures = [(caption, addresses.get((case.id, caption))) for caption, _ in case.pictures]
    if not all(address for _, address in pictures):
        return None
    # As many as there are pictures: without a champion, two.
    texts = (f"{_plain(case.label)}, film {case.id}", _shown(case.score), _shown(case.score_champion))
    return _row(
        [
            f"![{_plain(caption)}]({address}) {text}"
            for (caption, address), text in zip(pictures, texts, strict=False)
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Writes any text on one line on which Markdown finds nothing but text."""
    return _MARKUP.sub(lambda match: "\\" + match[0], " ".join(str(text).split()))


def _link(address: str | None) -> str:
    return f"[{address}]({address})" if str(address).startswith("http") else address or "none is stored"


def _table(gates: "Sequence[Gate]", limit: str) -> list[str]:
    rows = [f"| gate | value | interval | {limit} | verdict | meaning |", "|---|---|---|---|---|---|"]
    for gate in gates:
        interval = f"{_shown(gate.low)} to {_shown(gate.high)}" if isfinite(gate.low) else "–"
        numbers = [_shown(gate.value), interval, _shown(gate.floor)]
        rows.append(_row([_plain(gate.name), *numbers, gate.verdict, _plain(gate.reason)]))
    return rows


def _shown(number: float | None) -> str:
    if number is None or not isfinite(number):
        return "–"
    return str(number) if isinstance(number, int) else f"{number:.3f}"
