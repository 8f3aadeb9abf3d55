"""Which films a radiologist should decide on instead of a model, each with the reason in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from openmed.fitted.spec import ModelSpec
from openmed.inference.predictor import Predictor
from openmed.measurement.quality import measure_quality

UNLIKE = "unlike the films it learnt from"
NO_CLASS = "no class stands out"
INVERTED = "looks inverted"
ROTATED = "looks rotated"
EXPOSED = "looks badly exposed"
REASONS = (UNLIKE, INVERTED, ROTATED, EXPOSED, NO_CLASS)

_CLEARLY = 0.5
"""Half of the way from a film's distance to the limit must be gone before a changed film counts as nearer."""


@dataclass(frozen=True)
class Referral:
    """Whether a radiologist should decide on a film.

    Attributes:
        refer: None where the model refers none.
        reason: One of `REASONS`, None where the film is not referred.
    """

    refer: bool | None
    reason: str | None


def referrals(
    spec: ModelSpec,
    probabilities: NDArray,
    called: NDArray[np.int_],
    unlike: Sequence[str | None] | None,
    *,
    is_mean: bool = False,
) -> list[Referral]:
    """Decides which films are referred: those that are unlike, and those whose class does not stand out.

    Of probabilities (N, classes), the classes called, int (N,), and the reasons of `unlike_reasons`. The
    abstention of one model says nothing of a mean, over models or views.
    """
    unclear = [None] * len(called) if is_mean else unclear_films(spec, probabilities, called)
    decided = []
    for why, not_clear in zip(unlike or [None] * len(called), unclear, strict=True):
        if why is not None:
            decided.append(Referral(True, why))
        elif not_clear:
            decided.append(Referral(True, NO_CLASS))
        else:
            decided.append(Referral(None if unlike is None and not_clear is None else False, None))
    return decided


def unclear_films(spec: ModelSpec, probabilities: NDArray, called: NDArray[np.int_]) -> list[bool | None]:
    """The films whose class does not stand out, or whose one class that does is not the one called.

    None of each without an abstention.
    """
    if spec.abstention is None:
        return [None] * len(called)
    alone = spec.abstention.prediction_sets(probabilities)[np.arange(len(called)), called]
    return (spec.abstention.refer(probabilities) | ~alone).tolist()


def unlike_reasons(
    predictor: Predictor, films: NDArray[np.uint8], distances: NDArray | None
) -> list[str | None] | None:
    """Says why films are unlike those that a model learnt from.

    A film that is unlike, but much less so once it is inverted, turned by a right angle or brought to a usual
    exposure, has that fault; of any other nothing more is known. Films that are not unlike cost nothing.

    Of films, uint8 (N, S, S), and their distances, float (N,), as the model's `assess` gives them.

    Returns:
        For each film a reason, None where it is not unlike; None where the model has no statistics.
    """
    novelty = predictor.spec.novelty
    if distances is None or novelty is None:
        return None
    reasons: list[str | None] = [None] * len(films)
    for position in np.flatnonzero(novelty.unlike(distances)):
        reasons[position] = _fault(predictor, films[position], float(distances[position]), novelty.limit)
    return reasons


def _fault(predictor: Predictor, film: NDArray[np.uint8], distance: float, limit: float) -> str:
    changed = [(INVERTED, cv2.bitwise_not(film))]
    changed += [(ROTATED, np.rot90(film, turns)) for turns in (1, 2, 3)]
    if measure_quality(film)["exposure"] > 0.5:
        changed.append((EXPOSED, usual_exposure(film)))
    distances = predictor.assess(np.stack([each for _, each in changed]))[1]
    if distances is None:
        raise ValueError("a model that told how far films lie no longer does")
    nearest = int(np.argmin(distances))
    return changed[nearest][0] if distances[nearest] < limit + _CLEARLY * (distance - limit) else UNLIKE


def usual_exposure(film: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stretches a film, uint8 (H, W), between its outer hundredths and makes its median mid-grey."""
    low, middle, high = np.percentile(film, (1, 50, 99))
    span = max(high - low, 1.0)
    gamma = np.log(0.5) / np.log(np.clip((middle - low) / span, 0.02, 0.98))
    levels = np.clip((np.arange(256) - low) / span, 0, 1) ** gamma
    return cv2.LUT(film, np.rint(levels * 255).astype(np.uint8))
