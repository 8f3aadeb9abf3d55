"""Numbers and fields that come from a file, held against what they may be before they are used."""

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from openmed.errors import BadInput


def stored_number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns a finite number; BadInput where it is out of range or none, as true and "0.5" are."""
    # Whole numbers of a file may be too large for a float.
    if not _is_a(value, Real) or not low <= value <= high or not abs(value) <= 1e300:
        raise BadInput(f"{name} must be a number{_range(low, high)}, not {reprlib.repr(value)}")
    return float(value)


def stored_count(value: Any, name: str, low: int = 0, high: int = 10**9) -> int:
    """Returns a whole number; see `stored_number`."""
    if not _is_a(value, Integral) or not low <= value <= high:
        raise BadInput(f"{name} must be a whole number{_range(low, high)}, not {reprlib.repr(value)}")
    return int(value)


def stored_numbers(
    values: Any, name: str, low: float = -math.inf, high: float = math.inf
) -> tuple[float, ...]:
    """Returns the numbers of a list; see `stored_number`."""
    return tuple(
        stored_number(value, f"each number of {name}", low, high) for value in stored_list(values, name)
    )


def stored_list(values: Any, name: str) -> Iterable[Any]:
    """Returns a list as it is; BadInput when it is none, as text and dictionaries are."""
    if not isinstance(values, list | tuple):
        raise BadInput(f"{name} must be a list, not {reprlib.repr(values)}")
    return values


def check_fields(content: Mapping[str, Any], kind: type[Any], what: str) -> None:
    """Refuses fields that a dataclass lacks: they may be any text, so one is shown short and escaped."""
    if strange := sorted(content.keys() - {field.name for field in fields(kind)}):
        raise BadInput(f"{what} has no field {reprlib.repr(strange[0])}")


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return "" if math.isinf(low) else f" of at least {low:g}"
    return f" from {low:g} to {high:g}"
