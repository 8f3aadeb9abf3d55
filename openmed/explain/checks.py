"""All checks of a model's heat maps, and one verdict: may a reader rely on them?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openmed.explain.faithfulness import (
    SIGNIFICANCE,
    Curves,
    DeletionDrop,
    deletion_drop,
    perturbation_curves,
)
from openmed.explain.heatmap import explain, methods
from openmed.explain.hiding import FEWEST_FILMS, p_value_of
from openmed.explain.sanity import perturbation, randomisation, repetition
from openmed.models.base import BaseModel

LIMITS = {"randomised_correlation": 0.5, "repeat_difference": 1e-3, "perturbed_correlation": 0.7}
"""A map more alike than the first to those of untrained networks does not show what was learned. The second
leaves room for rounding in another batch. Films that look the same must have maps as alike as the third."""

_FAILURES = {
    "hottest_part": "hiding the hottest part costs no more confidence than hiding as much elsewhere",
    "deletion": "hiding more and more, the hottest places first, costs no more confidence than chance",
    "insertion": "showing more and more, the hottest places first, brings no more confidence than chance",
    "randomisation": "models that have learned nothing give much the same map",
    "repetition": "the same film has another map the second time",
    "perturbation": "the map changes with a film that looks the same",
}


@dataclass(frozen=True)
class MapCheck:
    """What the checks of one method's maps found over some films.

    Log-odds are those of the class that is explained. Numbers that could not be measured are NaN.

    Attributes:
        films: Number of films.
        map_drop: Mean fall of the log-odds when the hottest fifth is hidden.
        random_drop: The same for the same shape at random places.
        p_value: One-sided Wilcoxon signed-rank test of the paired falls, as those below.
        deletion_area: Mean log-odds while film is hidden step by step, the hottest cells first.
        random_deletion_area: The same at random places; a good map's area is smaller.
        deletion_p_value: Test that the map's area is smaller.
        insertion_area: Mean log-odds while a blurred film is uncovered, the hottest cells first.
        random_insertion_area: The same at random places; a good map's area is larger.
        insertion_p_value: Test that the map's area is larger.
        randomised_correlation: Mean rank correlation with the maps of untrained networks, at most 0.5.
        repeat_difference: Largest difference of the heat when a film is explained twice, at most 0.001.
        perturbed_correlation: Mean rank correlation with the maps of slightly changed films, at least 0.7.
        failed: Checks not passed, of hottest_part, deletion, insertion, randomisation, repetition and
            perturbation; all of them where there were too few films.
        trusted: Whether there were at least 8 films and no check failed.
        reason: One sentence that says why it is trusted or not.
    """

    films: int
    map_drop: float = float("nan")
    random_drop: float = float("nan")
    p_value: float = float("nan")
    deletion_area: float = float("nan")
    random_deletion_area: float = float("nan")
    deletion_p_value: float = float("nan")
    insertion_area: float = float("nan")
    random_insertion_area: float = float("nan")
    insertion_p_value: float = float("nan")
    randomised_correlation: float = float("nan")
    repeat_difference: float = float("nan")
    perturbed_correlation: float = float("nan")
    failed: tuple[str, ...] = tuple(_FAILURES)
    trusted: bool = False
    reason: str = ""


def check_maps(
    model: BaseModel, films: NDArray[np.uint8], class_index: int, seed: int = 0
) -> dict[str, MapCheck]:
    """Checks the maps of each method that suits a model.

    A map is trusted when it points at what the model uses (deletion and insertion beat chance), depends
    on what the model learned (untrained networks give other maps) and is repeatable (the same film gives
    the same map, an imperceptibly changed one a similar map).

    The films are uint8 (N, S, S), S being the model's input size, that the model calls `class_index`.

    Returns:
        By method, the primary one first; with fewer than 8 films nothing is measured or trusted.

    Raises:
        BadInput: The model cannot be explained, or there is no such class.
    """
    if len(films) < FEWEST_FILMS:
        reason = f"{len(films)} films are too few to judge the map: at least {FEWEST_FILMS} are needed"
        return {method: MapCheck(len(films), reason=reason) for method in methods(model)}
    maps = explain(model, films, class_index)
    randomised = randomisation(model, films, maps, class_index, seed)
    repeated = repetition(model, films, maps, class_index)
    perturbed = perturbation(model, films, maps, class_index, seed)
    return {
        method: judge(
            deletion_drop(model, films, heat, class_index, seed=seed),
            perturbation_curves(model, films, heat, class_index, seed),
            randomised[method],
            repeated[method],
            perturbed[method],
        )
        for method, heat in maps.items()
    }


def judge(
    drop: DeletionDrop,
    curves: Curves,
    randomised_correlation: float,
    repeat_difference: float,
    perturbed_correlation: float,
) -> MapCheck:
    """Holds what was measured against the limits; a number that is not computable never passes."""
    deletion, random_deletion = curves.area(curves.deletion), curves.area(curves.random_deletion)
    insertion, random_insertion = curves.area(curves.insertion), curves.area(curves.random_insertion)
    deletion_p, insertion_p = p_value_of(random_deletion - deletion), p_value_of(insertion - random_insertion)
    passed = {
        "hottest_part": drop.trusted,
        "deletion": deletion_p < SIGNIFICANCE,
        "insertion": insertion_p < SIGNIFICANCE,
        "randomisation": randomised_correlation <= LIMITS["randomised_correlation"],
        "repetition": repeat_difference <= LIMITS["repeat_difference"],
        "perturbation": perturbed_correlation >= LIMITS["perturbed_correlation"],
    }
    failed = tuple(name for name, fine in passed.items() if not fine)
    return MapCheck(
        films=drop.films,
        map_drop=drop.map_drop,
        random_drop=drop.random_drop,
        p_value=drop.p_value,
        deletion_area=float(deletion.mean()),
        random_deletion_area=float(random_deletion.mean()),
        deletion_p_value=deletion_p,
        insertion_area=float(insertion.mean()),
        random_insertion_area=float(random_insertion.mean()),
        insertion_p_value=insertion_p,
        randomised_correlation=randomised_correlation,
        repeat_difference=repeat_difference,
        perturbed_correlation=perturbed_correlation,
        failed=failed,
        trusted=drop.films >= FEWEST_FILMS and not failed,
        reason=_reason(failed, drop),
    )


def _reason(failed: tuple[str, ...], drop: DeletionDrop) -> str:
    if drop.films < FEWEST_FILMS:
        return drop.reason
    if failed:
        words = _FAILURES | ({} if drop.trusted else {"hottest_part": drop.reason})
        return "; ".join(words[name] for name in failed)
    return (
        f"on {drop.films} films they marked what the model uses, came from what it had learned, and were "
        "the same for the same film"
    )
