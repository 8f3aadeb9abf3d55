"""All gates on a version, of each finding that it looks for, joined into one verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from openmed.gates.gate import FAIL, INSUFFICIENT, NOT_SHOWN, PASS, Gate, worst_verdict
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
from pipeline.promotion.judgement import Judgement
from pipeline.promotion.markdown import gate_tables


def judge_version(version: str, workspace: Path | None) -> tuple[Judgement, Evidence, dict[str, Comparison]]:
    """Judges a version as `promotion.actions.gate` does; with its evidence and each finding's comparison."""
    registry.check(version)
    evidence, others, history = Evidence.of(version), registry.earlier(), ledger.history()
    evidence, now = with_look(evidence, history), others["champion"]
    live = None if now in (None, version) else Evidence.of(now)
    gates = _of_each(evidence, floor_gates) + soundness_gates(evidence, live, history)
    gates += [*_of_each(evidence, performance_gates), unlike_films(evidence)]
    gates += _of_each(evidence, external_gates) + external_looks(evidence)
    compared = compare_all(evidence, others, workspace)
    comparison, note = _comparison(evidence, compared)
    verdict = joint_verdict(gates, comparison)
    against = compared[evidence.spec.positive][0]
    judged = Judgement(
        version=version,
        architecture=evidence.tags["architecture"],
        model_sha256=evidence.files.model_digest,
        champion=now,
        verdict=verdict,
        grounds="" if verdict == PASS else _grounds(gates, comparison or [], verdict),
        gates=gates,
        comparison=comparison or [],
        note=note,
        films_compared=against.films_compared,
        films_left_out=against.films_left_out,
        limits=_limits(evidence),
        reviewers={role: _asked(evidence, role) for role in evidence.plan.protocol.reviewers},
        started_by=evidence.tags["started_by"] or None,
        started_login=evidence.tags.get("started_login"),
        plan_sha256=evidence.plan_sha256,
        keys=evidence.plan.protocol.signing,
        accounts=evidence.plan.protocol.answering,
        report=registry.report_address(version),
    )
    judged = replace(judged, table_markdown=gate_tables(judged))
    return judged, evidence, {name: pair[0] for name, pair in compared.items()}


def _asked(evidence: Evidence, role: str) -> str:
    """What a role answers for; and that it signs, where the plan asks for that."""
    answers_for = evidence.plan.protocol.reviewers[role]
    if role not in evidence.plan.protocol.signing:
        return answers_for
    command = f"openmed registry sign {evidence.version} --as {role} --by NAME --key PATH"
    return f"{answers_for} Sign before you say yes, in the name that you answer under: `{command}`."


def joint_verdict(gates: Sequence[Gate], comparison: Sequence[Gate] | None) -> str:
    """Joins a version's own gates and its comparison into one verdict.

    Its own gates and those of the comparison must all PASS, but for a comparison that the change plan leaves
    to the reviewers: where the films are too few to show it, it is NOT SHOWN, and they decide. A comparison
    that could not be made at all, None, is never passed over; it is empty where there is no champion.
    """
    against = [INSUFFICIENT]
    if comparison is not None:
        counted = [gate.verdict for gate in comparison if gate.verdict != NOT_SHOWN]
        # A word that no gate says passes nothing.
        against = [verdict if verdict in (PASS, INSUFFICIENT) else FAIL for verdict in counted]
    return worst_verdict([*(gate.verdict for gate in gates), *against])


def _of_each(evidence: Evidence, judged: Callable[[Evidence], list[Gate]]) -> list[Gate]:
    """The gates of each finding, which name it where there are several."""
    spec = evidence.spec
    return [
        named_gate(spec, each.spec.positive, gate)
        for each in evidence.each_finding()
        for gate in judged(each)
    ]


def _comparison(
    evidence: Evidence, compared: Mapping[str, tuple[Comparison, Comparison]]
) -> tuple[list[Gate] | None, str]:
    """Joins the comparisons of all findings: gates, None where one could not be made, and what to say."""
    made = [(name, each) for name, pair in compared.items() for each in pair]
    note = " ".join(dict.fromkeys(each.note for _, each in made if each.note))
    gates = []
    for name, each in made:
        if each.gates is None:
            return None, note
        gates += [named_gate(evidence.spec, name, gate) for gate in each.gates]
    return gates, note


def _limits(evidence: Evidence) -> list[str]:
    several = len(evidence.spec.findings) > 1
    return [
        f"{each.spec.positive}: {sentence}" if several else sentence
        for each in evidence.each_finding()
        for sentence in limits_of_the_test(each)
    ]


def _grounds(gates: Sequence[Gate], comparison: Sequence[Gate], verdict: str) -> str:
    """Why a version does not pass, in the sentences of its gates."""
    failed = [gate.reason for gate in gates if gate.verdict != PASS]
    failed += [gate.reason for gate in comparison if gate.verdict not in (PASS, NOT_SHOWN)]
    return "; ".join(each.rstrip(".") for each in failed) or f"the gates say {verdict}"
