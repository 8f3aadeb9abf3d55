"""What a version must show on films from elsewhere: the external sets that its change plan names."""

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from openmed.gates.external_validation import UNKNOWN
from openmed.gates.gate import INSUFFICIENT, OUTSIDE_PLAN, PASS, Gate, judge
from pipeline import ledger
from pipeline.evaluation.judgement import at_threshold, named_gate, set_digest
from pipeline.promotion.gates.evidence import Evidence, confidence_of_look
from pipeline.promotion.gates.soundness import versions_judged

if TYPE_CHECKING:
    import pandas as pd

    from openmed.metrics.intervals import Interval
    from pipeline.settings.plan import External

NOTHING_KNOWN = "Nothing is known about films from elsewhere"
_NEEDS = {"auc": (0, 1), "sensitivity": (1,), "specificity": (0,)}


def external_gates(evidence: Evidence) -> list[Gate]:
    """Returns the gates on what a finding shows on the external sets that the plan names: floors for each.

    A floor holds for the view of a set in which the version is worst: over all views together, a score that
    knows the view can look good or bad whatever it knows of the finding.
    """
    wanted, gates = evidence.plan.protocol.evaluation.external, []
    if wanted is None:
        return []
    for name in wanted.sets:
        films = external_films(evidence, name)
        if films.empty:
            sentence = (
                f"This version was not scored on the external set {name}: add it with `openmed external add` "
                "and retrain."
            )
            gates.append(Gate.plain(f"external {name}", INSUFFICIENT, sentence))
        else:
            confidence = confidence_of_look(evidence.rules.confidence, _looks(evidence, films))
            gates += _floors(evidence, name, films, wanted, confidence)
    return gates


def external_looks(evidence: Evidence) -> list[Gate]:
    """Returns how often each external set judged that the plan names, or that it names none."""
    plans = {each.spec.positive: each.plan.protocol.evaluation.external for each in evidence.each_finding()}
    first = plans[evidence.spec.positive]
    alike = all(wanted == first for wanted in plans.values())
    gates = []
    for finding, wanted in ({evidence.spec.positive: first} if alike else plans).items():
        if (gate := _none_named(evidence, wanted)) is not None:
            gates.append(gate if alike else named_gate(evidence.spec, finding, gate))
    sets = dict.fromkeys(name for wanted in plans.values() if wanted for name in wanted.sets)
    scored = {name: external_films(evidence, name) for name in sets}
    return gates + [
        _looks_gate(evidence, name, _looks(evidence, films))
        for name, films in scored.items()
        if not films.empty
    ]


def external_films(evidence: Evidence, name: str) -> "pd.DataFrame":
    """The predictions on an external set, with has (0 or 1) for the finding; empty when there are none."""
    films = evidence.external[evidence.external["set"] == name].reset_index(drop=True)
    views = films["view"].replace("", UNKNOWN)
    return films.assign(has=(films["label"] == evidence.spec.positive_index).astype(int), view=views)


def measurable(films: "pd.DataFrame", metric: str) -> bool:
    """Tells whether the classes that a metric needs are there."""
    return all((films["has"] == value).any() for value in _NEEDS[metric])


def _none_named(evidence: Evidence, wanted: "External | None") -> Gate | None:
    """The gate on a plan that names no set for a finding; None where it names one."""
    if wanted is None:
        sentence = f"{NOTHING_KNOWN}: the change plan has no section `external`: add it and retrain."
        return Gate.plain("external", INSUFFICIENT, sentence)
    if wanted.sets:
        return None
    scored = sorted(evidence.external["set"].unique())
    also = f" It was scored on {', '.join(scored)}, which no plan holds it to." if scored else ""
    if wanted.required:
        sentence = f"{NOTHING_KNOWN}: the change plan asks for external sets and names none.{also}"
        return Gate.plain("external", INSUFFICIENT, sentence)
    sentence = f"{NOTHING_KNOWN}, and the change plan does not ask for it.{also}"
    return Gate.plain("external", PASS, sentence)


def _floors(
    evidence: Evidence, name: str, films: "pd.DataFrame", wanted: "External", confidence: float
) -> list[Gate]:
    if small := _smallest(evidence, films, wanted.min_films):
        return [Gate.plain(f"external {name}", INSUFFICIENT, small)]
    gates = []
    for metric, floor in wanted.sets[name].floors.items():
        title = f"external {name} {metric}"
        if not measurable(films, metric):
            sentence = f"The external set {name} has films of one class only: it has no {metric}."
            gates.append(Gate.plain(title, INSUFFICIENT, sentence))
            continue
        view, interval = _worst_view(evidence, films, metric, confidence)
        _, (gate,) = judge({metric: interval}, {metric: floor})
        where = f"Films of {name}" + ("" if view == UNKNOWN else f", view {view}")
        gates.append(replace(gate, name=title, reason=f"{where}: {gate.reason}"))
    return gates


def _smallest(evidence: Evidence, films: "pd.DataFrame", min_films: int) -> str | None:
    """Says where films of a class and view are too few; None where they are nowhere."""
    counts = films.groupby(["view", "label"]).size().unstack(fill_value=0).stack()
    view, label = counts.idxmin()
    if counts.min() >= min_films:
        return None
    return (
        f"Only {int(counts.min())} of its films are {evidence.spec.class_names[label]} of view {view}; "
        f"the plan asks for {min_films} of each class and view."
    )


def _worst_view(
    evidence: Evidence, films: "pd.DataFrame", metric: str, confidence: float
) -> tuple[str, "Interval"]:
    intervals = [
        (str(view), at_threshold(part, evidence.spec, confidence)[metric])
        for view, part in films.groupby("view")
    ]
    # What could not be measured is worse than anything.
    return min(intervals, key=lambda item: (not math.isnan(item[1].low), item[1].low))


def _looks(evidence: Evidence, films: "pd.DataFrame") -> int:
    """How many versions have been judged on these very films, this one included."""
    digest = set_digest(films)
    return versions_judged(
        evidence,
        ledger.history(),
        lambda entry: digest in json.loads(entry.content.get("external_sha256", "{}")).values(),
    )


def _looks_gate(evidence: Evidence, name: str, looks: int) -> Gate:
    allowed = evidence.plan.protocol.evaluation.looks
    sentence = (
        f"The external set {name} has judged {looks} version{'s' * (looks > 1)}; the plan allows {allowed}"
    )
    if looks > allowed:
        return Gate.plain(f"looks {name}", OUTSIDE_PLAN, f"{sentence}: add a set of new films.", looks)
    return Gate.plain(f"looks {name}", PASS, f"{sentence}.", looks)
