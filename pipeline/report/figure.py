"""How every chart is drawn: style, colours, names, and SVG text that is the same in every run."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unicodedata import east_asian_width

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.textpath import TextPath

GREY, BLUE, RED, AMBER = "#9aa5b1", "#1f5f99", "#b5482f", "#c98a1b"

# Grey, blue and red first; the others keep apart from them for colour-blind eyes too (Okabe and Ito, 2008).
_COLORS = (GREY, BLUE, RED, "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#000000")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "openmed",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    # A name may hold a dollar sign.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def svg(draw: Callable, inches: tuple[float, float] = (4.2, 3.4), rows: int = 1) -> bytes:
    """Draws a figure; `draw` gets its axes, or an array of rows of axes that share the horizontal scale."""
    with _style():
        figure, axes = plt.subplots(rows, figsize=inches, sharex=True, layout="constrained")
        draw(axes)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
        plt.close(figure)
    return stream.getvalue()


def series(position: int) -> tuple[str, str | tuple]:
    """Returns colour and line style of the line at a position from 0 on; no two positions have the same."""
    turn, color = divmod(position, len(_COLORS))
    return _COLORS[color], (0, (1 + 2 * turn, 1)) if turn else "solid"


def written(names: Sequence[str], columns: int = 32) -> list[str]:
    """Writes names, a line each, so that a chart can hold them and each can still be told from the others.

    Longer names lose letters in their middle; a Chinese letter takes two columns. They are numbered from 1 on
    where two would otherwise look the same.
    """
    lines = [_line(name) for name in names]
    short = [_shortened(line, columns) for line in lines]
    if len(set(short)) == len(short):
        return short
    return [f"{position}: {_shortened(line, columns - 4)}" for position, line in enumerate(lines, 1)]


def width_in_columns(line: str) -> int:
    """Returns how many columns of equal width a line takes."""
    return len(line) + sum(east_asian_width(letter) in "WF" for letter in line)


def width_in_inches(names: Sequence[str], points: float) -> float:
    """Returns how wide the widest name is when it is written in letters of this size."""
    with _style():
        return max(TextPath((0, 0), name, size=points).get_extents().width for name in names) / 72


def legend(
    axes: Axes, handles: Sequence, names: Sequence[str], *, above: bool = False, **options: Any
) -> None:
    """Names what is drawn: inside the axes, or above them where the names are long or `above` asks for it.

    The names are handed over with their handles, since matplotlib leaves those out of a legend that begin
    with an underscore.
    """
    names = written(names)
    width = width_in_inches(names, 8)
    if above or width > 1.5:
        columns = max(1, min(len(names), int(4.1 / (width + 0.38))))
        axes.figure.legend(handles, names, frameon=False, fontsize=8, loc="outside upper left", ncols=columns)
    else:
        axes.legend(handles, names, frameon=False, **options)


@contextmanager
def _style() -> Iterator[None]:
    with plt.rc_context(_STYLE), warnings.catch_warnings():
        # The text is stored as text: a browser has fonts for letters that matplotlib's lack, and for which
        # the layout leaves a wide box.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


def _line(name: str) -> str:
    return "".join(letter for letter in " ".join(str(name).split()) if letter.isprintable()) or "–"


def _shortened(line: str, columns: int) -> str:
    if width_in_columns(line) <= columns:
        return line
    # The ends of names tell more: "... of the left lower lobe".
    head, tail = line[: len(line) // 2], line[len(line) // 2 :]
    while width_in_columns(head) + width_in_columns(tail) >= columns:
        if 2 * width_in_columns(head) > width_in_columns(tail):
            head = head[:-1]
        else:
            tail = tail[1:]
    word, _, rest = tail.partition(" ")
    tail = rest if rest and len(word) <= 6 else tail
    return f"{head.rstrip()}…{tail.lstrip()}"
