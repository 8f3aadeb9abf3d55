"""Models that answer together, and films that are looked at more than once: means of probabilities."""

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from openmed.errors import BadInput
from openmed.models.session import Predictor
from openmed.models.spec import ModelSpec

VIEWS = ((0.0, 1.0), (-3.0, 1.0), (3.0, 1.0), (0.0, 0.96), (0.0, 1.04))
"""Rotation in degrees and zoom of each view: what a patient's stance and distance change. No flips: they
would put the heart on the other side. The first is the film as it is."""


class Ensemble:
    """One or more predictors of the same classes; its probabilities are the mean of theirs.

    A threshold belongs to the scores that it was chosen on. So a single model keeps its own, but a mean,
    over models or over views, has none until one was chosen on its own scores.

    Attributes:
        spec: That of the first member: classes and finding are the same in all of them.
        threshold: The operating threshold (0..1) of these probabilities, or None.
        sizes_px: Input sizes of the members, each once, ascending.
    """

    def __init__(
        self, members: Sequence[Predictor], *, threshold: float | None = None, views: bool = False
    ) -> None:
        """Puts members together.

        Args:
            members: The predictors.
            threshold: Chosen on scores of this very ensemble; default: a single plain model's own.
            views: Whether each member averages over small affine views of a film (`VIEWS`).

        Raises:
            BadInput: The members tell different classes or findings, or the threshold is not in 0..1.
        """
        self.members, self.spec, self._views = tuple(members), members[0].spec, views
        self.is_mean = views or len(self.members) > 1
        self.sizes_px = sorted({member.spec.image_size_px for member in self.members})
        if threshold is not None and not 0 <= threshold <= 1:
            raise BadInput(f"a threshold lies between 0 and 1, not at {threshold}")
        self.threshold = self.spec.threshold if threshold is None and not self.is_mean else threshold
        _check_alike([member.spec for member in self.members])

    def predict(self, films: Mapping[int, np.ndarray]) -> np.ndarray:
        """Mean class probabilities.

        Args:
            films: The same films, uint8 (N, S, S), at each size S of `sizes_px`.

        Returns:
            float32 (N, classes); rows sum to 1.
        """
        answers = [member.predict(view) for member in self.members for view in self._seen(films, member.spec)]
        return np.mean(answers, axis=0, dtype=np.float64).astype(np.float32)

    def _seen(self, films: Mapping[int, np.ndarray], spec: ModelSpec) -> Iterator[np.ndarray]:
        squares = films[spec.image_size_px]
        return affine_views(squares) if self._views else iter([squares])


def affine_views(films: np.ndarray) -> Iterator[np.ndarray]:
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


def _check_alike(specs: Sequence[ModelSpec]) -> None:
    first = specs[0]
    for spec in specs[1:]:
        if (spec.class_names, spec.positive) != (first.class_names, first.positive):
            raise BadInput(
                f"models of {list(first.class_names)} (finding {first.positive}) and of "
                f"{list(spec.class_names)} (finding {spec.positive}) cannot answer together: "
                "name models of one task"
            )
