"""What a version must show on films from elsewhere: the external sets that its change plan names."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from openmed.gates.external_validation import UNKNOWN
from openmed.gates.gate import INSUFFICIENT, OUTSIDE_PLAN, PASS, judge
from openmed.metrics.intervals import judged_intervals
from pipeline.evaluation.judgement import named_gate, patient_numbers, set_digest
from pipeline.promotion.gates.evidence import Evidence, confidence_of_look, verdict_gate
from pipeline.promotion.gates.soundness import versions_judged

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.settings.plan import External

NOTHING_KNOWN = "Nothing is known about films from elsewhere"
_NEEDS = {"auc": (0, 1), "sensitivity": (1,), "specificity": (0,)}


def external_gates(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns the gates on what a finding shows on the external sets that the plan names: floors for each.

    A floor holds for the view of a set in which the version is worst: over all views together, a score that
    knows the view can look good or bad whatever it knows of the finding.
    """
    wanted, gates = evidence.plan.protocol.evaluation.external, []
    for name, asked in wanted.sets.items() if wanted else ():
        films = external_films(evidence, name)
        if films.empty:
            said = (
                f"This version was not scored on the external set {name}: add it with `openmed external add` "
                "and retrain."
            )
            gates.append(verdict_gate(f"external {name}", INSUFFICIENT, said))
        else:
            confidence = confidence_of_look(evidence.rules.confidence, _looks(evidence, films))
            gates += _floors(evidence, name, films, asked.floors, wanted.min_films, confidence)
    return gates


def external_looks(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns how often each external set judged that the plan names, or that it names none."""
    asked = {each.spec.positive: each.plan.protocol.evaluation.external for each in evidence.each_finding()}
    first = asked[evidence.spec.positive]
    alike = all(wanted == first for wanted in asked.values())
    gates = []
    for finding, wanted in ({evidence.spec.positive: first} if alike else asked).items():
        if (gate := _none_named(evidence, wanted)) is not None:
            gates.append(gate if alike else named_gate(evidence.spec, finding, gate))
    sets = dict.fromkeys(name for wanted in asked.values() if wanted for name in wanted.sets)
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


def _none_named(evidence: Evidence, wanted: "External | None") -> dict[str, Any] | None:
    """The gate on a plan that names no set for a finding; None where it names one."""
    if wanted is None:
        said = f"{NOTHING_KNOWN}: the change plan has no section `external`: add it and retrain."
        return verdict_gate("external", INSUFFICIENT, said)
    if wanted.sets:
        return None
    scored = sorted(evidence.external["set"].unique())
    also = f" It was scored on {', '.join(scored)}, which no plan holds it to." if scored else ""
    if wanted.required:
        said = f"{NOTHING_KNOWN}: the change plan asks for external sets and names none.{also}"
        return verdict_gate("external", INSUFFICIENT, said)
    said = f"{NOTHING_KNOWN}, and the change plan does not ask for it.{also}"
    return verdict_gate("external", PASS, said)


def _floors(
    evidence: Evidence,
    name: str,
    films: "pd.DataFrame",
    floors: Mapping[str, float],
    min_films: int,
    confidence: float,
) -> list[dict[str, Any]]:
    if small := _smallest(evidence, films, min_films):
        return [verdict_gate(f"external {name}", INSUFFICIENT, small)]
    gates = []
    for metric, floor in floors.items():
        title = f"external {name} {metric}"
        if not measurable(films, metric):
            said = f"The external set {name} has films of one class only: it has no {metric}."
            gates.append(verdict_gate(title, INSUFFICIENT, said))
            continue
        view, found = _worst_view(evidence, films, metric, confidence)
        _, (gate,) = judge({metric: found}, {metric: floor})
        where = f"Films of {name}" + ("" if view == UNKNOWN else f", view {view}")
        gates.append(gate.to_json() | {"name": title, "reason": f"{where}: {gate.reason}"})
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


def _worst_view(evidence: Evidence, films: "pd.DataFrame", metric: str, confidence: float) -> tuple[str, Any]:
    found = {}
    for view, part in films.groupby("view"):
        measured = judged_intervals(
            part["has"],
            part["score"],
            patient_numbers(part),
            evidence.spec.threshold,
            confidence,
        )
        found[str(view)] = measured[metric]
    # What could not be measured is worse than anything.
    worst = min(found, key=lambda view: -math.inf if math.isnan(found[view].low) else found[view].low)
    return worst, found[worst]


def _looks(evidence: Evidence, films: "pd.DataFrame") -> int:
    """How many versions have been judged on these very films, this one included."""
    digest = set_digest(films)
    return versions_judged(
        evidence, lambda entry: digest in json.loads(entry.content.get("external_sha256", "{}")).values()
    )


def _looks_gate(evidence: Evidence, name: str, looks: int) -> dict[str, Any]:
    allowed = evidence.plan.protocol.evaluation.looks
    said = f"The external set {name} has judged {looks} version{'s' * (looks > 1)}; the plan allows {allowed}"
    if looks > allowed:
        return verdict_gate(f"looks {name}", OUTSIDE_PLAN, f"{said}: add a set of new films.", looks)
    return verdict_gate(f"looks {name}", PASS, f"{said}.", looks)
