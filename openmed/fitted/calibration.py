"""From logits to probabilities that can be taken at their word.

Training on balanced classes teaches a network probabilities of a population that does not exist. They are
repaired in two steps, both on logits: the prior of the training patients is put back (Saerens, Latinne and
Decaestecker, Neural Computation 2002;14:21-41), then a map fitted on films that shaped nothing else takes
away what over-confidence, label smoothing and the like have left. For two classes every parametric map is
strictly rising: it changes no ranking and no AUC.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openmed.errors import BadInput
from openmed.fitted.stored_numbers import (
    check_fields,
    stored_count,
    stored_list,
    stored_number,
    stored_numbers,
)

Curve = tuple[tuple[float, ...], tuple[float, ...]]

FEWEST_FILMS = {"platt": 5, "temperature": 5, "isotonic": 50, "none": 0}
"""Methods, with the calibration films of each class below which they are refused.

Isotonic regression follows every accident of few films: on small sets it does worse than Platt's scaling
(Niculescu-Mizil and Caruana, Predicting Good Probabilities With Supervised Learning, ICML 2005)."""
METHODS = tuple(FEWEST_FILMS)
_UNKNOWN = f"unknown calibration {{!r}}: choose one of {', '.join(METHODS)}"
_LEAST_SPREAD = 0.01
"""Least root mean square of the fitted logits: a map never turns the order of films round."""


@dataclass(frozen=True)
class Calibration:
    """A fitted map from logits to probabilities; plain numbers.

    Attributes:
        method: One of `METHODS`.
        prior_correction: (classes,) added to the logits first; zeros where training rows were not resampled.
        scale: Then the logits are multiplied by this, above 0; 1 / scale is the temperature.
        bias: (classes,) added at last, summing to 0; zeros for a temperature.
        curves: Isotonic only: for each class the knots of its map, rising log-odds of the class against
            the rest and the probability (0..1) at each; straight between knots, flat beyond the ends.
        films: Number of films it was fitted on.

    Raises:
        BadInput: The numbers do not make a map.
    """

    method: str
    prior_correction: tuple[float, ...]
    bias: tuple[float, ...]
    scale: float = 1.0
    curves: tuple[Curve, ...] = ()
    films: int = 0

    def __post_init__(self) -> None:
        classes = len(self.prior_correction)
        flat = (number for curve in self.curves for knots in curve for number in knots)
        numbers = (self.scale, *self.prior_correction, *self.bias, *flat)
        if self.method not in METHODS:
            raise BadInput(_UNKNOWN.format(self.method))
        if len(self.bias) != classes or len(self.curves) != (classes if self.method == "isotonic" else 0):
            raise BadInput(f"the {self.method} calibration does not have one entry for each class")
        if not all(math.isfinite(number) for number in numbers) or self.scale <= 0:
            raise BadInput(f"the {self.method} calibration holds an impossible number")
        for odds, probabilities in self.curves:
            rising = len(odds) > 0 and np.all(np.diff(odds) > 0) and np.all(np.diff(probabilities) >= 0)
            inside = all(0 < probability < 1 for probability in probabilities)
            if len(odds) != len(probabilities) or not rising or not inside:
                raise BadInput("the curves of the isotonic calibration do not rise within 0 and 1")

    @classmethod
    def of_prior(cls, prior_correction: Sequence[float]) -> "Calibration":
        """Puts the prior back and does no more."""
        return cls("none", tuple(prior_correction), (0.0,) * len(prior_correction))

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Returns the probabilities (N, classes) of logits (N, classes), else ValueError; rows sum to 1."""
        corrected = _checked_logits(logits, len(self.prior_correction)) + self.prior_correction
        if not self.curves:
            return softmax(self.scale * corrected + self.bias)
        odds = log_odds(corrected)
        single = [np.interp(odds[:, index], *curve) for index, curve in enumerate(self.curves)]
        raised = np.stack(single, axis=1)
        return raised / raised.sum(axis=1, keepdims=True)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Calibration":
        """Reads the fields as JSON has them; BadInput where it is no calibration."""
        try:
            check_fields(content, cls, "a calibration")
            lists = {
                name: stored_numbers(content[name], f"the calibration's {name}")
                for name in ("prior_correction", "bias")
            }
            curves = tuple(
                tuple(stored_numbers(knots, "a curve of the calibration") for knots in pair)
                for pair in stored_list(content["curves"], "the calibration's curves")
            )
            scale = stored_number(content["scale"], "the calibration's scale", 0)
            films = stored_count(content.get("films", 0), "the calibration's films")
            return cls(**{**content, **lists, "curves": curves, "scale": scale, "films": films})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"this is not a calibration: {error}") from None


def prior_correction(before: Sequence[int], after: Sequence[int]) -> tuple[float, ...]:
    """Logit correction that undoes a change of the class shares in training.

    A network trained at the shares `after` gives p'(class | film) proportional to p(class | film) times
    after / before, so log(before / after) added to its logits gives back p at the shares `before`.
    `before` are the films of each class among the untouched training patients, `after` the rows of each class
    that the network was trained on. Zeros where nothing changed.

    Raises:
        BadInput: A class has no films or no rows: nothing can be said of its probability.
    """
    if len(before) != len(after) or min(*before, *after) < 1:
        raise BadInput(
            f"each class needs training films, found {list(before)} and, resampled, {list(after)}: "
            "add films or choose another resample.strategy"
        )
    shares = zip(before, after, strict=True)
    return tuple(math.log((old / sum(before)) / (new / sum(after))) for old, new in shares)


