"""The gate against the champion, the decisions of people, and their evidence.

Everything is read again from the registry, by hash; nothing is taken on the word of an earlier task.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from openmed.gates.gate import PASS
from pipeline import registry
from pipeline.promotion.gates import Comparison, Evidence, judge_version
from pipeline.promotion.markdown import film_tables, gate_tables
from pipeline.promotion.review import build_review
from pipeline.settings.plain_text import one_line

GATE = "gate"
"""Who rejects what does not pass."""


def gate(version: str, *, workspace: Path | None = None) -> dict[str, Any]:
    """Judges a version by everything it must show, and against the champion on identical test films.

    Test films that shaped the champion (its training, validation and calibration films, found by the hash
    of their content) are left out of the comparison, which would favour it otherwise.

    Args:
        version: The version to judge.
        workspace: The workspace of its retraining, if it still exists: used to score a champion that has
            changed since the version was registered.

    Returns:
        version, architecture, model_sha256 (of the list of all files of the stored model), champion (a
        version or None), verdict (see `overall`), grounds (why it does not pass, empty if it does), gates and
        comparison (lists of gates), note (a sentence about the comparison), films_compared, films_left_out,
        limits (sentences on what the test could not have shown), reviewers (role -> what it answers for),
        started_by (a person or None), table_markdown, films_markdown (of the films that are shown; empty
        here), report and review (path, address or None).

    Raises:
        BadInput: There is no such version.
        IntegrityError: Weights, evidence or record are not what was registered.
    """
    return _judge(version, workspace)[0]


def show(version: str, *, workspace: Path, refused: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Judges a version as `gate` does and stores the page that the reviewers decide on.

    Args:
        version: The version to judge.
        workspace: The workspace of its retraining.
        refused: Versions of the same retraining that were judged before it, as `judge_in_turn` tells them;
            the page names them.

    Returns:
        What `gate` returns; `review` is where the page can be opened, and the table links to it;
        `films_markdown` counts the films to look at, with pictures of some where a server has them.

    Raises:
        BadInput: As `gate`.
        IntegrityError: As `gate`; or a film in the workspace is not what was validated.
    """
    judged, evidence, compared = _judge(version, workspace)
    review = build_review(judged | {"refused": refused}, evidence, compared, workspace)
    shown = {key: judged[key] for key in ("verdict", "champion", "model_sha256")}
    judged["review"], addresses = registry.keep_review(version, review.page, review.pictures, shown)
    return judged | {
        "table_markdown": gate_tables(judged),
        "films_markdown": film_tables(review.groups, addresses, maps_trusted=review.maps_trusted),
    }


def judge_in_turn(versions: Sequence[str], *, workspace: Path | None = None) -> dict[str, Any]:
    """Judges the versions of one retraining until one passes; those refused before it are rejected.

    Each is a look at the test films and counted as one. The last version of all is not rejected here: whoever
    asks for the decision does it.

    Args:
        versions: In the order in which they were ranked on validation films.
        workspace: As for `gate`; where it still exists, the page for reviewers is stored as `show` does.

    Returns:
        What `gate` returns of the version that passed, or of the last one; first, the version that was judged
        first; and refused, of each one before it the version, architecture, verdict and grounds.

    Raises:
        BadInput: As `gate`.
        IntegrityError: As `show`.
    """
    refused: list[dict[str, str]] = []
    for version in versions:
        judged = gate(version) if workspace is None else show(version, workspace=workspace, refused=refused)
        if judged["verdict"] == PASS or version == versions[-1]:
            break
        reject(version, by=GATE, reason=judged["grounds"])
        refused.append({key: judged[key] for key in ("version", "architecture", "verdict", "grounds")})
    return judged | {"first": versions[0], "refused": refused}


def _judge(version: str, workspace: Path | None) -> tuple[dict[str, Any], Evidence, dict[str, Comparison]]:
    judged, evidence, compared = judge_version(version, workspace)
    return judged | {"table_markdown": gate_tables(judged)}, evidence, compared


