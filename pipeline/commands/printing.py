"""How the commands print: one JSON object, or a table for people."""

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import typer

from openmed.intake import identity
from pipeline.settings.plain_text import plain

Json = Annotated[bool, typer.Option("--json", help="Print machine-readable output only.")]


PatientsFrom = Annotated[
    identity.PatientsFrom,
    typer.Option(
        help="What names the patient of a film: its header, the folder below the class folder, its file "
        "name, nothing (each film is a patient of its own), the list; auto: what is recognised."
    ),
]


def print_json(content: Any) -> None:
    """Prints content as one line of JSON."""
    print(json.dumps(content))


def teller(as_json: bool) -> Callable[[str], None]:
    """Returns what tells people how work goes: on stderr where stdout is for JSON."""
    return partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)


def print_left_out(skipped: int, withheld: Mapping[str, int]) -> None:
    """Says what an import left out: files that are no films, and reason -> films that kept nothing else."""
    if skipped:
        print(f"{skipped} files were passed over: they are not films")
    for reason, count in withheld.items():
        print(f"{count} of the films: nothing is kept but the reason, {reason}")


def joined(counts: Mapping[str, int]) -> str:
    """Returns name -> count in a line."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def number(value: float | None) -> str:
    """Returns a measured value as people read it."""
    return "not computable" if value is None or value != value else f"{value:.3f}"


def cell(value: Any) -> str:
    """Returns a value as a cell of a table, on one line; None is empty."""
    if isinstance(value, list | tuple):
        return plain(", ".join(value))
    return f"{value:.3f}" if isinstance(value, float) else plain(str(value if value is not None else ""))


def print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    """Prints rows of cells in columns."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
