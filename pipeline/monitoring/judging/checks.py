"""What is checked of a champion on new films. A check fails only when its whole interval is beyond the limit.

A check that cannot be made, or rests on too few films, says so: it is never left out in favour of the others.
What is expected without labels warns and never fails.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from openmed.gates.gate import FAIL, INSUFFICIENT, PASS, Gate
from openmed.metrics.score_intervals import Interval, critical_value
from pipeline.monitoring.judging.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

    from openmed.monitoring.drift import Shift
    from openmed.monitoring.sampled_performance import Estimate
    from pipeline.settings.plan import Monitoring

WARNING = "WARNING"
NAMES = {"auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}
# A share of fewer films says more of single probabilities near 0 or 1, or of single films, than of the model.
MIN_FILMS = 20
# What is missed harms most: its checks have the larger part of the error that a look may make, and so find a
# loss with fewer labels. A loss is seen before a floor is passed.
_LOSS_PARTS = {"sensitivity": 12, "specificity": 2, "auc": 3}
# Every film has these; what else films tell of themselves is compared where it is known.
_ALWAYS_KNOWN = ("bits", "brightness", "contrast", "resolution", "embedding")
_NOTHING = Interval(math.nan, math.nan, math.nan)


def drift_checks(shifts: "list[Shift] | None", limit: str, error: float, confidence: float) -> Iterator[Gate]:
    """Checks shifts; None where the films of the training were not stored.

    Their intervals have the coverage `confidence`; the lower limits are drawn out to that of the look, in
    which all of them together may make the `error`. The limit is moderate or large.
    """
    if shifts is None:
        reason = "The films that it was trained on were not stored with it: no drift can be measured."
        yield _check("drift", _NOTHING, math.nan, INSUFFICIENT, reason)
        return
    measured = sum(shift.verdict != "not measured" for shift in shifts)
    for shift in shifts:
        accepted = getattr(shift.limits, limit)
        if shift.verdict != "not measured":
            at_look = critical_value(1 - 2 * error / measured) / critical_value(confidence)
            yield _drift_check(shift, accepted, max(1.0, at_look))
        elif shift.aspect in _ALWAYS_KNOWN:
            reason = f"The drift of {shift.aspect} cannot be measured: {shift.reason}."
            yield _check(f"drift of {shift.aspect}", _NOTHING, accepted, INSUFFICIENT, reason)


def expected(subject: Subject, films: "pd.DataFrame") -> tuple[dict[str, Interval], dict[str, float]]:
    """What the probabilities expect of films, and on how many films each number rests.

    Beside the metrics stands `share`, the estimated share of the finding; nothing is expected of a version
    whose calibration films are of one class.
    """
    from openmed.monitoring.label_free import expected_performance

    if subject.known is None:
        return dict.fromkeys((*NAMES, "share"), _NOTHING), dict.fromkeys(NAMES, 0.0)
    estimates = expected_performance(
        films["score"], films["patient"], subject.threshold, subject.known, **subject.rules.resampling
    )
    share = estimates["share"].value
    return estimates, _counts(share * len(films), len(films))


def expected_checks(
    estimates: Mapping[str, Interval], counts: Mapping[str, float], plan: "Monitoring"
) -> Iterator[Gate]:
    """Checks what is expected; what lies surely below a floor is a warning."""
    for name, floor in plan.floors.items():
        title, interval = f"expected {NAMES[name]}", estimates[name]
        reason = _unjudged(title, interval, counts[name], "")
        verdict = INSUFFICIENT if reason else WARNING if interval.high < floor else PASS
        if verdict == WARNING:
            reason = (
                f"The {title} is {interval.value:.3f}, at most {interval.high:.3f}, below the plan's "
                f"{floor:g}; an estimate, with the finding on {estimates['share'].value:.0%} of the films. "
                "Labels decide."
            )
        yield _check(title, interval, floor, verdict, reason or _floor_words(title, interval, floor))


def measured(subject: Subject, films: "pd.DataFrame") -> "tuple[dict[str, Estimate], dict[str, float]]":
    """What films with labels (column `truth`) show, and on how many films each number rests.

    Films that were drawn to be labelled have a column `probability`, and count by its inverse.
    """
    from openmed.monitoring.sampled_performance import performance

    having = films["truth"] == subject.positive
    estimates = performance(
        having, films["score"], films["patient"], subject.threshold, films.get("probability")
    )
    return estimates, _counts(int(having.sum()), len(films))


def measured_checks(
    way: str, subject: Subject, films: "pd.DataFrame", plan: "Monitoring", error: float, problem: str = ""
) -> Iterator[Gate]:
    """Checks what labels show: against the plan's floors, and against what its own test films showed.

    The way is "measured" on labels that came, or "sampled" on films that were drawn to be labelled. All of
    these checks together may make the `error`; a `problem` says why none of them can be judged.
    """
    from openmed.monitoring.sampled_performance import difference

    estimates, counts = measured(subject, films)
    losses = plan.max_losses or {}
    parts = {("floor", name): 1 for name in plan.floors}
    parts |= {("loss", name): _LOSS_PARTS[name] for name in losses}
    confidences = {key: 1 - 2 * error * part / sum(parts.values()) for key, part in parts.items()}
    for name, floor in plan.floors.items():
        title, interval = f"{way} {NAMES[name]}", estimates[name].interval(confidences["floor", name])
        unjudged = _unjudged(title, interval, counts[name], problem)
        verdict = INSUFFICIENT if unjudged else FAIL if interval.high < floor else PASS
        yield _check(title, interval, floor, verdict, unjudged or _floor_words(title, interval, floor))
    for name, loss in losses.items():
        title = f"{way} {NAMES[name]}, less that of the test films"
        interval = difference(estimates[name], subject.test[name], confidences["loss", name])
        unjudged = _unjudged(title, interval, counts[name], problem)
        verdict = INSUFFICIENT if unjudged else FAIL if interval.high < -loss else PASS
        words = _loss_words(f"{way} {NAMES[name]}", interval, subject.test[name].value, loss)
        yield _check(title, interval, -loss, verdict, unjudged or words)


def referral_check(
    refers: tuple[float, float], films: "pd.DataFrame", most: float, share: float, error: float
) -> Gate:
    """Checks the share of the films that is referred to a radiologist, of which the plan accepts `most`.

    Where the test films would be referred as often (`refers`, see `Subject`) at the films' estimated share of
    the finding (NaN where there is none), nothing but that share has changed: that warns.
    """
    import numpy as np

    from openmed.monitoring.sampled_performance import proportion

    patients = np.unique(films["patient"].to_numpy(str), return_inverse=True)[1]
    refer = films["refer"].fillna(False).to_numpy(bool)
    interval = proportion(refer, np.ones(len(films)), patients).interval(1 - 2 * error)
    words = f"It refers {interval.value:.0%} of the films to a radiologist; the plan accepts {most:.0%}."
    if not interval.low > most:
        return _check("referred", interval, most, PASS, words)
    without, having = refers
    as_before = without if math.isnan(share) else without * (1 - share) + having * share
    if interval.low > as_before:
        return _check("referred", interval, most, FAIL, words)
    reason = f"{words} Of its test films it would refer {as_before:.0%} where the finding is this frequent."
    return _check("referred", interval, most, WARNING, reason)


def overall(checks: list[Gate], *, enough: bool) -> str:
    """Joins checks: the worst of FAIL, WARNING and INSUFFICIENT EVIDENCE; too few films are the last."""
    verdicts = {check.verdict for check in checks}
    for verdict in (FAIL, WARNING):
        if verdict in verdicts:
            return verdict
    return PASS if enough and verdicts == {PASS} else INSUFFICIENT


def _counts(having: float, films: float) -> dict[str, float]:
    without = films - having
    return {"auc": min(having, without), "sensitivity": having, "specificity": without}


def _drift_check(shift: "Shift", accepted: float, at_look: float) -> Gate:
    value, high = shift.interval.value, shift.interval.high
    # As a normal distribution would be drawn out: the last resamples of a thousand say nothing of 0.9999.
    interval = Interval(value, max(0.0, value - at_look * (value - shift.interval.low)), high)
    failed = interval.low > accepted
    words = f"In {shift.aspect} the films lie {interval.value:.2f} from those that it was trained on"
    words += (
        f", surely more than the accepted {accepted:g}." if failed else f"; up to {accepted:g} is accepted."
    )
    return _check(f"drift of {shift.aspect}", interval, accepted, FAIL if failed else PASS, words)


def _loss_words(name: str, interval: Interval, test: float, loss: float) -> str:
    words = f"The {name} lies {interval.value:+.3f} from the {test:.3f} of its test films"
    if interval.high < -loss:
        return f"{words}, at best {interval.high:+.3f}: surely more than the accepted loss of {loss:g}."
    return f"{words}; it goes on hold where surely more than {loss:g} is lost."


def _unjudged(title: str, interval: Interval, films: float, problem: str) -> str:
    """Says why a number is not judged; empty where it is."""
    if not problem and films < MIN_FILMS:
        problem = f"it rests on {films:.0f} films, and {MIN_FILMS} are needed"
    if problem:
        return f"The {title} is not judged: {problem}."
    return f"The {title} cannot be computed on these films." if math.isnan(interval.high) else ""


def _floor_words(title: str, interval: Interval, floor: float) -> str:
    if interval.high < floor:
        words = f"is {interval.value:.3f}, at most {interval.high:.3f}: surely below the plan's {floor:g}."
    elif interval.value < floor:
        words = f"is {interval.value:.3f}, below the plan's {floor:g}, though not surely."
    elif title.startswith("expected"):
        words = f"is {interval.value:.3f}; the plan's floor is {floor:g}."
    else:
        words = f"is {interval.value:.3f}; the plan puts it on hold surely below {floor:g}."
    return f"The {title} {words}"


def _check(name: str, interval: Interval, limit: float, verdict: str, reason: str) -> Gate:
    value, low, high = map(float, (interval.value, interval.low, interval.high))
    return Gate(name, value, low, high, limit, verdict, reason)
