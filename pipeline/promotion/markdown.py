"""What is shown in Airflow and in a terminal, as Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.promotion.review import Case, Group

# What Markdown takes for more than text: an underscore only at the edge of a word, an angle bracket only
# where a tag may begin, an ampersand only before the name of a letter.
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def gate_tables(judged: Mapping[str, Any]) -> str:
    """Writes the verdict on a version with all its gates.

    Args:
        judged: What `pipeline.promotion.actions.gate` says, but for this text.
    """
    lines = [f"**Version {judged['version']} ({judged['architecture']}): {judged['verdict']}**", ""]
    lines += ["Requirements", "", *_table(judged["gates"], "required"), ""]
    lines += ["Comparison with the champion", "", _plain(judged["note"]), ""]
    if judged["comparison"]:
        lines += [*_table(judged["comparison"], "accepted"), ""]
    if judged["limits"]:
        lines += ["What this test could and could not have shown", ""]
        lines += [*(f"- {_plain(sentence)}" for sentence in judged["limits"]), ""]
    if judged["review"]:
        lines += [f"The page to decide on, with films and heat maps: {_link(judged['review'])}", ""]
    lines.append(f"Report with films and heat maps: {_link(judged['report'])}")
    return "\n".join(lines) + "\n"


def film_tables(
    groups: "Sequence[Group]", addresses: Mapping[tuple[str, str], str], *, maps_trusted: bool
) -> str:
    """Writes how many films there are of each group, and those whose pictures a browser finds.

    Args:
        groups: Of the review.
        addresses: Film id and caption -> where a browser finds the picture; other films are left to the page.
        maps_trusted: Whether the heat maps of the version passed their checks.
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
    found = [(caption, addresses.get((case.id, caption))) for caption, _ in case.pictures]
    if not all(address for _, address in found):
        return None
    # As many as there are pictures: without a champion, two.
    said = (f"{_plain(case.label)}, film {case.id}", _shown(case.score), _shown(case.score_champion))
    return _row(
        [
            f"![{_plain(caption)}]({address}) {text}"
            for (caption, address), text in zip(found, said, strict=False)
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Writes any text on one line on which Markdown finds nothing but text."""
    return _MARKUP.sub(lambda found: "\\" + found[0], " ".join(str(text).split()))


def _link(address: str | None) -> str:
    return f"[{address}]({address})" if str(address).startswith("http") else address or "none is stored"


def _table(gates: Sequence[Mapping[str, Any]], limit: str) -> list[str]:
    rows = [f"| gate | value | interval | {limit} | verdict | meaning |", "|---|---|---|---|---|---|"]
    for found in gates:
        value, low, high, floor = (_shown(found[key]) for key in ("value", "low", "high", "floor"))
        interval = f"{low} to {high}" if found["low"] is not None else "–"
        name, reason = _plain(found["name"]), _plain(found["reason"])
        rows.append(_row([name, value, interval, floor, found["verdict"], reason]))
    return rows


def _shown(number: float | None) -> str:
    if number is None:
        return "–"
    return str(number) if isinstance(number, int) else f"{number:.3f}"
