"""Judges the champion on the latest films that it scored, by the plan it came with, and puts it on hold.

Nothing here can make a champion better or worse than it is: a hold only says that people have to look.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import write_json, write_text
from openmed.metrics.gates import FAIL
from pipeline import registry
from pipeline.gates import Evidence
from pipeline.live import checks
from pipeline.live.log import ScoreLog, labels
from pipeline.live.windows import Eligible, by_content, windows

if TYPE_CHECKING:
    import pandas as pd

    from openmed.metrics.drift import Shift
    from pipeline.plan import Monitoring

BY = "monitoring"
_PERIODS = 12
_COLUMNS = ("sha256", "patient", "score", "scored_at")


def watch(home: Path) -> dict[str, Any]:
    """Judges the champion on its latest films; when they show it as surely too bad, it goes on hold.

    Compared are their looks with those of the films that it was trained on; what is expected of it from its
    own probabilities; what it did where labels have come; and how much it refers. A check fails only when
    its whole interval lies beyond the limit of the change plan. Films that a person has released the version
    on are not judged again. Which films are the latest does not depend on names (`pipeline.live.windows`);
    what it did is measured on a window of its own, the latest films with labels, half of them with the
    finding where there are so many. Writes watch.json and watch.html in `watch` below the state folder.

    Args:
        home: The state folder.

    Returns:
        version, verdict (PASS, FAIL, or INSUFFICIENT EVIDENCE where no check fails and one cannot be made),
        sentence, films, patients, labelled (films with labels that were judged), flagged (shares of the
        films, of the test films too), referred (reason -> number of films), checks (lists of gates),
        shifts, periods, hold (the reason that holds the version, None when nothing does), page.

    Raises:
        BadInput: There is no champion.
        IntegrityError: The champion's evidence or the log was changed.
    """
    version, reference = registry.champion_profile()
    if version is None:
        raise BadInput("there is no champion to watch: promote a version first")
    evidence, log, known = Evidence.of(version), ScoreLog(home, version), labels(home)
    plan, after = evidence.plan.protocol.monitoring, _released(version)
    films = _latest(log, plan.films, Eligible(after), None)
    labelled = _labelled(evidence, log, known, after, plan.films)
    seen = (len(films), int(films["patient"].nunique()), len(labelled))
    enough = seen[1] >= plan.min_patients
    shifts = checks.drift_shifts(evidence, reference, films) if enough and reference is not None else None
    made = [*(_checks(evidence, films, plan, shifts) if enough else ()), *_measured(evidence, labelled, plan)]
    verdict, sentence = checks.overall(made, enough=enough), checks.sentence(version, made, seen, plan)
    if verdict == FAIL:
        registry.hold(version, by=BY, reason=sentence)
    held = registry.on_hold().get(version)
    result = {
        "version": version,
        "verdict": verdict,
        "sentence": sentence,
        **dict(zip(("films", "patients", "labelled"), seen, strict=True)),
        "flagged": {"now": _flagged(films, evidence), "test": _flagged(evidence.test, evidence)},
        "referred": _reasons(films),
        "checks": made,
        "shifts": [shift.to_json() for shift in shifts or ()],
        "periods": list(_periods(evidence, log, known, plan.films))[::-1],
        "hold": held and held.content["reason"],
        "page": str(Path(home) / "watch" / "watch.html"),
    }
    _write(result, reference, films)
    return result


def _released(version: str) -> str:
    """When a person released the version last: what was released would hold it again. Empty: never."""
    return max((each.at for each in registry.history(version) if each.event == registry.RELEASED), default="")


def _latest(log: ScoreLog, films: int, eligible: Eligible, columns: "Sequence[str] | None") -> "pd.DataFrame":
    """The latest window, without a row where nothing is eligible."""
    import pandas as pd

    return by_content(next(windows(log, films, columns, eligible), pd.DataFrame(columns=[*_COLUMNS])))


def _labelled(
    evidence: Evidence, log: ScoreLog, known: dict[str, str], after: str, films: int
) -> "pd.DataFrame":
    """The latest films with labels: half of `films` with the finding, half without it, if so many came.

    Sensitivity, specificity and AUC do not hang on how frequent the finding is, only on enough films of each.
    """
    import pandas as pd

    having = {digest for digest, label in known.items() if label == evidence.spec.positive}
    found = [pd.DataFrame(columns=[*_COLUMNS])]
    for side in (having, known.keys() - having):
        if side:
            found += islice(windows(log, math.ceil(films / 2), _COLUMNS, Eligible(after, side)), 1)
    return _with_truth(pd.concat(found[1:] or found), known)


def _with_truth(films: "pd.DataFrame", known: dict[str, str]) -> "pd.DataFrame":
    return by_content(films.assign(truth=films["sha256"].map(known)))


def _checks(
    evidence: Evidence, films: "pd.DataFrame", plan: "Monitoring", shifts: "list[Shift] | None"
) -> Iterator[dict[str, Any]]:
    """The checks that need no labels."""
    yield from checks.drift_checks(shifts, plan.drift)
    yield from checks.floor_checks("expected", *checks.expected(evidence, films), plan.floors)
    if evidence.spec.abstention is not None or evidence.spec.novelty is not None:
        yield checks.referral_check(evidence.rules, films, plan.max_referred)


def _measured(evidence: Evidence, labelled: "pd.DataFrame", plan: "Monitoring") -> Iterator[dict[str, Any]]:
    """The checks of the films with labels; none where no film has one."""
    patients = labelled["patient"].nunique()
    if not patients:
        return
    few = f"labels have come for {patients} patients, and the plan asks for {plan.min_patients}"
    problem = few if patients < plan.min_patients else ""
    yield from checks.floor_checks("measured", *checks.measured(evidence, labelled), plan.floors, problem)


def _reasons(films: "pd.DataFrame") -> dict[str, int]:
    """How many films were referred for each reason; older answers, which name none, know only one."""
    from openmed.models.referral import NO_CLASS

    told = films.reindex(columns=["refer", "reason"])
    reasons = told.loc[told["refer"].eq(True).fillna(False), "reason"]
    return reasons.replace("", NO_CLASS).fillna(NO_CLASS).value_counts().to_dict()


def _flagged(films: "pd.DataFrame", evidence: Evidence) -> float | None:
    return float((films["score"] >= evidence.spec.threshold).mean()) if len(films) else None


def _periods(
    evidence: Evidence, log: ScoreLog, known: dict[str, str], films: int
) -> Iterator[dict[str, Any]]:
    """Expected and measured performance of the latest windows, the latest first."""
    for part in islice(windows(log, films, _COLUMNS), _PERIODS):
        part = _with_truth(part, known)
        expected, counts = checks.expected(evidence, part)
        having_labels = part[part["truth"].notna()]
        found = {
            "expected": {name: each for name, each in expected.items() if counts[name] >= checks.MIN_FILMS},
            "measured": checks.measured(evidence, having_labels)[0] if len(having_labels) else {},
        }
        yield {
            "films": len(part),
            "until": part["scored_at"].max(),
            **{
                way: {name: each[name].to_json() for name in checks.NAMES if name in each}
                for way, each in found.items()
            },
        }


def _write(result: dict[str, Any], reference: "pd.DataFrame | None", films: "pd.DataFrame") -> None:
    from pipeline.report.watch_page import build_watch_page

    page = Path(result["page"])
    write_text(page, build_watch_page(result, reference, films))
    write_json(page.with_suffix(".json"), result)
