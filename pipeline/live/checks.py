"""What is checked of a champion on new films. A check fails only when its whole interval is beyond the limit.

A check that cannot be made, or rests on too few films, says so: it is never left out in favour of the others.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.metrics.gates import FAIL, INSUFFICIENT, PASS
from openmed.metrics.score_intervals import Interval
from pipeline.gates import Evidence
from pipeline.judgement import Rules

if TYPE_CHECKING:
    import pandas as pd

    from openmed.metrics.drift import Shift
    from pipeline.plan import Monitoring

NAMES = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}
# A share of fewer films says more of single probabilities near 0 or 1, or of single films, than of the model.
MIN_FILMS = 20
# Every film has these; what else films tell of themselves is compared where it is known.
_ALWAYS_KNOWN = ("bits", "brightness", "contrast", "resolution", "embedding")
_NOTHING = Interval(math.nan, math.nan, math.nan)


def drift_shifts(evidence: Evidence, reference: "pd.DataFrame", films: "pd.DataFrame") -> "list[Shift]":
    """Compares the looks of films with those that a version was trained on.

    Raises:
        BadInput: The version's params.yaml lacks settings of the drift.
    """
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
    old, new = link_patients(reference, films.drop(columns="label"))
    found = compare(old.drop(columns="label"), new, seed=evidence.rules.seed, **options)
    return [shift for shift in found if shift.aspect != "class share"]


def drift_checks(shifts: "list[Shift] | None", limit: str) -> Iterator[dict[str, Any]]:
    """Checks shifts; None where the films of the training were not stored."""
    if shifts is None:
        reason = "The films that it was trained on were not stored with it: no drift can be measured."
        yield _check("drift", _NOTHING, None, INSUFFICIENT, reason)
    for shift in shifts or ():
        if shift.verdict != "not measured":
            yield _drift_check(shift, limit)
        elif shift.aspect in _ALWAYS_KNOWN:
            reason = f"The drift of {shift.aspect} cannot be measured: {shift.reason}."
            accepted = getattr(shift.limits, limit)
            yield _check(f"drift of {shift.aspect}", _NOTHING, accepted, INSUFFICIENT, reason)


def expected(evidence: Evidence, films: "pd.DataFrame") -> tuple[dict[str, Interval], dict[str, float]]:
    """What the probabilities expect of films, and on how many films each number rests."""
    from openmed.metrics.label_free import expected_performance

    found = expected_performance(
        films["score"],
        films["patient"],
        evidence.spec.threshold,
        **evidence.rules.resampling,
    )
    return found, _counts(float(films["score"].sum()), len(films))


def measured(evidence: Evidence, films: "pd.DataFrame") -> tuple[dict[str, Interval], dict[str, float]]:
    """What films with labels (column `truth`) show, and on how many films each number rests."""
    from openmed.metrics.intervals import bootstrap

    having = films["truth"] == evidence.spec.positive
    counts = _counts(int(having.sum()), len(films))
    found = bootstrap(
        having, films["score"], films["patient"], evidence.spec.threshold, **evidence.rules.resampling
    )
    return found, counts


def floor_checks(
    way: str,
    found: Mapping[str, Interval],
    counts: Mapping[str, float],
    floors: Mapping[str, float],
    problem: str = "",
) -> Iterator[dict[str, Any]]:
    """Checks expected or measured performance.

    Args:
        way: "expected" or "measured".
        found: Metric -> interval.
        counts: Metric -> the films that it rests on.
        floors: Metric -> what it must not lie surely below.
        problem: Why none of them can be judged; empty where they can.
    """
    for name, floor in floors.items():
        few = problem
        if not few and counts[name] < MIN_FILMS:
            few = f"it rests on {counts[name]:.0f} films, and {MIN_FILMS} are needed"
        yield _floor_check(f"{way} {NAMES[name]}", found[name], floor, few)


def referral_check(rules: Rules, films: "pd.DataFrame", most: float) -> dict[str, Any]:
    """Checks the share of the films that is referred to a radiologist."""
    from openmed.metrics.intervals import clustered_share

    share = clustered_share(
        films["refer"].astype(bool),
        films["patient"],
        **rules.resampling,
    )
    verdict = FAIL if share.low > most else PASS
    reason = f"It refers {share.value:.0%} of the films to a radiologist; the plan accepts {most:.0%}."
    return _check("referred", share, most, verdict, reason)


def overall(checks: list[dict[str, Any]], *, enough: bool) -> str:
    """Joins checks: FAIL if one fails, else INSUFFICIENT EVIDENCE if one says so or films are too few."""
    found = {check["verdict"] for check in checks}
    if FAIL in found:
        return FAIL
    return PASS if enough and found == {PASS} else INSUFFICIENT


def sentence(
    version: str, checks: list[dict[str, Any]], seen: tuple[int, int, int], plan: "Monitoring"
) -> str:
    """Says in one sentence what the checks found, and what they could not find.

    Args:
        version: The version.
        checks: All checks.
        seen: The films judged, their patients, and the films with labels.
        plan: How it is watched.
    """
    films, patients, labelled = seen
    scope = f"Version {version} on its latest {films} films of {patients} patients"
    reasons = [check["reason"].rstrip(".") for check in checks if check["verdict"] == FAIL]
    failed = "; ".join(reason[0].lower() + reason[1:] for reason in reasons)
    unknown = ", ".join(check["name"] for check in checks if check["verdict"] == INSUFFICIENT)
    if failed:
        rest = f" (not judged for want of evidence: {unknown})" if unknown else ""
        return f"{scope} is outside the limits of its change plan: {failed}{rest}."
    if patients < plan.min_patients:
        return f"{scope} cannot be judged yet: the plan asks for {plan.min_patients} patients."
    if unknown:
        return (
            f"{scope} is not surely outside the limits of its change plan, but not all of it can be judged: "
            f"evidence is missing for {unknown}."
        )
    rest = "" if labelled else "; no film has a label, so its performance was not measured"
    return f"{scope} stays within the limits of its change plan{rest}."


def _counts(having: float, films: float) -> dict[str, float]:
    without = films - having
    return {"auc": min(having, without), "sensitivity": having, "specificity": without}


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


def _floor_check(title: str, interval: Interval, floor: float, few: str) -> dict[str, Any]:
    if few:
        return _check(title, interval, floor, INSUFFICIENT, f"The {title} is not judged: {few}.")
    if math.isnan(interval.high):
        return _check(title, interval, floor, INSUFFICIENT, f"The {title} cannot be computed on these films.")
    if interval.high < floor:
        words = f"is {interval.value:.3f}, at most {interval.high:.3f}: surely below the plan's {floor:g}."
    elif interval.value < floor:
        words = f"is {interval.value:.3f}, below the plan's {floor:g}, though not surely."
    else:
        words = f"is {interval.value:.3f}; the plan puts it on hold surely below {floor:g}."
    return _check(title, interval, floor, FAIL if interval.high < floor else PASS, f"The {title} {words}")


def _check(name: str, interval: Interval, limit: float | None, verdict: str, reason: str) -> dict[str, Any]:
    shown = interval.to_json()
    return {"name": name, **shown, "floor": limit, "verdict": verdict, "reason": reason}
