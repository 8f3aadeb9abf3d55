"""Drift: how far a new version of the data lies from a reference one, and whether that is too far.

Both are tables of films, as `openmed.dataset.profile` makes them. Every shift has an interval from resamples
of whole patients, and only an interval that lies beyond a limit as a whole counts, so noise never does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from openmed.metrics.intervals import wider
from openmed.metrics.resampling import Cohort, Ranking, cohort, multiplicities
from openmed.metrics.score_intervals import NAN, Interval, newcombe_auc
from openmed.monitoring.two_sample import Distance, domain_scores, share_differences, wasserstein

NONE, MODERATE, LARGE, UNKNOWN = "none", "moderate", "large", "not measured"
MIN_PATIENTS = 20
"""With fewer patients on one side nothing is judged: resamples of so few say little about noise."""

MAX_PATIENTS = 10_000
"""Further patients of a side are left out at random: by then intervals are far narrower than any limit."""

SHARES = {
    "class share": ("label", "class_share"),
    "source": ("source", "composition"),
    "manufacturer": ("manufacturer", "composition"),
    "view": ("view", "composition"),
    "sex": ("sex", "composition"),
    "age": ("age_band", "composition"),
    "bits": ("bits", "composition"),
}
"""Aspect -> column whose categories are counted, and the name of its limits."""


@dataclass(frozen=True)
class Limits:
    """What the lower end of an interval must exceed for a shift to be called moderate or large."""

    moderate: float
    large: float


@dataclass(frozen=True)
class ShareShift:
    """Share of one category on both sides, in [0, 1], and the new one minus that of the reference."""

    reference: float
    new: float
    difference: Interval


@dataclass(frozen=True)
class Shift:
    """One aspect of the films, compared.

    Attributes:
        aspect: What was compared, e.g. "brightness".
        unit: What the numbers mean, in words.
        interval: The distance; NaN where it could not be measured.
        limits: Limits of the distance.
        verdict: none, moderate, large or not measured.
        reason: Why it could not be measured; else empty.
        shares: By category; empty for other distances.
    """

    aspect: str
    unit: str
    interval: Interval
    limits: Limits
    verdict: str
    reason: str = ""
    shares: Mapping[str, ShareShift] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns plain numbers and text."""
        shares = {
            name: {**vars(share), "difference": share.difference.to_json()}
            for name, share in self.shares.items()
        }
        plain = {"aspect": self.aspect, "unit": self.unit, **self.interval.to_json()}
        plain |= {"moderate": self.limits.moderate, "large": self.limits.large, "verdict": self.verdict}
        return plain | {"reason": self.reason, "shares": shares}


def compare(
    reference: pd.DataFrame,
    new: pd.DataFrame,
    limits: Mapping[str, Limits],
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int,
) -> list[Shift]:
    """Compares two sets of films, aspect by aspect.

    Categories (class, source, manufacturer, view, sex, age band, bits) by the total variation of shares,
    brightness and contrast (mean and standard deviation of the grey levels) by the Wasserstein distance in
    standard deviations of the reference, the shorter side by the Wasserstein distance of its logarithm in
    octaves, and the look of the films by the AUC of a classifier that tells the two sets apart
    (`domain_scores`).

    Distances cannot be negative, so they are above 0 by chance alone, in a resample once more. Their
    intervals are therefore "basic" bootstrap intervals (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 5.2), which take that excess off; differences of shares and the AUC have
    percentile intervals, that of the AUC at least as wide as Newcombe's with patients counted. The classifier
    is not fitted again in each resample. At most `MAX_PATIENTS` patients a side are used.

    The films are those of `profile_films`, the patients as `link_patients` numbers them; both may be in both.
    `limits` are those of class_share, composition, intensity, resolution and embedding.

    Returns:
        One shift an aspect, those that could not be measured too.
    """
    reference, new = _thinned(reference, new, seed)
    films = pd.concat([reference, new], ignore_index=True)
    membership = np.repeat([0, 1], [len(reference), len(new)])
    context = _Context(films, membership, cohort(membership, films["patient"].to_numpy()), seed)
    plans: list[_Plan | Shift] = [
        *(context.share_plan(aspect, column, limits[key]) for aspect, (column, key) in SHARES.items()),
        context.intensity_plan("brightness", "mean", limits["intensity"]),
        context.intensity_plan("contrast", "std", limits["intensity"]),
        context.resolution_plan(limits["resolution"]),
        context.embedding_plan(limits["embedding"]),
    ]
    measured = [plan for plan in plans if isinstance(plan, _Plan)]
    draws = multiplicities(context.group, replicates, seed) if measured else ()
    chunks = [{plan.aspect: plan.distance(drawn) for plan in measured} for drawn in draws]
    return [
        plan.shift(context.group, [chunk[plan.aspect] for chunk in chunks], confidence)
        if isinstance(plan, _Plan)
        else plan
        for plan in plans
    ]


