"""Abstention: films on which the model had better not decide, but refer to a radiologist.

Split conformal prediction, class by class (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random
World, 2005, chapter 4.5, "Mondrian"; Sadinle, Lei and Wasserman, J Am Stat Assoc 2019;114:223-234): a class
is kept for a film when its probability is not unusually low among calibration films of that class. The set of
classes kept holds the true one with the wished coverage, for every class, whatever the model. A film is
referred when its set does not hold exactly one class: several are possible, or none is. Wrong shapes raise
ValueError.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.errors import BadInput
from openmed.fitted.stored_numbers import stored_count, stored_list, stored_number, stored_numbers
from openmed.metrics.clustered import clustered_share
from openmed.metrics.resampling import cohort, lowest_of_each
from openmed.metrics.score_intervals import Interval


@dataclass(frozen=True)
class Abstention:
    """Fitted on calibration films, frozen before the test.

    Attributes:
        coverage: Share of the films of each class whose set shall hold it, in (0, 1).
        lowest: For each class the probability at or above which it is kept, in [0, 1].
        patients: For each class the calibration patients with films of it.

    Raises:
        BadInput: The numbers do not make an abstention.
    """

    coverage: float
    lowest: tuple[float, ...]
    patients: tuple[int, ...]

    def __post_init__(self) -> None:
        inside = 0 < self.coverage < 1 and all(0 <= number <= 1 for number in self.lowest)
        if not inside or len(self.lowest) < 2 or len(self.patients) != len(self.lowest):
            raise BadInput("this is not an abstention: its numbers do not fit one another")

    def prediction_sets(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Returns the classes kept, bool (N, classes); ValueError for another number of classes.

        A film with a probability that is missing or not in [0, 1] keeps every class: it is always referred.
        """
        values = np.asarray(probabilities, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.lowest):
            raise ValueError(f"expected one row a film and {len(self.lowest)} classes, found {values.shape}")
        usable = np.all((values >= 0) & (values <= 1), axis=1, keepdims=True)
        return (values >= np.array(self.lowest)) | ~usable

    def refer(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Returns the films to refer, bool (N,): those whose set does not hold exactly one class."""
        return self.prediction_sets(probabilities).sum(axis=1) != 1

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Abstention":
        """Reads the fields as JSON has them; BadInput where it is no abstention."""
        try:
            lowest = stored_numbers(content["lowest"], "the abstention's lowest", 0, 1)
            listed = stored_list(content["patients"], "the abstention's patients")
            patients = [stored_count(each, "each number of the abstention's patients") for each in listed]
            coverage = stored_number(content["coverage"], "the abstention's coverage", 0, 1)
            return cls(coverage, lowest, tuple(patients))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"this is not an abstention: {error}") from None


@dataclass(frozen=True)
class AbstentionCheck:
    """How an abstention did on films that shaped nothing.

    Attributes:
        coverage: For each class the share of its films whose set holds it; NaN without films.
        referred: Share of all films that are referred.
        accuracy_of_decided: Share of the films not referred whose single class is right; NaN without any.
    """

    coverage: tuple[Interval, ...]
    referred: Interval
    accuracy_of_decided: Interval

    def to_json(self) -> dict[str, Any]:
        """Returns the intervals as plain values, NaN as None."""
        return {
            "coverage": [interval.to_json() for interval in self.coverage],
            "referred": self.referred.to_json(),
            "accuracy_of_decided": self.accuracy_of_decided.to_json(),
        }


def fit_abstention(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, coverage: float = 0.9
) -> Abstention:
    """Fits the lowest probability at which each class is kept.

    Films of a patient are not exchangeable with those of others, patients are: of each patient and class only
    the film with the lowest probability counts, so the promise holds for the worst film of a new patient and
    thereby for any.

    `labels` are int (N,), 0 to classes - 1; `probabilities` float (N, classes) in [0, 1], of two classes or
    more; `patients` (N,) identifiers, text or whole numbers; `coverage` is in (0, 1).

    Raises:
        BadInput: The coverage is out of range, or a class has fewer patients than `fewest_patients`.
    """
    needed = fewest_patients(coverage)
    truth, values = _checked(labels, probabilities)
    patient = cohort(np.zeros_like(truth), patients).patient_of_film
    lowest, counts = [], []
    for number in range(values.shape[1]):
        of_class = truth == number
        worst = lowest_of_each(values[of_class, number], patient[of_class])[::-1]
        if len(worst) < needed:
            raise BadInput(
                f"abstention with a coverage of {coverage:g} needs at least {needed} calibration patients of "
                f"each class, found {len(worst)} of class {number}; give more or lower the coverage"
            )
        lowest.append(float(worst[_rank(len(worst), coverage) - 1]))
        counts.append(len(worst))
    return Abstention(float(coverage), tuple(lowest), tuple(counts))


def fewest_patients(coverage: float) -> int:
    """Returns the calibration patients of each class that a coverage in (0, 1) needs: 19 for 0.95."""
    if not 0 < coverage < 1:
        raise BadInput(f"the coverage of an abstention must be above 0 and below 1, found {coverage}")
    return max(1, math.ceil(round(coverage / (1 - coverage), 9)))


def check_abstention(
    abstention: Abstention,
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    confidence: float = 0.95,
) -> AbstentionCheck:
    """Measures coverage and referrals on films that shaped nothing, with intervals that know of patients.

    Of `labels` int (N,) and `probabilities` float (N, classes); films with NaN are referred.
    """
    truth, sets, group = np.asarray(labels), abstention.prediction_sets(probabilities), np.asarray(patients)
    if truth.shape != (len(sets),) or group.shape != truth.shape:
        raise ValueError(f"there are {len(sets)} films but labels {truth.shape} and patients {group.shape}")
    single = sets.sum(axis=1) == 1

    def share(outcomes: NDArray, films: NDArray) -> Interval:
        return clustered_share(outcomes[films], group[films], confidence)

    by_class = (share(sets[:, number], truth == number) for number in range(sets.shape[1]))
    return AbstentionCheck(
        tuple(by_class),
        referred=share(~single, np.ones_like(single)),
        accuracy_of_decided=share(sets.argmax(axis=1) == truth, single),
    )


def _rank(patients: int, coverage: float) -> int:
    # Rounded first: 0.07 * 100 is 7.000000000000001 and would ask for an eighth.
    return math.ceil(round((patients + 1) * coverage, 9))


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, values = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or truth.shape != (len(values),) or not len(values):
        raise ValueError(f"expected labels (N,) and probabilities (N, classes), found {values.shape}")
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError("probabilities must be in [0, 1], none missing, to fit an abstention")
    if not np.all(np.isin(truth, np.arange(values.shape[1]))):
        raise ValueError(f"labels must be whole numbers from 0 to {values.shape[1] - 1}")
    return truth.astype(np.int64), values
