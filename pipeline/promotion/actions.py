"""The gates on a version, the page that shows them to reviewers, and the promotion that they carry.

Everything is read again from the registry, by hash; nothing is taken on the word of an earlier task.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openmed.gates.gate import PASS
from pipeline import ledger
from pipeline.promotion.gates import Comparison, Evidence, judge_version
from pipeline.promotion.markdown import film_tables, gate_tables
from pipeline.promotion.review import build_review


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
    judged["review"], addresses = ledger.keep_review(version, review.page, review.pictures, shown)
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
        ledger.reject(version, by=ledger.GATE, reason=judged["grounds"])
        refused.append({key: judged[key] for key in ("version", "architecture", "verdict", "grounds")})
    return judged | {"first": versions[0], "refused": refused}


def _judge(version: str, workspace: Path | None) -> tuple[dict[str, Any], Evidence, dict[str, Comparison]]:
    judged, evidence, compared = judge_version(version, workspace)
    return judged | {"table_markdown": gate_tables(judged)}, evidence, compared


def promote(
    version: str,
    *,
    approved_by: Mapping[str, str | None],
    comment: str | None,
    expected_champion: str | None,
    expected_model: str | None = None,
    workspace: Path | None = None,
) -> ledger.Entry:
    """Makes a version the champion if it passes its gates now; see `pipeline.ledger.promote`.

    Args:
        version: The version that was reviewed.
        approved_by: Role -> who said yes in it.
        comment: Why; may be empty.
        expected_champion: The champion it was compared with, None if there was none.
        expected_model: `model_sha256` of the gate that was shown; None does not bind the decision to one.
        workspace: As for `gate`.
    """
    return ledger.promote(
        version,
        approval=ledger.Approval.of(approved_by, comment),
        expected_champion=expected_champion,
        expected_model=expected_model,
        judge=lambda: ledger.Basis.of(gate(version, workspace=workspace)),
    )
