"""All gates on a version, of each finding that it looks for, joined into one verdict."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openmed.gates.gate import FAIL, INSUFFICIENT, NOT_SHOWN, PASS
from openmed.gates.gate import overall as worst
from pipeline import ledger, registry
from pipeline.evaluation.judgement import named_gate
from pipeline.promotion.gates.comparison import Comparison, compare_all
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.external import external_gates, external_looks
from pipeline.promotion.gates.performance import (
    floor_gates,
    limits_of_the_test,
    performance_gates,
    unlike_films,
)
from pipeline.promotion.gates.soundness import soundness_gates, with_look


def judge_version(
    version: str, workspace: Path | None
) -> tuple[dict[str, Any], Evidence, dict[str, Comparison]]:
    """Judges a version; see `promotion.gate`.

    Returns:
        What `promotion.gate` returns, but for the table; what it stands on; and the comparison of each
        finding with the champion.
    """
    registry.check(version)
    evidence, now = with_look(Evidence.of(version)), ledger.champion()
    live = None if now in (None, version) else Evidence.of(now)
    gates = _of_each(evidence, floor_gates) + soundness_gates(evidence, live)
    gates += [*_of_each(evidence, performance_gates), unlike_films(evidence)]
    gates += _of_each(evidence, external_gates) + external_looks(evidence)
    compared = compare_all(evidence, workspace)
    comparison, note = _comparison(evidence, compared)
    verdict = overall(gates, comparison)
    against = compared[evidence.spec.positive][0]
    result = {
        "version": version,
        "architecture": evidence.tags["architecture"],
        "model_sha256": registry.model_digest(version),
        "champion": now,
        "verdict": verdict,
        "grounds": "" if verdict == PASS else _grounds(gates, comparison or [], verdict),
        "gates": gates,
        "comparison": comparison or [],
        "note": note,
        "films_compared": against.films_compared,
        "films_left_out": against.films_left_out,
        "limits": _limits(evidence),
        "reviewers": dict(evidence.plan.protocol.reviewers),
        "started_by": evidence.tags["started_by"] or None,
        "films_markdown": "",
        "report": registry.report_address(version),
        "review": None,
    }
    return result, evidence, {name: pair[0] for name, pair in compared.items()}


def overall(gates: Sequence[Mapping[str, Any]], comparison: Sequence[Mapping[str, Any]] | None) -> str:
    """Joins a version's own gates and its comparison into one verdict.

    Its own gates and those of the comparison must all PASS, but for a comparison that the change plan leaves
    to the reviewers: where the films are too few to show it, it is NOT SHOWN, and they decide. A comparison
    that could not be made at all is never passed over.

    Args:
        gates: The version's own gates.
        comparison: Gates against the champion; empty when there is none; None when there is one but no
            comparison could be made.
    """
    against = [INSUFFICIENT]
    if comparison is not None:
        said = [found["verdict"] for found in comparison if found["verdict"] != NOT_SHOWN]
        # A word that no gate says passes nothing.
        against = [verdict if verdict in (PASS, INSUFFICIENT) else FAIL for verdict in said]
    verdicts = [*(found["verdict"] for found in gates), *against]
    return worst([SimpleNamespace(verdict=verdict) for verdict in verdicts])


def _of_each(evidence: Evidence, judged: Callable[[Evidence], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The gates of each finding, which name it where there are several."""
    spec = evidence.spec
    return [
        named_gate(spec, asked.spec.positive, gate)
        for asked in evidence.each_finding()
        for gate in judged(asked)
    ]


def _comparison(
    evidence: Evidence, compared: Mapping[str, tuple[Comparison, Comparison]]
) -> tuple[list[dict[str, Any]] | None, str]:
    """Joins the comparisons of all findings: gates, None where one could not be made, and what to say."""
    made = [(name, each) for name, pair in compared.items() for each in pair]
    note = " ".join(dict.fromkeys(each.note for _, each in made if each.note))
    if any(each.gates is None for _, each in made):
        return None, note
    return [named_gate(evidence.spec, name, gate) for name, each in made for gate in each.gates], note


def _limits(evidence: Evidence) -> list[str]:
    several = len(evidence.spec.findings) > 1
    return [
        f"{asked.spec.positive}: {sentence}" if several else sentence
        for asked in evidence.each_finding()
        for sentence in limits_of_the_test(asked)
    ]


def _grounds(
    gates: Sequence[Mapping[str, Any]], comparison: Sequence[Mapping[str, Any]], verdict: str
) -> str:
    """Why a version does not pass, in the sentences of its gates."""
    failed = [each["reason"] for each in gates if each["verdict"] != PASS]
    failed += [each["reason"] for each in comparison if each["verdict"] not in (PASS, NOT_SHOWN)]
    return "; ".join(each.rstrip(".") for each in failed) or f"the gates say {verdict}"
