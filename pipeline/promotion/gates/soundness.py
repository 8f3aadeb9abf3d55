"""Whether a version may be judged at all: no leak, inside the plan, few looks, an export that agrees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from openmed.errors import IntegrityError
from openmed.files import read_table
from openmed.gates.gate import FAIL, OUTSIDE_PLAN, PASS, Gate
from pipeline import ledger, registry
from pipeline.promotion.gates.evidence import Evidence
from pipeline.settings.plan import lax_limits, load_plan, unplanned_changes

if TYPE_CHECKING:
    import pandas as pd

_MOST_MOVED = 0.2
"""Share of the champion's test films that may have left the test split without its being drawn anew."""


def soundness_gates(
    evidence: Evidence, champion: Evidence | None, history: Sequence["ledger.Entry"]
) -> list[Gate]:
    """Returns the gates on splits, plan, looks and export, by the whole record; there may be no champion."""
    plan, looks = _plan(evidence, champion, history), _looks(evidence, champion)
    return [_leakage(evidence), plan, looks, _export(evidence)]


def _leakage(evidence: Evidence) -> Gate:
    """Splits that share a patient, films judged that are not those of the split, films judged twice."""
    from openmed.dataset.splits import LEFT_OUT

    # Films under two labels are left out of every split.
    split, judged = evidence.split[evidence.split["split"] != LEFT_OUT], evidence.predictions
    problems = []
    crossing = int((split.groupby("patient")["split"].nunique() > 1).sum())
    if crossing:
        problems.append(f"{crossing} patients are in more than one split")
    twice = int(judged["id"].duplicated().sum() + evidence.split["id"].duplicated().sum())
    if twice:
        problems.append(f"{twice} films are there twice")
    else:
        wanted = split[split["split"] != "train"].set_index("id")[["label", "split"]].sort_index()
        if not wanted.equals(judged.set_index("id")[["label", "split"]].sort_index()):
            problems.append("the films that were judged are not those of the split, with their labels")
    if problems:
        return Gate.plain("leakage", FAIL, f"{_sentence(problems)}.")
    return Gate.plain("leakage", PASS, "No patient and no film is in two splits.")


def _plan(evidence: Evidence, champion: Evidence | None, history: Sequence["ledger.Entry"]) -> Gate:
    changes = []
    for own in evidence.each_finding():
        about = f"of {own.spec.positive}, " if len(own.spec.findings) > 1 else ""
        lax = lax_limits(own.plan, own.rules.floors, evidence.margins)
        changes += [f"{about}{each}" for each in lax]
    # Asked for one finding, a plan names no others.
    protocol = load_plan(evidence.plan_file).protocol
    unasked = protocol.evaluation.findings.keys() - set(evidence.spec.findings)
    changes += [f"the plan asks for the finding {each}, which was not looked for" for each in sorted(unasked)]
    changes += [
        f"of {role}, {ledger.NO_KEY}" for role, lines in sorted(protocol.signing.items()) if not lines
    ]
    if champion is not None:
        if evidence.plan_sha256 not in _adopted(champion, history):
            changes.append(
                "the change plan itself is not the one that counts: adopt it first "
                f"(openmed registry adopt {evidence.version})"
            )
        changes += unplanned_changes(evidence.plan, champion.params, evidence.params)
    if changes:
        return Gate.plain("change plan", OUTSIDE_PLAN, f"{_sentence(changes)}.")
    return Gate.plain("change plan", PASS, "Nothing has changed that the plan does not let change.")


def _adopted(champion: Evidence, history: Sequence["ledger.Entry"]) -> set[str]:
    """The plans that count: the champion's, and what a person has adopted since it was promoted."""
    plans = {champion.plan_sha256}
    for entry in history:
        if entry.event in (ledger.PROMOTED, ledger.RESTORED) and entry.version == champion.version:
            plans = {champion.plan_sha256}
        elif entry.event == ledger.ADOPTED:
            plans.add(entry.content["plan_sha256"])
    return plans


