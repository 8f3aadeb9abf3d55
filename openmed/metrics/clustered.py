"""How much films of the same patients say: design effects, and intervals of shares that know of patients.

Films of one patient resemble each other, so a hundred films of ten patients may say little more than ten. The
design effect (Kish, Survey Sampling, 1965) is by how much the variance of a mean exceeds that of as many
independent films; films divided by it count in a score interval. The error rates of everything here are
measured by benchmarks/error_rates.py.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from openmed.metrics.classification import NAN, checked_labels
from openmed.metrics.resampling import patient_codes
from openmed.metrics.score_intervals import Interval, critical_value, wilson

BELIEF = 2
"""Patients with a telling film that weigh as much as the belief that films of a patient say the same."""


def design_effect(deviations: ArrayLike, patients: ArrayLike, telling: ArrayLike) -> float:
    """Estimates by how much films of the same patients raise the variance of a mean, at least 1.

    What is measured, the variance of the patients' sums against that of the films, says little while few
    patients have a film that tells anything (a missed one, say): a patient of whom every film is missed may
    not have been met yet. So it is drawn towards the worst case, that all films of a patient say the same,
    where the sizes of the patients alone decide; with two telling patients both weigh the same.

    `deviations` are (N,) from the mean, `telling` is bool (N,): films that are not like most of them.
    """
    values = np.asarray(deviations, dtype=np.float64)
    patient = patient_codes(patients, len(values))
    sizes = np.bincount(patient)
    worst = float(np.sum(sizes.astype(np.float64) ** 2)) / len(values)
    spread = float(values @ values)
    if worst == 1 or len(sizes) < 2 or spread == 0:
        return worst
    sums = np.bincount(patient, values)
    measured = float(sums @ sums) / (1 - 1 / len(sizes)) / (spread / (1 - 1 / len(values)))
    weight = BELIEF / (BELIEF + len(np.unique(patient[np.asarray(telling, bool)])))
    return (1 - weight) * max(measured, 1.0) + weight * worst


def clustered_share(outcomes: ArrayLike, patients: ArrayLike, confidence: float = 0.95) -> Interval:
    """Gives a share of films, e.g. of those referred, with an interval that knows of patients.

    Wilson's interval (J Am Stat Assoc 1927;22:209-212) over the films divided by their design effect. It
    stays open where every film says the same: ten patients with thirty films each, all right, count as ten.
    `outcomes` is (N,) boolean (or 0 and 1); none gives NaN.
    """
    critical_value(confidence)
    if not np.size(outcomes):
        return Interval(NAN, NAN, NAN)
    truth = checked_labels(outcomes)
    share = float(truth.mean())
    effect = design_effect(truth - share, patients, truth == (share < 0.5))
    return wilson(float(truth.sum()) / effect, len(truth) / effect, confidence)


def operating_shares(
    has: ArrayLike, flagged: ArrayLike, patients: ArrayLike, confidence: float = 0.95
) -> dict[str, Interval]:
    """Sensitivity and specificity, with intervals that know of patients; NaN where the class is missing.

    `has` is (N,) bool, the films with the finding; `flagged` is (N,) bool.
    """
    finding, called, patient = np.asarray(has, bool), np.asarray(flagged, bool), np.asarray(patients)
    return {
        "sensitivity": clustered_share(called[finding], patient[finding], confidence),
        "specificity": clustered_share(~called[~finding], patient[~finding], confidence),
    }


def critical_t(confidence: float, patients: int) -> float:
    """Returns Student's t with `confidence` within -t and t, for a spread known from so many patients."""
    from scipy.special import stdtrit

    critical_value(confidence)
    return float(stdtrit(patients - 1, (1 + confidence) / 2)) if patients > 1 else math.inf
