"""A version against an earlier one, on identical test and external films that have shaped neither."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.files import read_table
from openmed.gates.gate import FAIL, INSUFFICIENT, NOT_SHOWN, Gate, judge_difference
from openmed.gates.power import films_for_margin
from openmed.metrics.intervals import paired_difference
from pipeline import registry
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.external import external_films, measurable

if TYPE_CHECKING:
    import pandas as pd

    from openmed.metrics.score_intervals import Interval


@dataclass(frozen=True)
class Against:
    """An earlier version, its operating point (0..1), and the films that it was compared on.

    The films have id, patient, label (a class), score and score_other, that of the earlier version.
    """

    version: str
    threshold: float
    films: "pd.DataFrame"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        gates: One for each margin, on test films and on each external set that the plan names; empty where
            there is nothing to compare with, None where there is but no comparison could be made.
        note: One sentence about it.
        films_compared: Number of test films.
        films_left_out: Test films that have shaped the earlier version.
        against: What it was compared with; None where no comparison could be made.
    """

    gates: list[Gate] | None
    note: str
    films_compared: int = 0
    films_left_out: int = 0
    against: Against | None = None


@dataclass(frozen=True)
class _Role:
    """What an earlier version stands for: name of its files, in sentences, in the names of gates."""

    file: str
    title: str
    gate: str


CHAMPION = _Role("champion", "champion", "champion")
FIRST = _Role("first", "the version approved first,", "first approved")


def compare_all(
    evidence: Evidence, others: Mapping[str, str | None], workspace: Path | None
) -> dict[str, tuple[Comparison, Comparison]]:
    """Compares a version with the champion, and with the version approved first, by finding.

    Args:
        evidence: On the version.
        others: The two, as `pipeline.registry.earlier` gives them.
        workspace: That of the retraining, to score a version that was not scored at the registration.
    """
    champion = _compare(evidence, others["champion"], workspace, CHAMPION)
    first = _compare(evidence, others["first"], workspace, FIRST)
    return {name: (champion[name], first[name]) for name in evidence.spec.findings}


def _compare(
    evidence: Evidence, other: str | None, workspace: Path | None, role: _Role
) -> dict[str, Comparison]:
    """The comparison of each finding."""
    findings = evidence.spec.findings
    if other is None or other == evidence.version:
        why = "There is no champion to compare with." if other is None else "This version is the champion."
        return dict.fromkeys(findings, Comparison([], why if role is CHAMPION else ""))
    scored = _scored(evidence.files, other, workspace, role)
    if isinstance(scored, registry.Scored) and (dropped := scored.thresholds.keys() - set(findings)):
        names = ", ".join(sorted(dropped))
        scored = (
            f"{role.title} {other} looks for {names}, which this version does not: they cannot be compared"
        )
    if isinstance(scored, str):
        return dict.fromkeys(findings, Comparison(None, _sentence(f"{scored}.")))
    return {each.spec.positive: _compare_finding(each, scored, role) for each in evidence.each_finding()}


def _compare_finding(evidence: Evidence, scored: registry.Scored, role: _Role) -> Comparison:
    finding, other = evidence.spec.positive, scored.version
    if finding not in scored.thresholds:
        return Comparison([], _sentence(f"{role.title} {other} does not look for {finding}."))
    own = scored.of_finding(finding)
    scores = own.test[["id", "sha256", "score"]]
    both = evidence.test.merge(scores, on="id", suffixes=("", "_other"), validate="one_to_one")
    if missing := len(evidence.test) - len(both):
        lack = f"has no scores for {missing} of {len(evidence.test)} test films: register them again."
        return Comparison(None, _sentence(f"{role.title} {other} {lack}"))
    compared = _on_fresh_films(evidence, other, both, own.thresholds[finding], role)
    return _with_external(compared, evidence, own.external, role)


def _on_fresh_films(
    evidence: Evidence, other: str, both: "pd.DataFrame", other_threshold: float, role: _Role
) -> Comparison:
    seen = read_table(registry.artifact(other, "training_films.parquet"))["sha256"]
    fresh = both[~both["sha256"].isin(seen)]
    left_out = len(both) - len(fresh)
    labels = (fresh["label"] == evidence.spec.positive_index).astype(int)
    if labels.nunique() < 2:
        note = (
            f"{left_out} of {len(both)} test films have shaped {role.title} {other}; without them the two "
            "models cannot be compared: retrain with more test films."
        )
        return Comparison(None, note, len(fresh), left_out)
    gates = difference_gates(evidence, fresh.assign(label=labels), other_threshold, role, evidence.margins)
    note = (
        f"Compared with {role.title} {other} on {len(fresh)} test films; {left_out} were left out because "
        "they have shaped it."
    )
    return Comparison(gates, note, len(fresh), left_out, Against(other, other_threshold, fresh))


