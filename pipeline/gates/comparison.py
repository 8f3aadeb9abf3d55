"""A version against an earlier one, on identical test films that have shaped neither."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.files import read_json
from openmed.metrics.gates import judge_difference
from pipeline import registry
from pipeline.gates.evidence import Evidence

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        gates: One for each margin; empty where there is nothing to compare with, None where there is but no
            comparison could be made.
        note: One sentence about it.
        films_compared: Number of test films.
        films_left_out: Test films that have shaped the earlier version.
        other: The version compared with, None where no comparison could be made.
        other_threshold: Its operating point.
        films: The films compared: id, patient, label (a class), score and score_other.
    """

    gates: list[dict[str, Any]] | None
    note: str
    films_compared: int = 0
    films_left_out: int = 0
    other: str | None = None
    other_threshold: float | None = None
    films: "pd.DataFrame | None" = None


@dataclass(frozen=True)
class _Role:
    """What an earlier version stands for: name of its files, in sentences, in the names of gates."""

    file: str
    title: str
    gate: str


CHAMPION = _Role("champion", "champion", "champion")
FIRST = _Role("first", "the version approved first,", "first approved")


def compare_all(evidence: Evidence, workspace: Path | None) -> tuple[Comparison, Comparison]:
    """Compares a version with the champion, and with the version that was approved first.

    Args:
        evidence: On the version.
        workspace: The workspace of the retraining, where it still exists: used to score a version that was
            not among those scored at its registration.
    """
    others = registry.earlier()
    champion = _compare(evidence, others["champion"], workspace, CHAMPION)
    return champion, _compare(evidence, others["first"], workspace, FIRST)


def _compare(evidence: Evidence, other: str | None, workspace: Path | None, role: _Role) -> Comparison:
    if other is None:
        return Comparison([], "There is no champion to compare with." if role is CHAMPION else "")
    if other == evidence.version:
        return Comparison([], "This version is the champion." if role is CHAMPION else "")
    about, scores, problem = _on_test_films(evidence.version, other, workspace, role)
    positive = evidence.spec.positive
    if problem is None and about["positive"] != positive:
        problem = (
            f"{role.title} {other} looks for {about['positive']}, not {positive}: they cannot be compared"
        )
    if problem is not None:
        return Comparison(None, _sentence(f"{problem}."))
    both = evidence.test.merge(scores, on="id", suffixes=("", "_other"), validate="one_to_one")
    if missing := len(evidence.test) - len(both):
        note = (
            f"{role.title} {other} has no scores for {missing} of {len(evidence.test)} test films: register "
        )
        return Comparison(None, _sentence(f"{note}them again."))
    return _on_fresh_films(evidence, other, both, about["threshold"], role)


def _on_fresh_films(
    evidence: Evidence, other: str, both: "pd.DataFrame", other_threshold: float, role: _Role
) -> Comparison:
    import pandas as pd

    seen = pd.read_parquet(registry.artifact(other, "training_films.parquet"))["sha256"]
    fresh = both[~both["sha256"].isin(seen)]
    left_out = len(both) - len(fresh)
    labels = (fresh["label"] == evidence.spec.positive_index).astype(int)
    if labels.nunique() < 2:
        note = (
            f"{left_out} of {len(both)} test films have shaped {role.title} {other}; without them the two "
            "models cannot be compared: retrain with more test films."
        )
        return Comparison(None, note, len(fresh), left_out)
    gates = _difference(evidence, fresh.assign(label=labels), other_threshold, role)
    note = (
        f"Compared with {role.title} {other} on {len(fresh)} test films; {left_out} were left out because "
        "they have shaped it."
    )
    return Comparison(gates, note, len(fresh), left_out, other, other_threshold, fresh)


def _on_test_films(
    version: str, other: str, workspace: Path | None, role: _Role
) -> tuple[dict[str, Any], "pd.DataFrame | None", str | None]:
    """Finds the earlier version's scores: those logged with the version or, if there are none, new ones."""
    import pandas as pd

    # Who was the champion then may be the first approved by now.
    for file in (CHAMPION.file, FIRST.file):
        stored = registry.find_artifact(version, f"{file}.json")
        about = read_json(stored) if stored else {"version": None}
        if about["version"] == other and about["problem"] is None:
            return about, pd.read_parquet(registry.artifact(version, f"{file}_predictions.parquet")), None
    if workspace is None:
        return (
            {},
            None,
            (
                f"version {version} was registered without scores of {role.title} {other}: "
                "retrain, or register the retraining again, to compare them"
            ),
        )
    about, scores = registry.score_earlier(workspace, {role.file: other})[role.file]
    if about["problem"] is not None:
        return about, None, f"{role.title} {other} could not be scored ({about['problem']})"
    return about, scores, None


def _difference(
    evidence: Evidence, films: "pd.DataFrame", other_threshold: float, role: _Role
) -> list[dict[str, Any]]:
    from openmed.metrics.intervals import paired_difference

    margins, rules = evidence.margins, evidence.rules
    intervals = paired_difference(
        films["label"].to_numpy(),
        films["score"].to_numpy(),
        films["score_other"].to_numpy(),
        films["patient"].to_numpy(),
        evidence.spec.threshold,
        other_threshold,
        **rules.resampling,
    )
    _, gates = judge_difference(intervals, margins, role.gate)
    return [found.to_json() for found in gates]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
