"""What a classifier means where the finding is as common as in practice.

PPV and NPV of a test set hold only at its own share of films with the finding, which is seldom that of a
clinic. Sensitivity and specificity carry over (Bayes' theorem: Altman and Bland, BMJ 1994;309:102), as long
as the films with the finding are of the same kind.
"""

from collections.abc import Callable
from dataclasses import dataclass

from openmed.errors import BadInput
from openmed.metrics.classification import NAN
from openmed.metrics.score_intervals import Interval

PREVALENCES = (0.05, 0.10, 0.30)
FILMS = 1000


@dataclass(frozen=True)
class AtPrevalence:
    """What to expect of 1,000 films.

    Attributes:
        prevalence: Share of films with the finding.
        ppv: Share of the flagged films that have the finding.
        npv: Share of the films not flagged that lack it.
        flagged: Films flagged, of 1,000.
        missed: Films with the finding that are not flagged, of 1,000.
    """

    prevalence: float
    ppv: Interval
    npv: Interval
    flagged: Interval
    missed: Interval

    def to_json(self) -> dict[str, float | dict[str, float | None]]:
        """Returns the prevalence and each interval as plain values, NaN as None."""
        parts = {"ppv": self.ppv, "npv": self.npv, "flagged": self.flagged, "missed": self.missed}
        return {"prevalence": self.prevalence, **{name: part.to_json() for name, part in parts.items()}}


def at_prevalence(sensitivity: Interval, specificity: Interval, prevalence: float) -> AtPrevalence:
    """Carries sensitivity and specificity over to a prevalence.

    The limits are those at the worst and at the best ends of both intervals together. That is conservative:
    both must be wrong at once, so the limits hold at least as surely as those given (exactly so where only
    one of the two plays a part, as for the films missed). Give intervals that know of patients, as
    `intervals.judged_intervals` makes them.

    Args:
        sensitivity: With its confidence limits, each in [0, 1] or NaN.
        specificity: With its confidence limits, each in [0, 1] or NaN.
        prevalence: Share of films with the finding, in (0, 1).

    Returns:
        Values and limits; NaN where they follow from NaN, or nothing is flagged or everything.

    Raises:
        BadInput: The prevalence is not in (0, 1).
    """
    if not 0 < prevalence < 1:
        raise BadInput(f"a prevalence must be above 0 and below 1, found {prevalence}")

    def both(measure: Callable[[float, float, float], float], *, more_flags_raise: bool = False) -> Interval:
        ends = [measure(sensitivity.value, specificity.value, prevalence)]
        # More flags come from a higher sensitivity and a lower specificity; all else gains by both.
        by_end = (
            (specificity.high, specificity.low) if more_flags_raise else (specificity.low, specificity.high)
        )
        for high_or_low, other in zip((sensitivity.low, sensitivity.high), by_end, strict=True):
            ends.append(measure(high_or_low, other, prevalence))
        return Interval(*ends)

    fewest_missed = both(_missed)
    return AtPrevalence(
        prevalence,
        ppv=both(_ppv),
        npv=both(_npv),
        flagged=both(_flagged, more_flags_raise=True),
        missed=Interval(fewest_missed.value, fewest_missed.high, fewest_missed.low),
    )


def _ppv(sensitivity: float, specificity: float, prevalence: float) -> float:
    found, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return found / (found + alarms) if found + alarms != 0 else NAN


def _npv(sensitivity: float, specificity: float, prevalence: float) -> float:
    # Whoever looks for the absence of the finding has the two turned round.
    return _ppv(specificity, sensitivity, 1 - prevalence)


def _flagged(sensitivity: float, specificity: float, prevalence: float) -> float:
    return FILMS * (sensitivity * prevalence + (1 - specificity) * (1 - prevalence))


def _missed(sensitivity: float, specificity: float, prevalence: float) -> float:
    return FILMS * (1 - sensitivity) * prevalence
