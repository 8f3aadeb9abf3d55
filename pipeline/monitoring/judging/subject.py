"""What a champion is held against on new films: its own test films, and those its probabilities hold on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from pipeline.evaluation.judgement import patient_numbers
from pipeline.evaluation.rules import Rules

if TYPE_CHECKING:
    import numpy as np

    from openmed.monitoring.prior_shift import Known
    from openmed.monitoring.sampled_performance import Estimate
    from pipeline.promotion.gates.evidence import Evidence


@dataclass(frozen=True)
class Subject:
    """A champion that is watched.

    Attributes:
        positive, threshold: The finding, and its operating point (0..1).
        rules: How patients are resampled.
        params: Content of its params.yaml.
        test: What it did on its test films: auc, sensitivity, specificity.
        known: Its calibration films; None where they are of one class only.
        refers: Of its test films without the finding and of those with it, the share that it refers; None
            where it refers none.
    """

    version: str
    positive: str
    threshold: float
    rules: Rules
    params: Mapping[str, Any]
    test: "Mapping[str, Estimate]"
    known: "Known | None"
    refers: tuple[float, float] | None

    @classmethod
    def of(cls, evidence: "Evidence") -> "Subject":
        """Takes it from the evidence that was registered with a version."""
        from openmed.monitoring.prior_shift import Known
        from openmed.monitoring.sampled_performance import performance

        spec, test = evidence.spec, evidence.test
        if spec.threshold is None:
            raise BadInput(f"version {evidence.version} has no frozen threshold, so it cannot be watched")
        having = test["label"] == spec.positive_index
        calibration = evidence.predictions[evidence.predictions["split"] == "calibration"]
        labels = calibration["label"] == spec.positive_index
        return cls(
            version=evidence.version,
            positive=spec.positive,
            threshold=spec.threshold,
            rules=evidence.rules,
            params=evidence.params,
            test=performance(having, test["score"], patient_numbers(test), spec.threshold),
            known=Known(labels, calibration["score"], patient_numbers(calibration))
            if labels.nunique() == 2
            else None,
            refers=_referred(evidence, having.to_numpy()),
        )


def _referred(evidence: "Evidence", having: "np.ndarray") -> tuple[float, float] | None:
    import numpy as np

    from openmed.inference.referral import unclear_films
    from openmed.inference.session import called_classes

    spec, films = evidence.spec, evidence.test
    if spec.abstention is None and spec.novelty is None:
        return None
    probabilities = films[[f"probability_{name}" for name in spec.class_names]].to_numpy()
    called = called_classes(spec, probabilities, spec.threshold)
    refer = np.array([bool(each) for each in unclear_films(spec, probabilities, called)])
    if spec.novelty is not None and "distance" in films:
        refer |= np.asarray(spec.novelty.unlike(films["distance"]), bool)
    # A class without test films says nothing of how often it is referred.
    without, positive = (float(refer[side].mean()) if side.any() else 0.0 for side in (~having, having))
    return without, positive
