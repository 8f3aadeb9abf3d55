"""Models that answer together, and films that are looked at more than once: means of probabilities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from openmed.errors import BadInput
from openmed.inference.predictor import Predictor
from openmed.inference.referral import REASONS, unlike_reasons

VIEWS = ((0.0, 1.0), (-3.0, 1.0), (3.0, 1.0), (0.0, 0.96), (0.0, 1.04))
"""Rotation in degrees and zoom of each view: what a patient's stance and distance change. No flips: they
would put the heart on the other side. The first is the film as it is."""


class Ensemble:
    """One or more predictors of the same classes; its probabilities are the mean of theirs.

    A threshold belongs to the scores that it was chosen on. So a single model keeps its own, but a mean,
    over models or over views, has none until one was chosen on its own scores.

    Attributes:
        spec: That of the first member: classes and finding are the same in all of them. That of a mean looks
            for the first finding alone.
        threshold: The operating threshold (0..1) of these probabilities, or None.
        sizes_px: Input sizes of the members, each once, ascending.
        min_side_px: Films with a shorter side are refused by a member.
    """

    def __init__(
        self, members: Sequence[Predictor], *, threshold: float | None = None, views: bool = False
    ) -> None:
        """Puts members together.

        `threshold` was chosen on scores of this very ensemble; None is a single plain model's own. With
        `views` each member averages over small affine views of a film (`VIEWS`).

        Raises:
            BadInput: The members tell different classes or findings, or the threshold is not in 0..1.
        """
        self.members, self.spec, self._views = tuple(members), members[0].spec, views
        self.is_mean = views or len(self.members) > 1
        self.sizes_px = sorted({member.spec.image_size_px for member in self.members})
        self.min_side_px = max(member.spec.min_side_px for member in self.members)
        if threshold is not None and not 0 <= threshold <= 1:
            raise BadInput(f"a threshold lies between 0 and 1, not at {threshold}")
        self.threshold = self.spec.threshold if threshold is None and not self.is_mean else threshold
        for spec in (member.spec for member in self.members):
            if (spec.class_names, spec.positive) != (self.spec.class_names, self.spec.positive):
                raise BadInput(
                    f"models of {list(self.spec.class_names)} (finding {self.spec.positive}) and of "
                    f"{list(spec.class_names)} (finding {spec.positive}) cannot answer together: "
                    "name models of one task"
                )
        if self.is_mean:
            self.spec = replace(self.spec, further_thresholds={})

    def assess(self, films: Mapping[int, NDArray[np.uint8]]) -> tuple[np.ndarray, list[str | None] | None]:
        """Mean class probabilities of films, uint8 (N, S, S) by their size, and why they are unlike.

        Returns:
            float32 (N, classes); and for each film the reason of the members to which it is unlike, None
            where there are none of these. None where no member has statistics.
        """
        answers, reasons = [], []
        for member in self.members:
            squares = films[member.spec.image_size_px]
            for position, view in enumerate(affine_views(squares) if self._views else [squares]):
                if position:
                    answers.append(member.predict(view))
                    continue
                # The first view is the film as it is, and only that one can be unlike.
                probabilities, distances = member.assess(view)
                answers.append(probabilities)
                if (unlike := unlike_reasons(member, view, distances)) is not None:
                    reasons.append(unlike)
        mean = np.asarray(np.mean(answers, axis=0, dtype=np.float64), np.float32)
        return mean, [_first(each) for each in zip(*reasons, strict=True)] if reasons else None


def _first(reasons: Sequence[str | None]) -> str | None:
    """The reason that says most: a fault before "unlike" alone."""
    return max((each for each in reasons if each is not None), key=REASONS.index, default=None)


def affine_views(films: NDArray[np.uint8]) -> Iterator[np.ndarray]:
    """Gives the films, uint8 (N, S, S), as each of `VIEWS` shows them; the border is repeated outwards."""
    middle = (films.shape[2] - 1) / 2
    for degrees, zoom in VIEWS:
        if (degrees, zoom) == (0.0, 1.0):
            yield films
            continue
        matrix = cv2.getRotationMatrix2D((middle, middle), degrees, zoom)
        moved = [
            cv2.warpAffine(film, matrix, film.shape[::-1], borderMode=cv2.BORDER_REPLICATE) for film in films
        ]
        yield np.stack(moved) if moved else films
