"""From which distance on a film counts as unlike the films that a model learnt from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.errors import BadInput
from openmed.fitted.stored_numbers import stored_count, stored_number
from openmed.metrics.resampling import cohort


@dataclass(frozen=True)
class Novelty:
    """Fitted on calibration films, frozen before the test.

    Attributes:
        share: Share of new patients' films that may be called unlike although they come from the same source,
            in (0, 1).
        limit: Films at a distance above it are unlike; the distance is that of the feature statistics.
        patients: Calibration patients. Fewer than 1 / share - 1 of them cannot promise the share: the limit
            is then the largest distance among them.
        statistics_sha256: Hash of the file that holds the feature statistics.

    Raises:
        BadInput: The numbers do not make a limit.
    """

    share: float
    limit: float
    patients: int
    statistics_sha256: str

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and np.isfinite(self.limit) and self.patients > 0):
            raise BadInput("this is not a limit of novelty: its numbers do not fit one another")

    def unlike(self, distances: ArrayLike) -> NDArray[np.bool_]:
        """Returns the films that are unlike, bool (N,); a distance that is missing is one of them."""
        return ~(np.asarray(distances, dtype=np.float64) <= self.limit)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Novelty":
        """Reads the fields as JSON has them; BadInput where it is no limit of novelty."""
        try:
            share = stored_number(content["share"], "the novelty's share", 0, 1)
            limit = stored_number(content["limit"], "the novelty's limit")
            patients = stored_count(content["patients"], "the novelty's patients", 1)
            return cls(share, limit, patients, str(content["statistics_sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"this is not a limit of novelty: {error}") from None


def fewest_training_films(classes: int) -> int:
    """Returns how many different training films the statistics of the features need."""
    return classes + 4


def conformal_limit(distances: ArrayLike, patients: ArrayLike, share: float) -> tuple[float, int]:
    """Chooses the limit that a share of the films of new patients exceeds.

    Conformal prediction for groups: patients are exchangeable, films of one patient are not. Every patient
    weighs the same, divided among the patient's films (Dunn, Wasserman and Ramdas, J Am Stat Assoc
    2023;118:2491-2502, "pooling CDFs"), and a new patient is allowed for.

    Of `distances`, float (N,), of calibration films. Gives the limit, and the number of patients.

    Raises:
        BadInput: The share is out of range.
        ValueError: No films, wrong shapes, or a distance that is not finite.
    """
    if not 0 < share < 1:
        raise BadInput(f"the share of films that may be unlike must be above 0 and below 1, found {share}")
    values = np.asarray(distances, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.all(np.isfinite(values)):
        raise ValueError(f"expected finite distances (N,), found {values.shape}")
    patient = cohort(np.zeros(len(values), np.int64), patients).patient_of_film
    films = np.bincount(patient)
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(1 / films[patient[order]])
    # Rounded first: sums of thirds and sevenths fall short of the whole number that they make.
    wanted = round((len(films) + 1) * (1 - share), 9)
    rank = int(np.searchsorted(np.round(mass, 9), wanted))
    return float(values[order[min(rank, len(values) - 1)]]), len(films)
