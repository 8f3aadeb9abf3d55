"""Judges the champion on the latest films that it scored, by the plan it came with, and puts it on hold.

Nothing here can make a champion better or worse than it is: a hold only says that people have to look.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import write_json, write_text
from openmed.metrics.gates import FAIL, INSUFFICIENT, PASS
from openmed.metrics.score_intervals import Interval
from pipeline import registry
from pipeline.gates import Evidence
from pipeline.judgement import Rules
from pipeline.live.log import ScoreLog, labels

if TYPE_CHECKING:
    import pandas as pd

    from openmed.metrics.drift import Shift
    from pipeline.plan import Monitoring

BY = "monitoring"
_PERIODS = 12
# A share of fewer films says more of single probabilities near 0 or 1 than of the model.
_MIN_EXPECTED_FILMS = 20
_NAMES = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}


def watch(home: Path) -> dict[str, Any]:
    """Judges the champion on its latest films; when they show it as surely too bad, it goes on hold.

    Compared are their looks with those of the films that it was trained on; what is expected of it from its
    own probabilities; what it did where labels have come; and how much it refers. A check fails only when
    its whole interval lies beyond the limit of the change plan. Films that a person has released the version
    on are not judged again. Writes watch.json and watch.html in `watch`
    below the state folder.

    Args:
        home: The state folder.

    Returns:
        version, verdict (PASS, FAIL or INSUFFICIENT EVIDENCE), sentence, films, patients, labelled, flagged
        (shares of the films, of the test films too), checks (lists of gates), shifts, periods, hold (the
        reason that holds the version, None when nothing does), page.

    Raises:
        BadInput: There is no champion.
        IntegrityError: The champion's evidence or the log was changed.
    """
    version, reference = registry.champion_profile()
    if version is None:
        raise BadInput("there is no champion to watch: promote a version first")
    evidence, log = Evidence.of(version), ScoreLog(home, version)
    plan = evidence.plan.protocol.monitoring
    films = _unreviewed(version, _labelled(log.latest(plan.films), labels(home)))
    patients = int(films["patient"].nunique())
    enough = patients >= plan.min_patients
    shifts = _shifts(evidence, reference, films) if enough and reference is not None else []
    checks = [*_checks(evidence, films, plan, shifts)] if enough else []
    verdict = _verdict(checks)
    sentence = _sentence(version, verdict, checks, (len(films), patients), plan)
    if verdict == FAIL:
        registry.hold(version, by=BY, reason=sentence)
    held = registry.on_hold().get(version)
    result = {
        "version": version,
        "verdict": verdict,
        "sentence": sentence,
        "films": len(films),
        "patients": patients,
        "labelled": int(films["truth"].notna().sum()),
        "flagged": {"now": _flagged(films, evidence), "test": _flagged(evidence.test, evidence)},
        "checks": checks,
        "shifts": [shift.to_json() for shift in shifts],
        "periods": list(_periods(evidence, log, home, plan)),
        "hold": held and held.content["reason"],
        "page": str(Path(home) / "watch" / "watch.html"),
    }
    _write(result, reference, films)
    return result


def _labelled(films: "pd.DataFrame", known: dict[str, str]) -> "pd.DataFrame":
    return films.assign(truth=films["sha256"].map(known))


def _unreviewed(version: str, films: "pd.DataFrame") -> "pd.DataFrame":
    """The films scored since a person released the version: what was released would hold it again."""
    released = [each.at for each in registry.history(version) if each.event == registry.RELEASED]
    return films[films["scored_at"] > max(released)].reset_index(drop=True) if released else films


def _checks(
    evidence: Evidence, films: "pd.DataFrame", plan: "Monitoring", shifts: "list[Shift]"
) -> Iterator[dict[str, Any]]:
    yield from (_drift_check(shift, plan.drift) for shift in shifts if shift.verdict != "not measured")
    for way, found in (
        ("expected", _expected(evidence, films)),
        ("measured", _measured(evidence, films, plan)),
    ):
        for name, floor in plan.floors.items():
            if name in found:
                yield _floor_check(way, name, found[name], floor)
    if evidence.spec.abstention is not None:
        yield _referral_check(evidence.rules, films, plan.max_referred)


def _shifts(evidence: Evidence, reference: "pd.DataFrame", films: "pd.DataFrame") -> "list[Shift]":
    from openmed.data.profile import link_patients
    from openmed.metrics.drift import Limits, compare

    try:
        settings = evidence.params["drift"]
        options = {
            "limits": {
                name: Limits(float(each["moderate"]), float(each["large"]))
                for name, each in settings["limits"].items()
            },
            "replicates": int(settings["replicates"]),
            "confidence": float(settings["confidence"]),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"params.yaml of version {evidence.version} lacks settings of the drift: {error}"
        ) from None
    # Labels of new films are few and come late, so classes are not compared.
    old, new = link_patients(reference, films.drop(columns=["label", "truth"]))
    found = compare(old.drop(columns="label"), new, seed=evidence.rules.seed, **options)
    return [shift for shift in found if shift.aspect != "class share"]


def _expected(evidence: Evidence, films: "pd.DataFrame") -> dict[str, Interval]:
    """What the probabilities expect, of the shares that enough films are expected to be of."""
    from openmed.metrics.label_free import expected_performance

    found = expected_performance(
        films["score"],
        films["patient"],
        evidence.spec.threshold,
        **evidence.rules.resampling,
    )
    having = float(films["score"].sum())
    counts = {"sensitivity": having, "specificity": len(films) - having}
    counts["auc"] = min(counts.values())
    return {name: each for name, each in found.items() if counts[name] >= _MIN_EXPECTED_FILMS}


def _measured(evidence: Evidence, films: "pd.DataFrame", plan: "Monitoring | None") -> dict[str, Interval]:
    """What the films with labels show; nothing when they are of too few patients."""
    from openmed.metrics.intervals import bootstrap

    known = films[films["truth"].notna()]
    if not len(known) or (plan is not None and known["patient"].nunique() < plan.min_patients):
        return {}
    return bootstrap(
        known["truth"] == evidence.spec.positive,
        known["score"],
        known["patient"],
        evidence.spec.threshold,
        **evidence.rules.resampling,
    )


def _drift_check(shift: "Shift", limit: str) -> dict[str, Any]:
    worst = shift.verdict == "large" or shift.verdict == limit
    interval, floor = shift.interval, getattr(shift.limits, limit)
    words = f"In {shift.aspect} the films lie {interval.value:.2f} from those that it was trained on"
    reason = (
        f"{words}, surely more than the accepted {floor:g}."
        if worst
        else f"{words}; up to {floor:g} is accepted."
    )
    return _check(f"drift of {shift.aspect}", interval, floor, FAIL if worst else PASS, reason)


def _floor_check(way: str, name: str, interval: Interval, floor: float) -> dict[str, Any]:
    title = f"{way} {_NAMES[name]}"
    if math.isnan(interval.high):
        return _check(title, interval, floor, INSUFFICIENT, f"The {title} cannot be computed on these films.")
    if interval.high < floor:
        words = f"is {interval.value:.3f}, at most {interval.high:.3f}: surely below the plan's {floor:g}."
    elif interval.value < floor:
        words = f"is {interval.value:.3f}, below the plan's {floor:g}, though not surely."
    else:
        words = f"is {interval.value:.3f}; the plan puts it on hold surely below {floor:g}."
    return _check(title, interval, floor, FAIL if interval.high < floor else PASS, f"The {title} {words}")


def _referral_check(rules: Rules, films: "pd.DataFrame", most: float) -> dict[str, Any]:
    from openmed.metrics.intervals import clustered_share

    share = clustered_share(
        films["refer"].astype(bool),
        films["patient"],
        **rules.resampling,
    )
    verdict = FAIL if share.low > most else PASS
    reason = f"It refers {share.value:.0%} of the films to a radiologist; the plan accepts {most:.0%}."
    return _check("referred", share, most, verdict, reason)


def _check(name: str, interval: Interval, limit: float, verdict: str, reason: str) -> dict[str, Any]:
    shown = interval.to_json()
    return {"name": name, **shown, "floor": limit, "verdict": verdict, "reason": reason}


def _verdict(checks: list[dict[str, Any]]) -> str:
    found = {check["verdict"] for check in checks}
    return next((verdict for verdict in (FAIL, PASS) if verdict in found), INSUFFICIENT)


def _sentence(
    version: str, verdict: str, checks: list[dict[str, Any]], seen: tuple[int, int], plan: "Monitoring"
) -> str:
    films, patients = seen
    scope = f"Version {version} on its latest {films} films of {patients} patients"
    if verdict == INSUFFICIENT:
        return f"{scope} cannot be judged yet: the plan asks for {plan.min_patients} patients."
    reasons = [check["reason"].rstrip(".") for check in checks if check["verdict"] == FAIL]
    failed = [reason[0].lower() + reason[1:] for reason in reasons]
    if not failed:
        return f"{scope} stays within the limits of its change plan."
    return f"{scope} is outside the limits of its change plan: {'; '.join(failed)}."


def _flagged(films: "pd.DataFrame", evidence: Evidence) -> float | None:
    return float((films["score"] >= evidence.spec.threshold).mean()) if len(films) else None


def _periods(evidence: Evidence, log: ScoreLog, home: Path, plan: "Monitoring") -> Iterator[dict[str, Any]]:
    """Expected and measured performance of the latest periods, each of as many films as are judged."""
    columns = ["sha256", "patient", "score", "scored_at"]
    films = _labelled(log.latest(_PERIODS * plan.films, columns), labels(home))
    # Counted from the newest film, so that the last period is the one that is judged.
    for end in range(len(films) % plan.films or plan.films, len(films) + 1, plan.films):
        part = films.iloc[max(0, end - plan.films) : end]
        found = {"expected": _expected(evidence, part), "measured": _measured(evidence, part, None)}
        yield {
            "films": len(part),
            "until": part["scored_at"].iloc[-1],
            **{
                way: {name: each[name].to_json() for name in _NAMES if name in each}
                for way, each in found.items()
            },
        }


def _write(result: dict[str, Any], reference: "pd.DataFrame | None", films: "pd.DataFrame") -> None:
    from pipeline.report.watch_page import build_watch_page

    page = Path(result["page"])
    write_text(page, build_watch_page(result, reference, films))
    write_json(page.with_suffix(".json"), result)