def promote(
    version: str,
    *,
    approved_by: Mapping[str, str],
    comment: str | None,
    expected_champion: str | None,
    expected_model: str | None = None,
    workspace: Path | None = None,
) -> dict[str, Any]:
    """Makes a version the champion and records who let it through.

    Repeating it for the same version and people, after a kill too, changes nothing but what is missing.

    Args:
        version: The version that was reviewed.
        approved_by: Role -> who said yes in it; every role of the version's change plan, each another person.
        comment: Why; may be empty.
        expected_champion: The champion it was compared with, None if there was none.
        expected_model: `model_sha256` of the gate that was shown; None does not bind the decision to one.
        workspace: As for `gate`.

    Returns:
        The record: decision, version, approved_by (one text), approvals (role -> name), approved_at,
        previous_champion, comment, verdict.

    Raises:
        BadInput: The version does not pass its gate now, was rejected, lacks an approval, or the champion has
            changed.
        IntegrityError: The stored model, its evidence or the record of decisions was changed.
    """
    approvals = {role: _name(name, f"{role} reviewer") for role, name in sorted(approved_by.items())}
    comment = one_line(comment or "", "the comment")
    registry.get_version(version)
    registry.finish()
    decided = registry.last_decision(version)
    if decided is not None and decided.event == registry.REJECTED:
        raise BadInput(f"version {version} was rejected by {decided.content['by']}: retrain instead")
    if registry.champion() == version:
        if decided.event == registry.PROMOTED and decided.content["approvals"] == approvals:
            return _promotion(decided)
        raise BadInput(f"version {version} is the champion already, by {decided.content['by']}")
    judged = gate(version, workspace=workspace)
    _refuse(judged, approvals, expected_champion, expected_model)
    content = {
        "by": ", ".join(f"{name} ({role})" for role, name in approvals.items()),
        "approvals": approvals,
        "comment": comment,
        "verdict": judged["verdict"],
        "model_sha256": judged["model_sha256"],
    }
    entry = registry.move_champion(
        version,
        event=registry.PROMOTED,
        content=content,
        expected=expected_champion,
        previous=expected_champion,
    )
    return _promotion(entry)


def _refuse(
    judged: Mapping[str, Any],
    approvals: Mapping[str, str],
    expected_champion: str | None,
    expected_model: str | None,
) -> None:
    """Raises as `promote` when what is judged now does not carry the decision that was made."""
    version = judged["version"]
    if judged["verdict"] != PASS:
        raise BadInput(
            f"version {version} cannot be promoted: its gate says {judged['verdict']}; see its table"
        )
    if problem := objection(judged, approvals):
        raise BadInput(problem)
    if judged["champion"] != expected_champion:
        raise BadInput(
            f"version {version} was reviewed against champion {expected_champion}, but the champion is "
            f"{judged['champion']} by now: run the gate and the review again"
        )
    if expected_model not in (None, judged["model_sha256"]):
        raise IntegrityError(
            f"the model of version {version} is not the one that was reviewed: review it again"
        )


def objection(judged: Mapping[str, Any], approvals: Mapping[str, str]) -> str | None:
    """Says in one sentence why approvals do not carry a promotion; None when they do.

    Args:
        judged: What `gate` returned.
        approvals: Role -> who said yes in it.
    """
    version, roles = judged["version"], judged["reviewers"]
    if unknown := sorted(approvals.keys() - roles.keys()):
        return (
            f"the change plan knows no role {' and '.join(unknown)}: choose from {', '.join(sorted(roles))}"
        )
    if missing := sorted(roles.keys() - approvals.keys()):
        return f"version {version} needs the yes of every role: {' and '.join(missing)} is missing"
    if judged["started_by"] in approvals.values():
        return f"{judged['started_by']} started the retraining of version {version} and cannot approve it"
    if len(set(approvals.values())) < len(approvals):
        return f"version {version} needs another person in each role: {', '.join(sorted(roles))}"
    return None


