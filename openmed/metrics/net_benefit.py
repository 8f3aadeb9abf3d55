"""Whether acting on the model does more good than flagging every film, or none.

Vickers AJ, Elkin EB. Decision curve analysis: a novel method for evaluating prediction models. Med Decis
Making 2006;26:565-574. The threshold probability is where a clinician would waver: one who is ready for nine
needless work-ups to find one patient wavers at 0.1. The net benefit is in found patients per film: those
found, less the false alarms at the rate of exchange that the threshold probability states.
"""

import math

from openmed.errors import BadInput
from openmed.metrics.score_intervals import Interval


def net_benefit_gain(
    sensitivity: Interval, specificity: Interval, threshold_probability: float, prevalence: float
) -> Interval:
    """Gives what acting on the model gains over the better of flagging every film and none.

    At a fixed prevalence the gain is a weighted sum of both shares, which are measured on different films:
    its limits are put together from theirs (Zou and Donner, Stat Med 2008;27:1693-1702) and stay open where
    theirs do.

    Args:
        sensitivity: At the operating point, with its limits.
        specificity: The same.
        threshold_probability: Where a clinician would waver, in (0, 1).
        prevalence: Share of films with the finding where the model is to serve, in (0, 1).

    Returns:
        Found patients per film; NaN where a share is.

    Raises:
        BadInput: The threshold probability or the prevalence is not in (0, 1).
    """
    for name, number in (("threshold probability", threshold_probability), ("prevalence", prevalence)):
        if not 0 < number < 1:
            raise BadInput(f"a {name} must be above 0 and below 1, found {number}")
    odds = threshold_probability / (1 - threshold_probability)
    found, spared = prevalence, (1 - prevalence) * odds
    everyone = max(found - spared, 0.0)
    value = found * sensitivity.value - spared * (1 - specificity.value) - everyone
    low = math.hypot(
        found * (sensitivity.value - sensitivity.low), spared * (specificity.value - specificity.low)
    )
    high = math.hypot(
        found * (sensitivity.high - sensitivity.value), spared * (specificity.high - specificity.value)
    )
    return Interval(value, value - low, value + high)
