"""What is said of a film: the same from the command line and from the served model."""

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class FilmAnswer:
    """What is said of one film, as plain values.

    Attributes:
        probability: Of the first finding (0..1).
        label: The class that the film is called; while there is no threshold, the most probable one.
        threshold: Of the first finding; None for a single model before an operating point is chosen.
        probabilities: Of every class.
        thresholds: Of every finding that has one.
        refer: Whether a radiologist should decide instead; None for a model that refers none.
        reason: Why, in words; None where the film is not referred.
    """

    probability: float
    label: str
    threshold: float | None
    probabilities: dict[str, float]
    thresholds: dict[str, float]
    refer: bool | None
    reason: str | None


def film_answers(ensemble: Ensemble, answers: Answers) -> list[FilmAnswer]:
    """Puts answers into plain values, one for each film."""
    spec, threshold = ensemble.spec, ensemble.threshold
    thresholds = {} if threshold is None else {spec.positive: threshold, **spec.further_thresholds}
    each = zip(answers.probabilities, answers.called, answers.referred, strict=True)
    return [
        FilmAnswer(
            probability=float(row[spec.positive_index]),
            label=spec.class_names[label],
            threshold=threshold,
            probabilities=dict(zip(spec.class_names, row.astype(float).tolist(), strict=True)),
            thresholds=thresholds,
            refer=referral.refer,
            reason=referral.reason,
        )
        for row, label, referral in each
    ]
