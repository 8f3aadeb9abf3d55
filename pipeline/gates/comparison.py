"""A version against the champion, on identical test films that have shaped neither."""

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
        gates: One for each margin; empty where there is no champion to compare with, None where there is one
            but no comparison could be made.
        note: One sentence about it.
        films_compared: Number of test films.
        films_left_out: Test films that have shaped the champion.
        champion: The version compared with, None where no comparison could be made.
        champion_threshold: Its operating point.
        films: The films compared: id, patient, label (a class), score and score_champion.
    """

    gates: list[dict[str, Any]] | None
    note: str
    films_compared: int = 0
    films_left_out: int = 0
    champion: str | None = None
    champion_threshold: float | None = None
    films: "pd.DataFrame | None" = None


def compare(evidence: Evidence, champion: str | None, workspace: Path | None) -> Comparison:
    """Compares a version with the champion.

    Args:
        evidence: On the version.
        champion: The version that is live, None when there is none.
        workspace: The workspace of the retraining, where it still exists: used to score a champion that has
            changed since the version was registered.
    """
    if champion is None:
        return Comparison([], "There is no champion to compare with.")
    if champion == evidence.version:
        return Comparison([], "This version is the champion.")
    about, scores, problem = _champion_on_test_films(evidence.version, champion, workspace)
    positive = evidence.spec.positive
    if problem is None and about["positive"] != positive:
        problem = (
            f"champion {champion} looks for {about['positive']}, not {positive}: they cannot be compared"
        )
    if problem is not None:
        return Comparison(None, f"{problem}.")
    both = evidence.test.merge(scores, on="id", suffixes=("", "_champion"), validate="one_to_one")
    if missing := len(evidence.test) - len(both):
        return Comparison(
            None,
            f"Champion {champion} has no scores for {missing} of {len(evidence.test)} test films: register "
            "them again.",
        )
    return _on_fresh_films(evidence, champion, both, about["threshold"])


def _on_fresh_films(
    evidence: Evidence, champion: str, both: "pd.DataFrame", champion_threshold: float
) -> Comparison:
    import pandas as pd

    seen = pd.read_parquet(registry.artifact(champion, "training_films.parquet"))["sha256"]
    fresh = both[~both["sha256"].isin(seen)]
    left_out = len(both) - len(fresh)
    labels = (fresh["label"] == evidence.spec.positive_index).astype(int)
    if labels.nunique() < 2:
        note = (
            f"{left_out} of {len(both)} test films have shaped champion {champion}; without them the two "
            "models cannot be compared: retrain with more test films."
        )
        return Comparison(None, note, len(fresh), left_out)
    gates = _difference(evidence, fresh.assign(label=labels), champion_threshold)
    note = (
        f"Compared with champion {champion} on {len(fresh)} test films; {left_out} were left out because "
        "they have shaped the champion."
    )
    return Comparison(gates, note, len(fresh), left_out, champion, champion_threshold, fresh)


def _champion_on_test_films(
    version: str, now: str, workspace: Path | None
) -> tuple[dict[str, Any], "pd.DataFrame | None", str | None]:
    """Finds the champion's scores: those logged with the version or, if it has changed, new ones."""
    import pandas as pd

    about = read_json(registry.artifact(version, "champion.json"))
    if about["version"] == now and about["problem"] is None:
        return about, pd.read_parquet(registry.artifact(version, "champion_predictions.parquet")), None
    if workspace is None:
        if about["version"] == now:
            problem = f"champion {now} could not be scored ({about['problem']}): restore it or roll back"
        else:
            was = f"champion {about['version']}" if about["version"] else "no champion"
            problem = (
                f"version {version} was registered beside {was}, but the champion is {now} by now: "
                "retrain, or register the retraining again, to compare them"
            )
        return about, None, problem
    about, scores = registry.score_champion(workspace)
    if about["version"] != now or about["problem"] is not None:
        return about, None, f"champion {now} could not be scored ({about['problem'] or 'it changed again'})"
    return about, scores, None


def _difference(evidence: Evidence, films: "pd.DataFrame", champion_threshold: float) -> list[dict[str, Any]]:
    from openmed.metrics.intervals import paired_difference

    margins, rules = evidence.margins, evidence.rules
    intervals = paired_difference(
        films["label"].to_numpy(),
        films["score"].to_numpy(),
        films["score_champion"].to_numpy(),
        films["patient"].to_numpy(),
        evidence.spec.threshold,
        champion_threshold,
        replicates=rules.replicates,
        confidence=rules.confidence,
        seed=rules.seed,
    )
    _, gates = judge_difference(intervals, margins)
    return [found.to_json() for found in gates]