def verdict(shifts: list[Shift]) -> str:
    """Returns the worst verdict; not measured only when nothing could be."""
    verdicts = {shift.verdict for shift in shifts}
    return next((name for name in (LARGE, MODERATE, NONE) if name in verdicts), UNKNOWN)


@dataclass(frozen=True)
class _Plan:
    """How one aspect is measured: a distance of resamples, and how its numbers become an interval."""

    aspect: str
    unit: str
    limits: Limits
    distance: Distance
    interval: Callable[[Any, NDArray, float], Interval]
    shares: Callable[[NDArray, NDArray, float], dict[str, ShareShift]] | None = None

    def shift(self, group: Cohort, chunks: list[NDArray], confidence: float) -> Shift:
        value, resampled = self.distance(np.ones((1, group.patients)))[0], np.concatenate(chunks)
        interval = self.interval(value, resampled, confidence)
        low = interval.low
        worst = LARGE if low > self.limits.large else MODERATE if low > self.limits.moderate else NONE
        shares = self.shares(value, resampled, confidence) if self.shares else {}
        return Shift(self.aspect, self.unit, interval, self.limits, worst, shares=shares)


@dataclass(frozen=True)
class _Context:
    """Both sets of films in one table, ready to be measured."""

    films: pd.DataFrame
    membership: NDArray
    group: Cohort
    seed: int

    def share_plan(self, aspect: str, column: str, limits: Limits) -> _Plan | Shift:
        unit = "total variation of the shares, 0 to 1"
        if reason := self._missing(column):
            return _unmeasured(aspect, unit, limits, reason)
        texts = self.films[column].astype(object)
        codes, names = pd.factorize(texts.where(self._known(column), None), sort=True)
        known = codes >= 0
        counts = [
            np.bincount(codes[known & (self.membership == side)], minlength=len(names)) for side in (0, 1)
        ]
        old, new = (count / count.sum() for count in counts)

        def shares(value: NDArray, resampled: NDArray, confidence: float) -> dict[str, ShareShift]:
            differences = [_percentile(value[i], resampled[:, i], confidence) for i in range(len(names))]
            parts = zip(old.tolist(), new.tolist(), differences, strict=True)
            return {str(name): ShareShift(*part) for name, part in zip(names, parts, strict=True)}

        def interval(value: NDArray, resampled: NDArray, confidence: float) -> Interval:
            return _basic(np.abs(value).sum() / 2, np.abs(resampled).sum(axis=1) / 2, confidence)

        distance = share_differences(codes, self.membership, self.group)
        return _Plan(aspect, unit, limits, distance, interval, shares)

    def intensity_plan(self, aspect: str, column: str, limits: Limits) -> _Plan | Shift:
        unit = f"Wasserstein distance of the films' {'mean' if column == 'mean' else 'standard deviation'}, "
        unit += "in standard deviations of the reference"
        if reason := self._missing(column):
            return _unmeasured(aspect, unit, limits, reason)
        values = self.films[column].to_numpy(float, na_value=np.nan)
        # An archive of one grey would have no scale at all; one grey level is the least there is.
        scale = max(1.0, float(np.nanstd(values[self.membership == 0])))
        distance = wasserstein(values / scale, self.membership, self.group)
        return _Plan(aspect, unit, limits, distance, _basic)

    def resolution_plan(self, limits: Limits) -> _Plan | Shift:
        unit = "Wasserstein distance of the shorter side, in octaves (1 is twice or half)"
        if reason := self._missing("width") or self._missing("height"):
            return _unmeasured("resolution", unit, limits, reason)
        sides = [self.films[name].to_numpy(float, na_value=np.nan) for name in ("width", "height")]
        distance = wasserstein(np.log2(np.minimum(*sides)), self.membership, self.group)
        return _Plan("resolution", unit, limits, distance, _basic)

    def embedding_plan(self, limits: Limits) -> _Plan | Shift:
        unit = "AUC of a classifier that tells new films from those of the reference; 0.5 is chance"
        if reason := self._missing("embedding"):
            return _unmeasured("embedding", unit, limits, reason)
        features = np.stack(self.films["embedding"].to_numpy()).astype(np.float32)
        scores = domain_scores(features, self.membership, self.group, self.seed)
        ranking = Ranking.of(self.membership, scores, 0.5, self.group)
        patients = [self._patients(self.membership == side) for side in (0, 1)]

        def interval(value: float, resampled: NDArray, confidence: float) -> Interval:
            drawn = _percentile(value, resampled, confidence)
            return wider(drawn, newcombe_auc(float(value), patients[1], patients[0], confidence))

        return _Plan("embedding", unit, limits, lambda drawn: ranking.metrics(drawn)["auc"], interval)

    def _known(self, column: str) -> pd.Series:
        values = self.films[column]
        # The cells of an embedding are arrays, which cannot be compared with a text.
        return values.notna() & (True if column == "embedding" else values.astype(object) != "")

    def _patients(self, chosen: NDArray) -> int:
        return len(np.unique(self.group.patient_of_film[chosen]))

    def _missing(self, column: str) -> str:
        """Says why a column cannot be compared; empty when it can."""
        if column not in self.films.columns:
            return f"neither version tells {column} of its films"
        known = self._known(column).to_numpy()
        for side, name in ((0, "reference"), (1, "new")):
            if (count := self._patients(known & (self.membership == side))) < MIN_PATIENTS:
                return f"only {count} patients of the {name} films have {column}; {MIN_PATIENTS} are needed"
        return ""


