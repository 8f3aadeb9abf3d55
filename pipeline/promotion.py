"""The gate against the champion, the decision of a person, and its evidence.

Everything is read again from the registry, by hash; nothing is taken on the word of an earlier task.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from openmed.errors import BadInput
from openmed.files import read_json, sha256_bytes
from openmed.metrics.gates import FAIL, INSUFFICIENT, PASS, judge_difference
from openmed.metrics.gates import overall as worst
from pipeline import registry

if TYPE_CHECKING:
    import pandas as pd

    from openmed.models.spec import ModelSpec


def gate(version: str, *, workspace: Path | None = None) -> dict[str, Any]:
    """Judges a version by its floors and against the current champion on identical test films.

    Test films that shaped the champion (its training, validation and calibration films, found by the hash
    of their content) are left out of the comparison, which would favour it otherwise.

    Args:
        version: The version to judge.
        workspace: The workspace of its retraining, if it still exists: used to score a champion that has
            changed since the version was registered.

    Returns:
        version, architecture, model_sha256 (of the list of all files of the stored model), champion (a
        version or None), verdict (see `overall`), gates and comparison (lists of gates), note (a sentence
        about the comparison), films_compared, films_left_out, table_markdown and report (path, address or
        None).

    Raises:
        BadInput: There is no such version.
        IntegrityError: Weights or evidence are not what was registered.
    """
    described, spec = registry.get_version(version), registry.check_model(version)
    now = registry.champion()
    gates = [_rechecked(found) for found in read_json(registry.artifact(version, "gates.json"))["gates"]]
    floors_verdict = _worst(gates)
    if now in (None, version):
        note = "There is no champion to compare with." if now is None else "This version is the champion."
        compared = {"comparison": [], "note": note, "films_compared": 0, "films_left_out": 0}
    else:
        compared = _compare(version, now, spec, workspace)
    result = {
        "version": version,
        "architecture": described["architecture"],
        "model_sha256": model_digest(described["tags"]),
        "champion": now,
        "verdict": overall(floors_verdict, compared["comparison"]),
        "gates": gates,
        **compared,
        "report": registry.report_address(version),
    }
    result["comparison"] = compared["comparison"] or []
    return result | {"table_markdown": _markdown(result)}


def model_digest(tags: Mapping[str, str]) -> str:
    """Returns what a decision is bound to: the hash of the list of all files of a stored model."""
    return sha256_bytes(tags["model_files"].encode())


def overall(floors_verdict: str, comparison_gates: Sequence[Mapping[str, Any]] | None) -> str:
    """Joins the floors and the comparison into one verdict.

    The floors must all PASS. A comparison gate that says FAIL, because the version measured worse than
    the champion by more than the margin, rejects. One that says INSUFFICIENT EVIDENCE does not: on a small
    test set an equal model often cannot be told from a slightly worse one, so it is shown to the reviewer,
    who decides. A comparison that could not be made at all is never passed over.

    Args:
        floors_verdict: PASS, FAIL or INSUFFICIENT EVIDENCE.
        comparison_gates: Gates against the champion; empty when there is none; None when there is one but
            no comparison could be made.
    """
    if floors_verdict != PASS:
        return floors_verdict
    if comparison_gates is None:
        return INSUFFICIENT
    known = {PASS, INSUFFICIENT}
    return PASS if all(found["verdict"] in known for found in comparison_gates) else FAIL


def promote(
    version: str,
    *,
    approved_by: str,
    comment: str | None,
    expected_champion: str | None,
    workspace: Path | None = None,
) -> dict[str, Any]:
    """Makes a version the champion and records who let it through.

    Repeating it for the same version and person, after a kill too, changes nothing but what is missing.

    Args:
        version: The version that was reviewed.
        approved_by: Who approved it.
        comment: Why; may be empty.
        expected_champion: The champion it was compared with, None if there was none.
        workspace: As for `gate`.

    Returns:
        The record: decision, version, approved_by, approved_at, previous_champion, comment, verdict.

    Raises:
        BadInput: The version does not pass its gate now, was rejected, or the champion has changed.
        IntegrityError: The stored model, its evidence or the record of decisions was changed.
    """
    approved_by = _name(approved_by, "approver")
    registry.get_version(version)
    registry.finish()
    decided = registry.last_decision(version)
    if decided is not None and decided.event == registry.REJECTED:
        raise BadInput(f"version {version} was rejected by {decided.content['by']}: retrain instead")
    if registry.champion() == version:
        if decided.event == registry.PROMOTED and decided.content["by"] == approved_by:
            return _promotion(decided)
        raise BadInput(f"version {version} is the champion already, by {decided.content['by']}")
    judged = gate(version, workspace=workspace)
    if judged["verdict"] != PASS:
        raise BadInput(
            f"version {version} cannot be promoted: its gate says {judged['verdict']}; see its table"
        )
    if judged["champion"] != expected_champion:
        raise BadInput(
            f"version {version} was reviewed against champion {expected_champion}, but the champion is "
            f"{judged['champion']} by now: run the gate and the review again"
        )
    content = {
        "by": approved_by,
        "comment": comment or "",
        "verdict": judged["verdict"],
        "model_sha256": judged["model_sha256"],
    }
    return _promotion(
        registry.move_champion(
            version,
            event=registry.PROMOTED,
            content=content,
            expected=expected_champion,
            previous=expected_champion,
        )
    )


def reject(version: str, *, by: str, reason: str) -> dict[str, Any]:
    """Records that a person turned a version down. The champion stays.

    Returns:
        The record: decision, version, rejected_by, rejected_at, reason.

    Raises:
        BadInput: There is no such version, it is the champion, or nobody or no reason is named.
    """
    if not reason.strip():
        raise BadInput("a rejection needs a reason: say what is wrong with the version")
    entry = registry.reject(version, by=_name(by, "reviewer"), reason=reason)
    return {
        "decision": entry.event,
        "version": version,
        "rejected_by": entry.content["by"],
        "rejected_at": entry.at,
        "reason": entry.content["reason"],
    }


def rollback(reason: str, by: str) -> dict[str, Any]:
    """Puts the previous champion back, after its stored model was checked again.

    Args:
        reason: Why; must be given.
        by: Who decided.

    Returns:
        The record: decision, version (the champion from now on), replaced, by, at, reason.

    Raises:
        BadInput: No reason, nobody named, or no previous champion.
        IntegrityError: The previous champion's model or the record of decisions was changed.
    """
    by = _name(by, "person who rolls back")
    if not reason.strip():
        raise BadInput("a rollback needs a reason: say why the champion is taken back")
    registry.finish()
    now, previous = registry.champion(), registry.aliases().get(registry.PREVIOUS)
    if previous is None or previous == now:
        raise BadInput("there is no previous champion to roll back to: promote another version instead")
    registry.check_model(previous)
    entry = registry.move_champion(
        previous,
        event=registry.RESTORED,
        content={"by": by, "reason": reason},
        expected=now,
        # A second rollback goes one step further back, never forward to the model just taken off.
        previous=registry.last_decision(previous).content["previous"],
    )
    return {
        "decision": entry.event,
        "version": previous,
        "replaced": now,
        "by": by,
        "at": entry.at,
        "reason": reason,
    }


def _promotion(entry: registry.Entry) -> dict[str, Any]:
    said = entry.content
    return {
        "decision": entry.event,
        "version": entry.version,
        "approved_by": said["by"],
        "approved_at": entry.at,
        "previous_champion": said["replaced"],
        "comment": said["comment"],
        "verdict": said["verdict"],
    }


def _compare(version: str, now: str, spec: "ModelSpec", workspace: Path | None) -> dict[str, Any]:
    """Compares a version with the champion; `comparison` is None when that is impossible."""
    import pandas as pd

    about, scores, problem = _champion_on_test_films(version, now, workspace)
    if problem is None and about["positive"] != spec.positive:
        problem = (
            f"champion {now} looks for {about['positive']}, not {spec.positive}: they cannot be compared"
        )
    if problem is not None:
        return {"comparison": None, "note": f"{problem}.", "films_compared": 0, "films_left_out": 0}
    mine = pd.read_parquet(registry.artifact(version, "predictions.parquet"))
    mine = mine[mine["split"] == "test"]
    both = mine.merge(scores, on="id", suffixes=("", "_champion"), validate="one_to_one")
    if len(both) != len(mine):
        missing = len(mine) - len(both)
        note = f"Champion {now} has no scores for {missing} of {len(mine)} test films: register them again."
        return {"comparison": None, "note": note, "films_compared": 0, "films_left_out": 0}
    seen = pd.read_parquet(registry.artifact(now, "training_films.parquet"))["sha256"]
    fresh = both[~both["sha256"].isin(seen)]
    counts = {"films_compared": len(fresh), "films_left_out": len(both) - len(fresh)}
    labels = (fresh["label"] == spec.positive_index).astype(int)
    if labels.nunique() < 2:
        note = (
            f"{counts['films_left_out']} of {len(both)} test films have shaped champion {now}; without them "
            "the two models cannot be compared: retrain with more test films."
        )
        return {"comparison": None, "note": note, **counts}
    gates = _difference(version, fresh.assign(label=labels), spec.threshold, about["threshold"])
    note = (
        f"Compared with champion {now} on {len(fresh)} test films; {counts['films_left_out']} were left out "
        "because they have shaped the champion."
    )
    return {"comparison": gates, "note": note, **counts}


def _champion_on_test_films(
    version: str, now: str, workspace: Path | None
) -> tuple[dict[str, Any], "pd.DataFrame | None", str | None]:
    """Finds the champion's scores: those logged with the version or, if it has changed, new ones."""
    import pandas as pd

    about = read_json(registry.artifact(version, "champion.json"))
    if about["version"] == now and about["problem"] is None:
        return about, pd.read_parquet(registry.artifact(version, "champion_predictions.parquet")), None
    if workspace is None:
        was = f"champion {about['version']}" if about["version"] else "no champion"
        if about["version"] == now:
            return (
                about,
                None,
                f"champion {now} could not be scored ({about['problem']}): restore it or roll back",
            )
        return (
            about,
            None,
            (
                f"version {version} was registered beside {was}, but the champion is {now} by now: "
                "retrain, or register the retraining again, to compare them"
            ),
        )
    about, scores = registry.score_champion(workspace)
    if about["version"] != now or about["problem"] is not None:
        return about, None, f"champion {now} could not be scored ({about['problem'] or 'it changed again'})"
    return about, scores, None


