"""The operating point: the threshold above which a film is flagged."""

import numpy as np
from numpy.typing import ArrayLike

from openmed.errors import BadInput
from openmed.metrics.classification import checked_labels, checked_scores


def choose_threshold(labels: ArrayLike, scores: ArrayLike, target_sensitivity: float) -> float:
    """Returns the highest threshold that keeps the sensitivity at or above a target.

    Of all thresholds that flag the same films it is the one half way between the lowest score that must
    be flagged and the next lower score (0 if there is none), so that a last-digit difference between two
    machines does not move a film across it. It is rounded to 32-bit precision, the precision of the
    scores; where two scores are too close for that, it is the flagged score itself.

    Args:
        labels: (N,) 0 or 1, of calibration films: never the films the model is judged on.
        scores: (N,) probabilities of the finding in [0, 1].
        target_sensitivity: In (0, 1].

    Returns:
        The threshold in [0, 1]; a film is flagged when its score is at or above it.

    Raises:
        BadInput: The target is out of range, or no film has the finding.
        ValueError: Wrong shapes or values.
    """
    if not 0 < target_sensitivity <= 1:
        raise BadInput(f"target_sensitivity must be above 0 and at most 1, found {target_sensitivity}")
    truth = checked_labels(labels)
    values = checked_scores(scores, len(truth))
    having = np.sort(values[truth == 1])[::-1]
    if not having.size:
        raise BadInput(
            f"none of the {len(truth)} calibration films has the finding, so no threshold can be chosen; "
            "give the calibration set films with it"
        )
    # Compared as shares: 0.07 * 100 is 7.000000000000001 and would ask for an eighth film.
    reached = np.arange(1, having.size + 1) / having.size >= target_sensitivity
    flagged = float(having[np.argmax(reached)])
    lower = float(np.max(values[values < flagged], initial=0.0))
    middle = float(np.float32(lower + (flagged - lower) / 2))
    return middle if lower < middle <= flagged else flagged