def _unmeasured(aspect: str, unit: str, limits: Limits, reason: str) -> Shift:
    return Shift(aspect, unit, Interval(NAN, NAN, NAN), limits, UNKNOWN, reason)


def _thinned(reference: pd.DataFrame, new: pd.DataFrame, seed: int) -> list[pd.DataFrame]:
    """Keeps at most `MAX_PATIENTS` patients a side, where possible the same ones on both."""
    names = np.unique(np.concatenate([reference["patient"], new["patient"]]))
    turn = pd.Series(np.random.default_rng(seed).permutation(len(names)), names)
    turns = [table["patient"].map(turn).to_numpy() for table in (reference, new)]
    first_turns = [np.unique(own)[:MAX_PATIENTS] for own in turns]
    return [
        table[np.isin(own, first)]
        for table, own, first in zip((reference, new), turns, first_turns, strict=True)
    ]


def _percentile(value: float, resampled: NDArray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(resampled, (tail, 1 - tail))
    return Interval(float(value), float(low), float(high))


def _basic(value: float, resampled: NDArray, confidence: float) -> Interval:
    """Basic bootstrap interval of a distance, which is never below 0."""
    measured = _percentile(value, resampled, confidence)
    # Where chance makes up most of the value, the interval would end below the value itself.
    low, high = 2 * measured.value - measured.high, max(measured.value, 2 * measured.value - measured.low)
    return Interval(measured.value, max(0.0, low), high)