def _difference(
    version: str, films: "pd.DataFrame", threshold: float, champion_threshold: float
) -> list[dict[str, Any]]:
    from openmed.metrics.intervals import paired_difference

    params = yaml.safe_load(registry.artifact(version, "params.yaml").read_text(encoding="utf-8"))
    try:
        margins = {name: float(margin) for name, margin in params["promotion"]["margins"].items()}
        settings = {
            "replicates": int(params["evaluate"]["replicates"]),
            "confidence": float(params["evaluate"]["confidence"]),
            "seed": int(params["run"]["seed"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"params.yaml of version {version} lacks settings of the comparison: {error}"
        ) from None
    intervals = paired_difference(
        films["label"].to_numpy(),
        films["score"].to_numpy(),
        films["score_champion"].to_numpy(),
        films["patient"].to_numpy(),
        threshold,
        champion_threshold,
        **settings,
    )
    _, gates = judge_difference(intervals, margins)
    return [found.to_json() for found in gates]


def _worst(gates: list[dict[str, Any]]) -> str:
    from types import SimpleNamespace

    return worst([SimpleNamespace(**found) for found in gates])


def _rechecked(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a gate with its verdict taken back if its own numbers do not carry it."""
    numbers = [found.get(key) for key in ("value", "low", "floor")]
    usable = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    if found["verdict"] == PASS and not (usable and numbers[0] >= numbers[2] and numbers[1] >= numbers[2]):
        return {**found, "verdict": FAIL, "reason": f"{found['name']} says PASS, but its numbers do not."}
    return dict(found)


def _name(name: str | None, role: str) -> str:
    if not (name or "").strip():
        raise BadInput(f"the {role} must be named: a decision without a person cannot be recorded")
    return name.strip()


def _markdown(result: Mapping[str, Any]) -> str:
    lines = [f"**Version {result['version']} ({result['architecture']}): {result['verdict']}**", ""]
    lines += ["Requirements", "", *_table(result["gates"], "required"), ""]
    lines += ["Comparison with the champion", "", result["note"], ""]
    if result["comparison"]:
        lines += [*_table(result["comparison"], "accepted"), ""]
    address = result["report"]
    link = f"[{address}]({address})" if str(address).startswith("http") else address or "none is stored"
    lines.append(f"Report with films and heat maps: {link}")
    return "\n".join(lines) + "\n"


def _table(gates: Sequence[Mapping[str, Any]], limit: str) -> list[str]:
    rows = [f"| metric | value | interval | {limit} | verdict | meaning |", "|---|---|---|---|---|---|"]
    for found in gates:
        value, low, high, floor = (_shown(found[key]) for key in ("value", "low", "high", "floor"))
        reason = str(found["reason"]).replace("|", "\\|")
        rows.append(
            f"| {found['name']} | {value} | {low} to {high} | {floor} | {found['verdict']} | {reason} |"
        )
    return rows


def _shown(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.3f}"
