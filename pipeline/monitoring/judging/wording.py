"""What a watch found, in one sentence."""

from typing import TYPE_CHECKING

from openmed.gates.gate import FAIL, INSUFFICIENT, Gate
from pipeline.monitoring.judging.checks import WARNING

if TYPE_CHECKING:
    from pipeline.settings.plan import Monitoring


def sentence(version: str, checks: list[Gate], seen: tuple[int, int, int], plan: "Monitoring") -> str:
    """Says in one sentence what the checks found, and what they could not find.

    `seen` counts the films judged, their patients, and the films with labels.
    """
    films, patients, labelled = seen
    scope = f"Version {version} on its latest {films} films of {patients} patients"
    unknown = ", ".join(check.name for check in checks if check.verdict == INSUFFICIENT)
    missing = f" (not judged for want of evidence: {unknown})" if unknown else ""
    if failed := _reasons(checks, FAIL):
        return f"{scope} is outside the limits of its change plan: {failed}{missing}."
    if doubtful := _reasons(checks, WARNING):
        enough = max(50, plan.min_patients)
        return (
            f"{scope} may be outside the limits of its change plan: {doubtful}{missing}. Nothing is held by "
            f"that; label {enough} films: openmed live ask {enough}."
        )
    if patients < plan.min_patients:
        return f"{scope} cannot be judged yet: the plan asks for {plan.min_patients} patients."
    if unknown:
        return (
            f"{scope} is not surely outside the limits of its change plan, but not all of it can be judged: "
            f"evidence is missing for {unknown}."
        )
    rest = "" if labelled else "; no film has a label, so its performance was not measured"
    return f"{scope} stays within the limits of its change plan{rest}."


def _reasons(checks: list[Gate], verdict: str) -> str:
    reasons = [check.reason.rstrip(".") for check in checks if check.verdict == verdict]
    return "; ".join(reason[0].lower() + reason[1:] for reason in reasons)
