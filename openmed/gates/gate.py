"""Gates: whether the evidence is enough to let a model through."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from openmed.errors import BadInput
from openmed.metrics.intervals import COMPARED, PROPORTIONS, Interval

PASS = "PASS"
FAIL = "FAIL"
INSUFFICIENT = "INSUFFICIENT EVIDENCE"
OUTSIDE_PLAN = "OUTSIDE PLAN"
NOT_SHOWN = "NOT SHOWN"
"""Too little evidence of what the plan leaves to the reviewers; it does not count in a verdict."""

# Only metrics for which higher is better and whose interval cannot collapse on a small test set.
JUDGED = ("auc", *PROPORTIONS)


@dataclass(frozen=True)
class Gate:
    """One requirement and how it was met.

    Attributes:
        name: The metric, or "<metric> vs champion".
        value: What was measured, NaN if it could not be.
        low: Lower confidence limit.
        high: Upper confidence limit.
        floor: What the lower limit must reach; minus the margin in a comparison.
        verdict: PASS, INSUFFICIENT, OUTSIDE_PLAN or FAIL.
        reason: One sentence for a clinician.
    """

    name: str
    value: float
    low: float
    high: float
    floor: float
    verdict: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values, NaN as None."""
        return {
            key: None if isinstance(item, float) and not math.isfinite(item) else item
            for key, item in asdict(self).items()
        }


def judge(intervals: Mapping[str, Interval], floors: Mapping[str, float]) -> tuple[str, list[Gate]]:
    """Holds a model against its floors.

    A gate passes when the lower confidence limit (and with it the value) reaches the floor. A value that
    reaches it with a limit below is INSUFFICIENT EVIDENCE: more films may settle it. Everything else
    fails, NaN included.

    The intervals are those of `judged_intervals`; floors are in [0, 1], by the name of a metric in `JUDGED`.

    Returns:
        The overall verdict and one gate for each floor, in the order of the floors.

    Raises:
        BadInput: No floors, a metric that cannot be judged or was not measured, or a floor out of range.
    """
    for name, floor in floors.items():
        _refuse(name, JUDGED, intervals, "floor", floor)
    gates = [_gate(name, intervals[name], float(floor), _FLOOR_WORDS) for name, floor in floors.items()]
    return overall(gates), gates


def judge_difference(
    intervals: Mapping[str, Interval], margins: Mapping[str, float], other: str = "champion"
) -> tuple[str, list[Gate]]:
    """Asks whether a model is not worse than another one by more than a margin (non-inferiority).

    A gate passes when the lower limit of the difference, candidate minus the other, is at or above minus
    the margin; the verdicts are those of `judge`.

    The intervals are those of `paired_difference`; margins, the loss that would be accepted, are in [0, 1],
    by the name of a metric in `COMPARED`.

    Returns:
        The overall verdict and one gate for each margin, named "<metric> vs <other>".

    Raises:
        BadInput: No margins, a metric that cannot be compared or was not, or a margin out of range.
    """
    for name, margin in margins.items():
        _refuse(name, COMPARED, intervals, "margin", margin)
    gates = [
        _gate(f"{name} vs {other}", intervals[name], 0.0 - margin, _DIFFERENCE_WORDS)
        for name, margin in margins.items()
    ]
    return overall(gates), gates


def overall(gates: list[Gate]) -> str:
    """Returns the worst verdict: FAIL, then OUTSIDE PLAN, then INSUFFICIENT EVIDENCE, then PASS.

    Raises:
        BadInput: There is no gate: nothing passes unexamined.
    """
    if not gates:
        raise BadInput("no gate is set, so nothing can be let through; set at least one floor or margin")
    verdicts = {gate.verdict for gate in gates}
    return next((verdict for verdict in (FAIL, OUTSIDE_PLAN, INSUFFICIENT) if verdict in verdicts), PASS)


def to_json(verdict: str, gates: list[Gate]) -> dict[str, Any]:
    """Returns the content of gates.json: the verdict and the gates."""
    return {"verdict": verdict, "gates": [gate.to_json() for gate in gates]}


_FLOOR_WORDS = {
    PASS: "{name} is {value} and, with its uncertainty, at least {low}, which meets the required {floor}.",
    INSUFFICIENT: "{name} is {value}, but could be as low as {low}: too few films to be sure of the "
    "required {floor}.",
    FAIL: "{name} is {value}, below the required {floor}.",
}
_DIFFERENCE_WORDS = {
    PASS: "{name}: the difference is {value} and, with its uncertainty, at least {low}; down to {floor} is "
    "accepted.",
    INSUFFICIENT: "{name}: the difference is {value}, but could be as low as {low}: too few films to be sure "
    "that it is not below the accepted {floor}.",
    FAIL: "{name}: the difference is {value}, below the accepted {floor}.",
}


def _gate(name: str, interval: Interval, floor: float, words: Mapping[str, str]) -> Gate:
    verdict = _verdict(interval, floor)
    title = "AUC" + name[3:] if name.startswith("auc") else name[0].upper() + name[1:]
    title = {"Ppv": "PPV", "Npv": "NPV"}.get(title, title)
    if math.isnan(interval.value) or math.isnan(interval.low):
        reason = f"{title} could not be measured reliably on these films, so it cannot pass."
    else:
        numbers = {"value": interval.value, "low": interval.low, "floor": floor}
        reason = words[verdict].format(name=title, **_rounded(numbers, signed=words is _DIFFERENCE_WORDS))
    return Gate(name, interval.value, interval.low, interval.high, floor, verdict, reason)


def _verdict(interval: Interval, floor: float) -> str:
    # Every comparison with NaN is false, so whatever could not be measured falls through to FAIL.
    if interval.value >= floor and interval.low >= floor:
        return PASS
    if interval.value >= floor and interval.low < floor:
        return INSUFFICIENT
    return FAIL


def _rounded(numbers: dict[str, float], *, signed: bool) -> dict[str, str]:
    """Three decimals, or as many as it takes that no two different numbers read alike."""
    sign = "+" if signed else ""
    for decimals in range(3, 10):
        texts = {key: f"{number:{sign}.{decimals}f}" for key, number in numbers.items()}
        if len(set(texts.values())) == len(set(numbers.values())):
            break
    return texts


def _refuse(name: str, allowed: tuple[str, ...], intervals: Mapping, kind: str, limit: float) -> None:
    if name not in allowed:
        raise BadInput(f"a {kind} on {name!r} is not possible; choose from {', '.join(allowed)}")
    if name not in intervals:
        raise BadInput(f"a {kind} is set on {name!r}, but it was not measured; measure it or remove it")
    if not 0 <= limit <= 1:
        raise BadInput(f"the {kind} on {name!r} must be between 0 and 1, found {limit}")