def _with_external(
    compared: Comparison, evidence: Evidence, scores: "pd.DataFrame | None", role: _Role
) -> Comparison:
    """Adds the gates on the external sets that the plan names and that the version was scored on."""
    import pandas as pd

    wanted, other = evidence.plan.protocol.evaluation.external, compared.against
    if compared.gates is None or other is None or wanted is None:
        return compared
    scores = pd.DataFrame({"set": [], "id": [], "score": []}) if scores is None else scores
    seen = read_table(registry.artifact(other.version, "training_films.parquet"))["sha256"]
    gates = list(compared.gates)
    for name in wanted.sets:
        films = external_films(evidence, name)
        theirs = scores.loc[scores["set"] == name, ["id", "score"]]
        both = films.merge(theirs, on="id", suffixes=("", "_other"))
        fresh = both[~both["sha256"].isin(seen)]
        margins = {key: loss for key, loss in evidence.margins.items() if measurable(fresh, key)}
        if films.empty:  # its own gate says so
            continue
        if len(both) < len(films) or not margins:
            why = "it has no scores of them" if len(both) < len(films) else "they have shaped it"
            sentence = f"cannot be compared on the films of the external set {name}: {why}."
            sentence = f"{role.title} {other.version} {sentence}"
            return replace(compared, gates=None, note=_sentence(sentence))
        fresh = fresh.assign(label=fresh["has"])
        differences = difference_gates(evidence, fresh, other.threshold, role, margins)
        gates += [replace(gate, name=f"external {name}: {gate.name}") for gate in differences]
    return replace(compared, gates=gates)


def _scored(files: registry.Files, other: str, workspace: Path | None, role: _Role) -> registry.Scored | str:
    """The earlier version's scores, logged with the version or else new ones; or why there are none."""
    # Who was the champion then may be the first approved by now.
    for file in (CHAMPION.file, FIRST.file):
        stored = registry.Scored.stored(files, file)
        if stored is not None and stored.version == other:
            return stored
    if workspace is None:
        return (
            f"version {files.version} was registered without scores of {role.title} {other}: "
            "retrain, or register the retraining again, to compare them"
        )
    scored = registry.score_earlier(workspace, other)
    if isinstance(scored, registry.Unscored):
        return f"{role.title} {other} could not be scored ({scored.problem})"
    return scored


def difference_gates(
    evidence: Evidence, films: "pd.DataFrame", threshold: float, role: _Role, margins: Mapping[str, float]
) -> list[Gate]:
    """Gives a gate for each margin, the loss of a metric that is accepted.

    The films compared have label (0 or 1), score, score_other and patient; the threshold is the other's.
    """
    columns = ("label", "score", "score_other", "patient")
    labels, scores, others, patients = (films[name].to_numpy() for name in columns)
    points, confidence = (evidence.spec.operating_point, threshold), evidence.rules_of_look.confidence
    intervals = paired_difference(labels, scores, others, patients, *points, confidence)
    _, gates = judge_difference(intervals, margins, role.gate)
    counts = {"sensitivity": labels.sum(), "specificity": (1 - labels).sum(), "auc": len(films)}
    return [
        _explained(evidence, gate, intervals[name], name, margin, int(counts[name]))
        for (name, margin), gate in zip(margins.items(), gates, strict=True)
    ]


def _explained(
    evidence: Evidence, gate: Gate, difference: "Interval", name: str, margin: float, films: int
) -> Gate:
    """A gate, with what would settle it; what the plan leaves to the reviewers is only not shown."""
    left_to_people = name in evidence.plan.protocol.evaluation.reviewers_decide
    # What could not be measured has no upper limit and stays a FAIL.
    if gate.verdict == FAIL and left_to_people and difference.high >= -margin:
        return replace(gate, verdict=NOT_SHOWN)
    if gate.verdict != INSUFFICIENT:
        return gate
    confidence = evidence.rules_of_look.confidence
    enough = films_for_margin(difference, margin, films, confidence=confidence) if margin > 0 else None
    settled = "no realistic number of films would show it"
    if enough:
        settled = f"about {enough} films instead of {films} would show it of an equal model"
    reason = f"{gate.reason.rstrip('.')}; {settled}."
    return replace(gate, reason=reason, verdict=NOT_SHOWN if left_to_people else INSUFFICIENT)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