def adopt(version: str, *, by: str, reason: str) -> dict[str, Any]:
    """Makes the change plan that came with a version one that counts, beside the champion's, from now on.

    Returns:
        The record: version, by, at, reason, plan_sha256.

    Raises:
        BadInput: There is no such version, or nobody or no reason is named.
    """
    reason = _reason(reason, "adopting a change plan needs a reason: say why it may change")
    digest = Evidence.of(version).plan_sha256
    entry = registry.adopt(version, by=_name(by, "person who adopts"), reason=reason, plan_sha256=digest)
    return {"version": version, "at": entry.at, **entry.content}


def reject(version: str, *, by: str, reason: str) -> dict[str, Any]:
    """Records that a person turned a version down. The champion stays.

    Returns:
        The record: decision, version, rejected_by, rejected_at, reason.

    Raises:
        BadInput: There is no such version, it is the champion, or nobody or no reason is named.
    """
    reason = _reason(reason, "a rejection needs a reason: say what is wrong with the version")
    entry = registry.reject(version, by=_name(by, "reviewer"), reason=reason)
    return {
        "decision": entry.event,
        "version": version,
        "rejected_by": entry.content["by"],
        "rejected_at": entry.at,
        "reason": entry.content["reason"],
    }


def hold(version: str, *, by: str, reason: str) -> dict[str, Any]:
    """Puts a version on hold: it answers no new films and is not promoted until it is released.

    Returns:
        The record that holds: version, by, at, reason; an earlier one when it is on hold already.

    Raises:
        BadInput: There is no such version, or nobody or no reason is named.
    """
    reason = _reason(reason, "a hold needs a reason: say what is wrong with the version")
    entry = registry.hold(version, by=_name(by, "person who holds"), reason=reason)
    return {"version": version, "at": entry.at, **entry.content}


def release(version: str, *, by: str, reason: str) -> dict[str, Any]:
    """Takes a version off hold.

    Returns:
        The record: version, by, at, reason.

    Raises:
        BadInput: It is not on hold, or nobody or no reason is named.
    """
    reason = _reason(reason, "a release needs a reason: say why the version may answer again")
    entry = registry.release(version, by=_name(by, "person who releases"), reason=reason)
    return {"version": version, "at": entry.at, **entry.content}


def rollback(reason: str, by: str) -> dict[str, Any]:
    """Puts the previous champion back, after all it stands on was checked and its control set asked again.

    Args:
        reason: Why; must be given.
        by: Who decided.

    Returns:
        The record: decision, version (the champion from now on), replaced, by, at, reason.

    Raises:
        BadInput: No reason, nobody named, no previous champion, or one that was rejected since.
        IntegrityError: The previous champion's model or the record of decisions was changed.
    """
    by = _name(by, "person who rolls back")
    reason = _reason(reason, "a rollback needs a reason: say why the champion is taken back")
    registry.finish()
    now, previous = registry.champion(), registry.aliases().get(registry.PREVIOUS)
    if previous is None or previous == now:
        raise BadInput("there is no previous champion to roll back to: promote another version instead")
    decided = registry.last_decision(previous)
    if decided.event == registry.REJECTED:
        raise BadInput(
            f"version {previous}, the previous champion, was rejected by {decided.content['by']}: "
            "promote another version instead"
        )
    registry.check(previous)
    entry = registry.move_champion(
        previous,
        event=registry.RESTORED,
        content={"by": by, "reason": reason},
        expected=now,
        # A second rollback goes one step further back, never forward to the model just taken off.
        previous=decided.content["previous"],
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
        "approvals": said["approvals"],
        "approved_at": entry.at,
        "previous_champion": said["replaced"],
        "comment": said["comment"],
        "verdict": said["verdict"],
    }


def _name(name: str | None, role: str) -> str:
    if not (name or "").strip():
        raise BadInput(f"the {role} must be named: a decision without a person cannot be recorded")
    return one_line(name, f"the name of the {role}")


def _reason(reason: str, otherwise: str) -> str:
    if not reason.strip():
        raise BadInput(otherwise)
    return one_line(reason, "the reason")