def fit_calibration(
    method: str, logits: ArrayLike, labels: ArrayLike, correction: Sequence[float]
) -> Calibration:
    """Fits a map on calibration films.

    - temperature: one scale for all logits (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).
    - platt: a scale and a bias for each class (bias-corrected temperature scaling, Alexandari et al., ICML
      2020); for two classes this is Platt's scaling (Advances in Large Margin Classifiers, 1999).
    - isotonic: a rising step map for each class against the rest, renormalised (Zadrozny and Elkan, KDD
      2002), kept at least 1 / (films + 2) away from 0 and 1. Its plateaus make films tie.
    - none: nothing is fitted.

    The parametric ones are fitted to Platt's smoothed targets, (n + 1) / (n + 2) for a class of n films, the
    rest shared by the other classes: perfectly separated films then give a finite map, one as steep as so few
    films can vouch for. A model that ranks no better than chance gets the flattest map that keeps its order.

    `logits` are float (N, classes) as the network gives them, `labels` int (N,), `correction` is (classes,)
    from `prior_correction`.

    Raises:
        BadInput: The method is unknown, a class has too few films, or a logit is not finite.
        ValueError: Wrong shapes or labels.
    """
    plain = Calibration.of_prior(correction)
    truth = np.asarray(labels, dtype=np.int64)
    outputs = _checked_logits(logits, len(correction))
    if len(truth) != len(outputs) or truth.min(initial=0) < 0 or truth.max(initial=0) >= len(correction):
        raise ValueError(f"{len(outputs)} films of {len(correction)} classes need one label each")
    if not np.isfinite(outputs).all():
        raise BadInput("the model's outputs on calibration films are not finite: train it again")
    counts = np.bincount(truth, minlength=len(correction))
    if method not in METHODS:
        raise BadInput(_UNKNOWN.format(method))
    if counts.min() < FEWEST_FILMS[method]:
        raise BadInput(
            f"{method} calibration needs {FEWEST_FILMS[method]} calibration films of each class, but there "
            f"are {counts.tolist()}: give the calibration split more films or choose another "
            "evaluate.calibration"
        )
    if method == "none":
        return plain
    corrected = outputs + plain.prior_correction
    if method == "isotonic":
        curves = _curves(log_odds(corrected), truth)
        return replace(plain, method=method, curves=curves, films=len(truth))
    scale, bias = _fit_affine(corrected, _smoothed(truth, counts), with_bias=method == "platt")
    return replace(plain, method=method, scale=scale, bias=bias, films=len(truth))


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Probabilities (N, classes) of logits (N, classes), without any correction."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_odds(logits: ArrayLike) -> NDArray[np.float64]:
    """Log-odds of each class against all others, (N, classes); they never saturate as probabilities do."""
    values = np.asarray(logits, dtype=np.float64)
    others = [np.logaddexp.reduce(np.delete(values, k, axis=1), axis=1) for k in range(values.shape[1])]
    return values - np.stack(others, axis=1)


def _smoothed(labels: NDArray, counts: NDArray) -> NDArray[np.float64]:
    right = (counts + 1) / (counts + 2)
    targets = np.repeat(((1 - right) / (len(counts) - 1))[labels][:, None], len(counts), axis=1)
    targets[np.arange(len(labels)), labels] = right[labels]
    return targets


def _fit_affine(logits: NDArray, targets: NDArray, *, with_bias: bool) -> tuple[float, tuple[float, ...]]:
    """Scale and bias of least cross-entropy; the problem is convex."""
    from scipy.optimize import minimize

    centred = logits - logits.mean(axis=1, keepdims=True)
    # In units of their own spread, so that logits of any size are fitted alike.
    spread = float(np.sqrt(np.mean(centred**2))) or 1.0
    units = centred / spread

    def loss(parameters: NDArray) -> tuple[float, NDArray]:
        values = parameters[0] * units + parameters[1:]
        log_sums = np.logaddexp.reduce(values, axis=1, keepdims=True)
        excess = np.exp(values - log_sums) - targets
        gradient = np.append(np.mean(np.sum(excess * units, axis=1)), excess.mean(axis=0))
        return float(np.mean(np.sum(targets * (log_sums - values), axis=1))), gradient

    classes = logits.shape[1]
    bounds = [(_LEAST_SPREAD, None)] + [(None, None) if with_bias else (0.0, 0.0)] * classes
    start = np.append(max(spread, _LEAST_SPREAD), np.zeros(classes))
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    optimum = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    bias = optimum[1:] - optimum[1:].mean()
    return float(optimum[0] / spread), tuple(bias.tolist())


def _curves(odds: NDArray, labels: NDArray) -> tuple[Curve, ...]:
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (len(labels) + 2)
    curves = []
    for index in range(odds.shape[1]):
        map_ = IsotonicRegression(y_min=least, y_max=1 - least).fit(odds[:, index], labels == index)
        curves.append((tuple(map_.X_thresholds_.tolist()), tuple(map_.y_thresholds_.tolist())))
    return tuple(curves)


def _checked_logits(logits: ArrayLike, classes: int) -> NDArray[np.float64]:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != classes:
        raise ValueError(f"logits must be (N, {classes}), not {values.shape}")
    return values
