"""Judges a champion on tables of films. Knows nothing of logs, registries and pages."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openmed.errors import BadInput
from openmed.gates.gate import Gate
from openmed.metrics.score_intervals import Interval
from pipeline.monitoring.judging import checks
from pipeline.monitoring.judging.looks import LABELS, LOOKS, Looks
from pipeline.monitoring.judging.subject import Subject

if TYPE_CHECKING:
    import pandas as pd

    from openmed.monitoring.drift import Shift
    from pipeline.settings.plan import Monitoring


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        verdict: FAIL, WARNING, INSUFFICIENT EVIDENCE or PASS.
        checks: All checks; the floor of a check of drift or referrals is what is accepted.
        shifts: How the looks of the films moved, at their share of the finding.
        share: Estimated share of the finding; None where it was not estimated.
    """

    verdict: str
    checks: list[Gate]
    shifts: "list[Shift]"
    share: Interval | None


def judge(
    subject: Subject,
    plan: "Monitoring",
    films: "pd.DataFrame",
    reference: "pd.DataFrame | None",
    labelled: "Mapping[str, pd.DataFrame]",
    looks: Looks,
) -> Judgement:
    """Judges a champion on its latest films.

    The films are as the log has them; `reference` holds those that it was trained on, None where they were
    not stored, and `labelled` way ("measured", "sampled") -> films with labels in a column `truth`. All
    `looks` spend one error rate.
    """
    enough = films["patient"].nunique() >= plan.min_patients
    made: list[Gate] = []
    shifts: list[Shift] | None = []
    share = None
    if enough:
        estimates, counts = checks.expected(subject, films)
        share = estimates["share"]
        error = looks.error(LOOKS, "films", films["sha256"], plan.films, plan.error_rate)
        # Drift and referrals each have half of what this look may err.
        shifts = None if reference is None else drift_shifts(subject, reference, films, share.value)
        confidence = 0.95 if shifts is None else float(subject.params["drift"]["confidence"])
        made += checks.drift_checks(shifts, plan.drift, error / 2, confidence)
        made += checks.expected_checks(estimates, counts, plan)
        if subject.refers is not None:
            made.append(
                checks.referral_check(subject.refers, films, plan.max_referred, share.value, error / 2)
            )
    for way, table in labelled.items():
        made += _measured(way, subject, plan, table, looks)
    verdict = checks.overall(made, enough=enough)
    return Judgement(verdict, made, shifts or [], share)


def _measured(
    way: str, subject: Subject, plan: "Monitoring", films: "pd.DataFrame", looks: Looks
) -> Iterator[Gate]:
    """The checks of films with labels; none where no film has one."""
    patients = films["patient"].nunique()
    if not patients:
        return
    problem, error = "", plan.error_rate
    if patients < plan.min_patients:
        problem = f"labels have come for {patients} patients, and the plan asks for {plan.min_patients}"
    else:
        judged = films["sha256"].str[:12] + films["truth"]
        error = looks.error(LABELS, way, judged, plan.films, plan.error_rate)
    yield from checks.measured_checks(way, subject, films, plan, error, problem)


def drift_shifts(
    subject: Subject, reference: "pd.DataFrame", films: "pd.DataFrame", share: float
) -> "list[Shift]":
    """Compares the looks of films with those that a version was trained on, at one share of the finding.

    A share of NaN compares with all films of the training.

    Raises:
        BadInput: The version's params.yaml lacks settings of the drift.
    """
    from openmed.dataset.profile import link_patients
    from openmed.monitoring.drift import Limits, compare

    try:
        settings = subject.params["drift"]
        limits = {
            name: Limits(float(each["moderate"]), float(each["large"]))
            for name, each in settings["limits"].items()
        }
        replicates, confidence = int(settings["replicates"]), float(settings["confidence"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"params.yaml of version {subject.version} lacks settings of the drift: {error}"
        ) from None
    # Labels of new films are few and come late, so classes are not compared.
    old = matched(reference, subject.positive, share)
    old, new = link_patients(old, films.drop(columns="label", errors="ignore"))
    old, seed = old.drop(columns="label"), subject.rules.seed
    shifts = compare(old, new, limits, replicates=replicates, confidence=confidence, seed=seed)
    return [shift for shift in shifts if shift.aspect != "class share"]


def matched(reference: "pd.DataFrame", positive: str, share: float) -> "pd.DataFrame":
    """Takes films of the training out, by content, until the finding is as frequent as among others.

    Films with and without the finding look unlike each other: where it only became rarer, the films as a
    whole look otherwise, and nothing else has changed. A reference of one class stays as it is.
    """
    having = reference["label"] == positive
    counts = {True: int(having.sum()), False: int((~having).sum())}
    if math.isnan(share) or not all(counts.values()):
        return reference
    wanted = {True: share, False: 1 - share}
    total = min(counts[side] / part for side, part in wanted.items() if part > 0)
    turn = reference["sha256"].groupby(having).rank(method="first")
    most = having.map({side: round(total * part) for side, part in wanted.items()})
    return reference[turn <= most]
