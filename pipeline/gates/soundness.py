"""Whether a version may be judged at all: no leak, inside the plan, few looks, an export that agrees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openmed.errors import IntegrityError
from openmed.metrics.gates import FAIL, OUTSIDE_PLAN, PASS
from pipeline import registry
from pipeline.gates.evidence import Evidence, verdict_gate
from pipeline.plan import lax_limits, unplanned_changes


def soundness_gates(evidence: Evidence, champion: Evidence | None) -> list[dict[str, Any]]:
    """Returns the gates on splits, plan, looks and export.

    Args:
        evidence: On the version to judge.
        champion: The same on the champion, None when there is none.
    """
    return [_leakage(evidence), _plan(evidence, champion), _looks(evidence), _export(evidence)]


def _leakage(evidence: Evidence) -> dict[str, Any]:
    """Splits that share a patient, films judged that are not those of the split, films judged twice."""
    split, judged = evidence.split, evidence.predictions
    found = []
    crossing = int((split.groupby("patient")["split"].nunique() > 1).sum())
    if crossing:
        found.append(f"{crossing} patients are in more than one split")
    twice = int(judged["id"].duplicated().sum() + split["id"].duplicated().sum())
    if twice:
        found.append(f"{twice} films are there twice")
    else:
        wanted = split[split["split"] != "train"].set_index("id")[["label", "split"]].sort_index()
        if not wanted.equals(judged.set_index("id")[["label", "split"]].sort_index()):
            found.append("the films that were judged are not those of the split, with their labels")
    if found:
        return verdict_gate("leakage", FAIL, f"{_sentence(found)}.")
    return verdict_gate("leakage", PASS, "No patient and no film is in two splits.")


def _plan(evidence: Evidence, champion: Evidence | None) -> dict[str, Any]:
    found = list(lax_limits(evidence.plan, evidence.rules.floors, evidence.margins))
    if champion is not None:
        if evidence.plan_sha256 not in _adopted(champion):
            found.append(
                "the change plan itself is not the one that counts: adopt it first "
                f"(openmed registry adopt {evidence.version})"
            )
        found += unplanned_changes(evidence.plan, champion.params, evidence.params)
    if found:
        return verdict_gate("change plan", OUTSIDE_PLAN, f"{_sentence(found)}.")
    return verdict_gate("change plan", PASS, "Nothing has changed that the plan does not let change.")


def _adopted(champion: Evidence) -> set[str]:
    """The plans that count: the champion's, and what a person has adopted since it was promoted."""
    plans = {champion.plan_sha256}
    for entry in registry.history():
        if entry.event in (registry.PROMOTED, registry.RESTORED) and entry.version == champion.version:
            plans = {champion.plan_sha256}
        elif entry.event == registry.ADOPTED:
            plans.add(entry.content["plan_sha256"])
    return plans


def _looks(evidence: Evidence) -> dict[str, Any]:
    """How many versions have been judged on this very test set, this one included."""
    test = evidence.tags["test_sha256"]
    looks = versions_judged(evidence, lambda content: content["test_sha256"] == test)
    allowed = evidence.plan.protocol.evaluation.looks
    said = f"This test set has judged {looks} version{'s' * (looks > 1)}; the plan allows {allowed}"
    if looks > allowed:
        return verdict_gate("looks", OUTSIDE_PLAN, f"{said}: set new test films aside.", looks)
    return verdict_gate("looks", PASS, f"{said}.", looks)


def versions_judged(evidence: Evidence, on_these: Callable[[Mapping[str, Any]], bool]) -> int:
    """Counts the versions judged on the same films up to this one, which counts in any case.

    Of a retraining those count that were decided on, or else its one challenger. Retrainings that came later
    do not count, so that asking again gives the same answer.

    Args:
        evidence: On the version.
        on_these: Tells from the record of a registration whether it was judged on the same films.
    """
    runs: dict[str, set[str]] = {}
    history = registry.history()
    for entry in history:
        if entry.event == registry.REGISTERED and on_these(entry.content):
            if evidence.tags["run_key"] in runs and entry.content["run_key"] not in runs:
                break
            runs.setdefault(entry.content["run_key"], set()).add(entry.version)
    runs.setdefault(evidence.tags["run_key"], set()).add(evidence.version)
    decided = {evidence.version} | {
        entry.version for entry in history if entry.event in (registry.PROMOTED, registry.REJECTED)
    }
    return sum(max(1, len(versions & decided)) for versions in runs.values())


def _export(evidence: Evidence) -> dict[str, Any]:
    """What answers on a CPU must decide as what was trained, judged and explained."""
    from openmed.models.checkpoint import export_hash, load_model
    from openmed.models.control import CONTROL_FILE, control_films
    from openmed.models.export import check_parity
    from openmed.models.session import load_exported

    films = control_films(registry.artifact(evidence.version, CONTROL_FILE))
    with registry.stored(evidence.version) as folder:
        if export_hash(folder) is None:
            return verdict_gate("export", PASS, "It has no export: PyTorch itself answers.")
        try:
            worst = check_parity(load_model(folder), load_exported(folder), films)
        except IntegrityError as error:
            return verdict_gate("export", FAIL, f"{_sentence([str(error)])}.")
    said = f"The export calls all {len(films)} films nearest the threshold as the model does."
    return verdict_gate("export", PASS, said, worst)


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[0].upper() + text[1:]