def _looks(evidence: Evidence, champion: Evidence | None) -> Gate:
    """How many versions have been judged on these test patients, this one too; whether they stayed."""
    name, allowed = "looks", evidence.plan.protocol.evaluation.looks
    if redrawn := _redrawn(evidence, champion):
        return Gate.plain(name, OUTSIDE_PLAN, redrawn, evidence.look)
    sentence = f"These test patients have judged {evidence.look} version{'s' * (evidence.look > 1)}"
    sentence = f"{sentence}; the plan allows {allowed}"
    if evidence.look > allowed:
        return Gate.plain(name, OUTSIDE_PLAN, f"{sentence}: set new test films aside.", evidence.look)
    rules, now = evidence.rules, evidence.rules_of_look.confidence
    spent = f"limits are at {now:.2%} confidence, so that all looks let a model at a floor pass in at most "
    return Gate.plain(name, PASS, f"{sentence}; {spent}{1 - rules.confidence:.0%}.", evidence.look)


def _redrawn(evidence: Evidence, champion: Evidence | None) -> str | None:
    """Says that films which judged the champion were drawn anew: they teach or tune this version."""
    if champion is None:
        return None
    judged = set(champion.test["id"])
    split = evidence.split[evidence.split["split"].isin(("train", "validation", "calibration"))]
    moved = len(judged & set(split["id"]))
    if moved <= _MOST_MOVED * len(judged):
        return None
    return (
        f"{moved} of the {len(judged)} films that judged champion {champion.version} teach or tune this "
        "version: test films must not be drawn anew; keep the seed and the shares of the splits."
    )


def with_look(evidence: Evidence, history: Sequence["ledger.Entry"]) -> Evidence:
    """Counts the versions that were judged on most of the same test patients up to this one."""
    own = _patients(evidence.test)
    same: dict[str, bool] = {evidence.tags["test_sha256"]: True}

    def on_these(entry: "ledger.Entry") -> bool:
        digest = entry.content["test_sha256"]
        if digest not in same:
            same[digest] = _mostly_same(own, _patients(_test_films(entry.version)))
        return same[digest]

    return replace(evidence, look=versions_judged(evidence, history, on_these))


def _test_films(version: str) -> "pd.DataFrame":
    films = read_table(registry.artifact(version, "predictions.parquet"), columns=["id", "patient", "split"])
    return films[films["split"] == "test"]


def _patients(films: "pd.DataFrame") -> dict[str, str]:
    """Film id -> patient, by number; numbers differ from version to version, films do not."""
    return dict(zip(films["id"], films["patient"].astype(str), strict=True))


def _mostly_same(own: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether more than half of the patients of the smaller set are in the other too."""
    shared = own.keys() & other.keys()
    met = min(len({side[film] for film in shared}) for side in (own, other))
    return met > min(len(set(own.values())), len(set(other.values()))) / 2


def versions_judged(
    evidence: Evidence, history: Sequence["ledger.Entry"], on_these: Callable[["ledger.Entry"], bool]
) -> int:
    """Counts the versions judged on the same films (of entries `on_these`) up to this one, itself included.

    Of a retraining those count that were decided on, or else its one challenger. Retrainings that came later
    do not count, so that asking again gives the same answer.
    """
    runs: dict[str, set[str]] = {}
    for entry in history:
        if entry.event == ledger.REGISTERED and on_these(entry):
            if evidence.tags["run_key"] in runs and entry.content["run_key"] not in runs:
                break
            runs.setdefault(entry.content["run_key"], set()).add(entry.version)
    runs.setdefault(evidence.tags["run_key"], set()).add(evidence.version)
    decided = {evidence.version} | {
        entry.version for entry in history if entry.event in (ledger.PROMOTED, ledger.REJECTED)
    }
    return sum(max(1, len(versions & decided)) for versions in runs.values())


def _export(evidence: Evidence) -> Gate:
    """What answers on a CPU must decide as what was trained, judged and explained."""
    from openmed.inference.checkpoint import export_hash, load_model
    from openmed.inference.control import CONTROL_FILE, control_films
    from openmed.inference.export import check_parity
    from openmed.inference.session import load_exported

    films = control_films(evidence.files.get(CONTROL_FILE))
    with registry.stored(evidence.version) as folder:
        if export_hash(folder) is None:
            return Gate.plain("export", PASS, "It has no export: PyTorch itself answers.")
        try:
            worst = check_parity(load_model(folder), load_exported(folder), films)
        except IntegrityError as error:
            return Gate.plain("export", FAIL, f"{_sentence([str(error)])}.")
    sentence = f"The export calls all {len(films)} films nearest the threshold as the model does."
    return Gate.plain("export", PASS, sentence, worst)


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[0].upper() + text[1:]
