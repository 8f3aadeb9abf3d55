"""The gates on a version, the page that shows them to reviewers, and the promotion that they carry.

Everything is read again from the registry, by hash; nothing is taken on the word of an earlier task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

from openmed.errors import BadInput
from openmed.gates.gate import PASS
from pipeline import ledger, registry
from pipeline.ledger.entry import HELD, MOVES, PROMOTED, REGISTERED
from pipeline.promotion.gates.verdict import judge_version
from pipeline.promotion.judgement import Judgement
from pipeline.promotion.markdown import film_tables, gate_tables
from pipeline.promotion.review import build_review
from pipeline.settings.plan import PLAN_FILE, load_plan


def gate(version: str, *, workspace: Path | None = None) -> Judgement:
    """Judges a version by everything it must show, and against the champion on identical test films.

    Test films that shaped the champion (its training, validation and calibration films, found by the hash
    of their content) are left out of the comparison, which would favour it otherwise. The workspace of the
    retraining, if it still exists, is used to score a champion that has changed since the registration.

    Raises:
        BadInput: There is no such version.
        IntegrityError: Weights, evidence or record are not what was registered.
    """
    return judge_version(version, workspace)[0]


def show(version: str, *, workspace: Path, refused: Sequence[Judgement] = ()) -> Judgement:
    """Judges a version as `gate` does and stores the page for reviewers, which names those refused before.

    Raises:
        BadInput: As `gate`.
        IntegrityError: As `gate`; or a film in the workspace is not what was validated.
    """
    judged, evidence, compared = judge_version(version, workspace)
    review = build_review(judged, refused, evidence, compared, workspace)
    shown = {key: getattr(judged, key) for key in ("verdict", "champion", "model_sha256")}
    address, pictures = registry.keep_review(version, review.page, review.pictures, shown)
    films = film_tables(review.groups, pictures, maps_trusted=review.maps_trusted)
    judged = replace(judged, review=address, films_markdown=films)
    return replace(judged, table_markdown=gate_tables(judged))


def judge_in_turn(
    versions: Sequence[str], *, workspace: Path | None = None
) -> tuple[Judgement, list[Judgement]]:
    """Judges the versions of one retraining, as ranked on validation films, until one passes.

    Those refused before it are rejected. Each is a look at the test films and counted as one. The last
    version of all is not rejected here: whoever asks for the decision does it. Where the workspace still
    exists, pages are stored as `show` does.

    Returns:
        The judgement of the version that passed, or of the last one; and those of the ones before it.
    """
    refused: list[Judgement] = []
    for version in versions:
        judged = gate(version) if workspace is None else show(version, workspace=workspace, refused=refused)
        if judged.verdict == PASS or version == versions[-1]:
            break
        ledger.reject(version, by=ledger.GATE, reason=judged.grounds)
        refused.append(judged)
    return judged, refused


def promote(
    version: str,
    *,
    approved_by: Mapping[str, str | None],
    comment: str | None,
    expected_champion: str | None,
    expected_model: str | None = None,
    answered_at: datetime | None = None,
    workspace: Path | None = None,
    caller: ledger.Caller | None = None,
    keys: Mapping[str, Path] | None = None,
) -> ledger.Entry:
    """Makes a version the champion if it passes its gates now; see `pipeline.ledger.promote`.

    Approved by says role -> who said yes in it; the expected model is `model_sha256` of the gate that was
    shown, the workspace as for `gate`, the caller who types the names. Answers from before another decision,
    `answered_at`, carry nothing. Keys sign the yes of their roles first.
    """
    approval = ledger.Approval.of(approved_by, comment, caller)
    if answered_at is not None:
        _check_fresh(version, approval, answered_at)
    for name in approval.people.values():
        _refuse_starter(version, name, "approve it")
    judge = cache(lambda: ledger.Basis.of(vars(gate(version, workspace=workspace))))
    for role, key in (keys or {}).items():
        signing = ledger.Caller(caller.logins if caller else {}, key)
        ledger.sign(version, role=role, by=approval.people.get(role, ""), caller=signing, judge=judge)
    return ledger.promote(
        version,
        approval=approval,
        expected_champion=expected_champion,
        expected_model=expected_model,
        judge=judge,
    )


def sign(version: str, *, role: str, by: str, caller: ledger.Caller) -> ledger.Entry:
    """Signs the yes of a role, for whoever promotes the version; see `pipeline.ledger.sign`."""
    return ledger.sign(
        version, role=role, by=by, caller=caller, judge=lambda: ledger.Basis.of(vars(gate(version)))
    )


def accounts(version: str) -> dict[str, list[str]]:
    """Returns the accounts of Airflow that may answer by the change plan of a version.

    Role, or `hold` -> accounts; of those that not anyone may answer for.
    """
    return load_plan(registry.logged_files(version).get(PLAN_FILE)).protocol.answering


def check_starter(versions: Sequence[str], by: str | None) -> None:
    """Refuses a person who asks, by hand, for the promotion of what they retrained themselves."""
    if by is not None:
        for version in versions:
            _refuse_starter(version, by, "start its promotion")


def _refuse_starter(version: str, name: str, what: str) -> None:
    """Refuses who started the retraining of a version, as its registration has it in the record."""
    for entry in ledger.history(version):
        if entry.event == REGISTERED:
            ledger.refuse_starter(entry.content.get("started_by"), name, version, what)


def _check_fresh(version: str, approval: ledger.Approval, answered_at: datetime) -> None:
    for entry in ledger.history():
        moved = entry.event in MOVES or (entry.event == HELD and entry.version == version)
        own = entry.event == PROMOTED and entry.version == version
        own = own and entry.content["approvals"] == approval.people
        if moved and not own and datetime.fromisoformat(entry.at) > answered_at:
            raise BadInput(
                f"the answers on version {version} are older than what was decided since (entry "
                f"{entry.number} of the record): start its promotion again"
            )
