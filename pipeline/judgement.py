"""How a model is judged on its predictions, by the evaluate stage and by whoever checks it later."""

from typing import TYPE_CHECKING, Any

from openmed.files import sha256_bytes
from openmed.metrics.clustered import clustered_share
from openmed.metrics.gates import Gate, judge
from openmed.metrics.intervals import Interval, metric_intervals
from openmed.metrics.novelty import conformal_limit
from openmed.metrics.operating_point import (
    choose_threshold,
    controlled_threshold,
    spared_threshold,
)
from pipeline.rules import Rules

if TYPE_CHECKING:
    import pandas as pd

    from openmed.models.spec import ModelSpec


METHODS = "2"
"""Names how intervals are computed, as versions carry it; those without it were judged by resampling."""


def operating_threshold(predictions: "pd.DataFrame", positive_index: int, rules: Rules) -> float:
    """Chooses the threshold on the calibration films of a table of predictions.

    Raises:
        BadInput: No film there has the finding, or too few patients for the confidence that is asked.
    """
    films = predictions[predictions["split"] == "calibration"]
    promised = _promised_threshold(films, positive_index, rules)
    if rules.target_specificity is None:
        return promised
    # NaN, where every film has the finding, leaves the first.
    return min(
        promised, spared_threshold(films["label"] == positive_index, films["score"], rules.target_specificity)
    )


def _promised_threshold(films: "pd.DataFrame", positive_index: int, rules: Rules) -> float:
    """The highest threshold that keeps the promised sensitivity on calibration films."""
    labels, target = films["label"] == positive_index, rules.target_sensitivity
    if rules.threshold_confidence is None:
        return choose_threshold(labels, films["score"], target)
    patients = patient_numbers(films)
    return controlled_threshold(
        labels, films["score"], patients, target, rules.threshold_confidence, of=rules.threshold_of
    ).threshold


def unlike_limit(predictions: "pd.DataFrame", share: float) -> tuple[float, int]:
    """Chooses, on the calibration films of a table of predictions, the distance from which a film is unlike.

    Returns:
        The limit and the number of patients.
    """
    films = predictions[predictions["split"] == "calibration"]
    return conformal_limit(films["distance"], patient_numbers(films), share)


def measure(
    films: "pd.DataFrame", positive_index: int, threshold: float, rules: Rules
) -> dict[str, Interval]:
    """Metrics of the finding against everything else, with intervals that know of patients."""
    return metric_intervals(
        films["label"] == positive_index,
        films["score"],
        patient_numbers(films),
        threshold,
        **rules.resampling,
    )


def judge_test_films(
    predictions: "pd.DataFrame", positive_index: int, threshold: float, rules: Rules
) -> tuple[dict[str, Interval], str, list[Gate]]:
    """Measures the test films of a table of predictions and holds them against the floors.

    Returns:
        The intervals, the verdict and the gates.
    """
    test = predictions[predictions["split"] == "test"]
    intervals = measure(test, positive_index, threshold, rules)
    return intervals, *judge(intervals, rules.floors)


def patient_numbers(films: "pd.DataFrame") -> "pd.Series":
    """Tells patients apart by their first film, so that no result depends on what a patient is called.

    A seed then draws the same resamples from the films as from their evidence, which names no patient.
    """
    return films.groupby("patient")["id"].transform("min").astype(str)


def describe_external(
    predictions: "pd.DataFrame", spec: "ModelSpec", rules: Rules
) -> dict[str, dict[str, Any]]:
    """Measures each external set of a table of predictions; see `external_validation.describe_set`.

    Args:
        predictions: One row a film, with its set.
        spec: Description of the model, with its operating point.
        rules: Settings of the intervals.

    Returns:
        name of the set -> what it shows, with `sha256`, which names its films and labels by their content,
        and `unlike`, the share of films referred as unlike those that the model learnt from, where it tells.
    """
    from openmed.metrics.external_validation import describe_set

    found = {}
    for name, films in predictions.groupby("set", sort=True):
        shown = describe_set(
            films.assign(patient=patient_numbers(films)),
            spec.class_names,
            spec.positive_index,
            spec.threshold,
            **rules.resampling,
        )
        found[str(name)] = {"sha256": set_digest(films), **shown}
        # Models of before have no limit, and evidence of before no distances.
        if spec.novelty is not None and "distance" in films:
            unlike = spec.novelty.unlike(films["distance"])
            share = clustered_share(unlike, patient_numbers(films), rules.confidence)
            found[str(name)]["unlike"] = share.to_json()
    return found


def set_digest(films: "pd.DataFrame") -> str:
    """Names a set of films by their content and labels, whatever it is called."""
    return sha256_bytes("".join(sorted(films["sha256"] + films["label"].astype(str))).encode())
