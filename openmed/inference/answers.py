"""What is said of a film: the same from the command line and from the served model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openmed.inference.ensemble import Ensemble
from openmed.inference.referral import Referral, referrals
from openmed.inference.session import called_classes


@dataclass(frozen=True)
class Answers:
    """Of one or more models, on films.

    Attributes:
        probabilities: float32 (N, classes).
        called: int (N,), the classes that the films are called.
        referred: For each film whether a radiologist should decide instead.
    """

    probabilities: NDArray[np.float32]
    called: NDArray[np.int_]
    referred: list[Referral]


def answer(ensemble: Ensemble, films: Mapping[int, NDArray[np.uint8]]) -> Answers:
    """Asks one or more models of films, uint8 (N, S, S) at each size S of `ensemble.sizes_px`."""
    probabilities, unlike = ensemble.assess(films)
    called = called_classes(ensemble.spec, probabilities, ensemble.threshold)
    referred = referrals(ensemble.spec, probabilities, called, unlike, is_mean=ensemble.is_mean)
    return Answers(probabilities, called, referred)


def to_rows(ensemble: Ensemble, answers: Answers) -> list[dict[str, Any]]:
    """Puts answers into plain values, a row a film.

    Returns:
        For each film probability (of the first finding, 0..1), label (the class that it is called), threshold
        (None for a single model before an operating point is chosen; the label is then the most probable
        class), probabilities (of every class), thresholds (of every finding that has one), refer (whether a
        radiologist should decide instead; None for a model that refers none), reason (why, in words; None
        where it is not referred).
    """
    spec, threshold = ensemble.spec, ensemble.threshold
    thresholds = {} if threshold is None else {spec.positive: threshold, **spec.further_thresholds}
    each = zip(answers.probabilities, answers.called, answers.referred, strict=True)
    return [
        {
            "probability": float(row[spec.positive_index]),
            "label": spec.class_names[label],
            "threshold": threshold,
            "probabilities": dict(zip(spec.class_names, row.astype(float).tolist(), strict=True)),
            "thresholds": thresholds,
            "refer": referral.refer,
            "reason": referral.reason,
        }
        for row, label, referral in each
    ]
