"""Gates: whether the evidence is enough to let a model through."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from openmed.errors import BadInput
from openmed.metrics.intervals import COMPARED, PROPORTIONS, Interval
from openmed.metrics.score_intervals import NAN

PASS = "PASS"
FAIL = "FAIL"
INSUFFICIENT = "INSUFFICIENT EVIDENCE"
OUTSIDE_PLAN = "OUTSIDE PLAN"
NOT_SHOWN = "NOT SHOWN"
"""Too little evidence of what the plan leaves to the reviewers; it does not count in a verdict."""

# Only metrics for which higher is better and whose interval cannot collapse on a small test set.
_FLOORED = ("auc", *PROPORTIONS)
_NUMBERS = ("value", "low", "high", "floor")


@dataclass(frozen=True)
class Gate:
    """One requirement and how it was met.

    Attributes:
        name: The metric, "<metric> vs champion", or what else is required.
        value: What was measured, NaN if nothing was; a whole number where something was counted.
        low: Lower confidence limit, NaN if there is none.
        high: Upper confidence limit.
        floor: What the lower limit must reach; minus the margin in a comparison.
        verdict: PASS, INSUFFICIENT, OUTSIDE_PLAN, NOT_SHOWN or FAIL.
        reason: One sentence for a clinician.
        finding: Of which finding, where a model looks for several.
    """

    name: str
    value: float
    low: float
    high: float
    floor: float
    verdict: str
    reason: str
    finding: str | None = None

    @classmethod
    def of(cls, name: str, interval: Interval, floor: float, verdict: str, reason: str) -> "Gate":
        """Makes one of what was measured."""
        return cls(name, interval.value, interval.low, interval.high, floor, verdict, reason)

    @classmethod
    def plain(cls, name: str, verdict: str, reason: str, value: float = NAN) -> "Gate":
        """Makes one without an interval."""
        return cls.of(name, Interval(value, NAN, NAN), NAN, verdict, reason)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values, NaN as None; the finding first, where it is named."""
        content = {
            key: None if isinstance(item, float) and not math.isfinite(item) else item
            for key, item in asdict(self).items()
        }
        finding = content.pop("finding")
        return content if finding is None else {"finding": finding, **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Gate":
        """Reads what `to_json` wrote, None as NaN."""
        known = {each.name: content[each.name] for each in fields(cls) if each.name in content}
        return cls(**known | {name: NAN for name in _NUMBERS if known[name] is None})


def judge(intervals: Mapping[str, Interval], floors: Mapping[str, float]) -> tuple[str, list[Gate]]:
    """Holds a model against its floors.

    A gate passes when the lower confidence limit (and with it the value) reaches the floor. A value that
    reaches it with a limit below is INSUFFICIENT EVIDENCE: more films may settle it. Everything else
    fails, NaN included.

    The intervals are those of `judged_intervals`; floors are in [0, 1], by the name of a metric.

    Returns:
        The overall verdict and one gate for each floor, in the order of the floors.

    Raises:
        BadInput: No floors, a metric that cannot be judged or was not measured, or a floor out of range.
    """
    for name, floor in floors.items():
        _refuse(name, _FLOORED, intervals, "floor", floor)
    gates = [_gate(name, intervals[name], float(floor), _FLOOR_WORDS) for name, floor in floors.items()]
    return worst_verdict([gate.verdict for gate in gates]), gates


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
    return worst_verdict([gate.verdict for gate in gates]), gates


def worst_verdict(verdicts: Collection[str]) -> str:
    """Returns the worst: FAIL, OUTSIDE PLAN, INSUFFICIENT EVIDENCE, PASS; BadInput where there is none."""
    if not verdicts:
        raise BadInput("no gate is set, so nothing can be let through; set at least one floor or margin")
    return next((verdict for verdict in (FAIL, OUTSIDE_PLAN, INSUFFICIENT) if verdict in verdicts), PASS)


def gates_to_json(gates: Collection[Gate]) -> dict[str, Any]:
    """Returns the content of gates.json: the worst verdict and the gates."""
    verdict = worst_verdict([gate.verdict for gate in gates])
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
    return Gate.of(name, interval, floor, verdict, reason)


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
