"""What a classifier means where the finding is as common as in practice, and whether acting on it does good.

PPV and NPV of a test set hold only at its own share of films with the finding, which is seldom that of a
clinic. Sensitivity and specificity carry over (Bayes' theorem: Altman and Bland, BMJ 1994;309:102), as long
as the films with the finding are of the same kind.

Whether acting on the model does more good than flagging every film, or none, is its net benefit (Vickers and
Elkin, Decision curve analysis, Med Decis Making 2006;26:565-574). The threshold probability is where a
clinician would waver: one who is ready for nine needless work-ups to find one patient wavers at 0.1. The net
benefit is in found patients per film: those found, less the false alarms at the rate of exchange that the
threshold probability states.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

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
    """Carries sensitivity and specificity over to a prevalence, in (0, 1).

    The limits are those at the worst and at the best ends of both intervals together. That is conservative:
    both must be wrong at once, so the limits hold at least as surely as those given (exactly so where only
    one of the two plays a part, as for the films missed). Give intervals that know of patients, as
    `intervals.judged_intervals` makes them. What follows from NaN is NaN, as where nothing is flagged or all.

    Raises:
        BadInput: The prevalence is not in (0, 1).
    """
    _refuse("prevalence", prevalence)
    mirrored = Interval(specificity.value, specificity.high, specificity.low)

    def both(measure: Callable[[float, float, float], float], other: Interval = specificity) -> Interval:
        pairs = zip(astuple(sensitivity), astuple(other), strict=True)
        return Interval(*(measure(*pair, prevalence) for pair in pairs))

    missed = both(_missed)
    return AtPrevalence(
        prevalence,
        ppv=both(_ppv),
        npv=both(_npv),
        # More flags come from a higher sensitivity and a lower specificity; all else gains by both.
        flagged=both(_flagged, mirrored),
        missed=Interval(missed.value, missed.high, missed.low),
    )


def net_benefit_gain(
    sensitivity: Interval, specificity: Interval, threshold_probability: float, prevalence: float
) -> Interval:
    """Gives what acting on the model gains over the better of flagging every film and none.

    At a fixed prevalence the gain is a weighted sum of both shares, which are measured on different films:
    its limits are put together from theirs (Zou and Donner, Stat Med 2008;27:1693-1702) and stay open where
    theirs do.

    Returns:
        Found patients per film; NaN where a share is.

    Raises:
        BadInput: The threshold probability or the prevalence is not in (0, 1).
    """
    _refuse("threshold probability", threshold_probability)
    _refuse("prevalence", prevalence)
    odds = threshold_probability / (1 - threshold_probability)
    positives, negatives = prevalence, (1 - prevalence) * odds
    everyone = max(positives - negatives, 0.0)
    value = positives * sensitivity.value - negatives * (1 - specificity.value) - everyone
    low = math.hypot(
        positives * (sensitivity.value - sensitivity.low), negatives * (specificity.value - specificity.low)
    )
    high = math.hypot(
        positives * (sensitivity.high - sensitivity.value), negatives * (specificity.high - specificity.value)
    )
    return Interval(value, value - low, value + high)


def _refuse(name: str, number: float) -> None:
    if not 0 < number < 1:
        raise BadInput(f"a {name} must be above 0 and below 1, found {number}")


def _ppv(sensitivity: float, specificity: float, prevalence: float) -> float:
    true_flags, false_flags = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return true_flags / (true_flags + false_flags) if true_flags + false_flags != 0 else NAN


def _npv(sensitivity: float, specificity: float, prevalence: float) -> float:
    # Whoever looks for the absence of the finding has the two turned round.
    return _ppv(specificity, sensitivity, 1 - prevalence)


def _flagged(sensitivity: float, specificity: float, prevalence: float) -> float:
    return FILMS * (sensitivity * prevalence + (1 - specificity) * (1 - prevalence))


def _missed(sensitivity: float, specificity: float, prevalence: float) -> float:
    return FILMS * (1 - sensitivity) * prevalence
