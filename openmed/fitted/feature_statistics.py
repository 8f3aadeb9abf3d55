"""How far a film lies from those that a model learnt from, by what the network makes of it at several depths.

Mahalanobis distance of pooled features to the nearest class, with one covariance for all classes (Lee et al.,
A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks, NeurIPS 2018).
The covariance is that of probabilistic principal component analysis (Tipping and Bishop, J R Stat Soc B
1999;61:611-622): the leading directions have variances of their own, all others share one. So the file stays
at a few megabytes and a distance costs next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from openmed.errors import BadInput, IntegrityError
from openmed.fitted.novelty import fewest_training_films

STATISTICS_FILE = "statistics.safetensors"
LEADING = 64
"""Most directions with a variance of their own, at each depth."""
_TINY = 1e-12


@dataclass(frozen=True)
class DepthStatistics:
    """Of the features of one depth.

    Attributes:
        means: float32 (classes, D), of each class that had films.
        scale: float32 (D,), what features are divided by.
        directions: float32 (D, K), orthonormal; the leading ones of the scaled features within classes.
        variances: float32 (K,), along them.
        rest: float32 (1,), the variance along every other direction.
    """

    means: NDArray[np.float32]
    scale: NDArray[np.float32]
    directions: NDArray[np.float32]
    variances: NDArray[np.float32]
    rest: NDArray[np.float32]

    def log_deviations(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """How unusual features (N, D) are for each class, float64 (N, classes): about 0 is usual.

        Half the logarithm of the mean squared deviation along the leading directions, and of that along all
        others, added. Logarithms keep one odd direction, of which most films have some, from deciding alone.
        """
        return np.stack([self._log_deviation(features, mean) for mean in self.means], axis=1)

    def _log_deviation(self, features: NDArray[np.float32], mean: NDArray) -> NDArray[np.float64]:
        centred = ((features - mean) / self.scale).astype(np.float64)
        along = centred @ self.directions
        others = centred.shape[1] - along.shape[1]
        # Rounding may leave less than nothing.
        left = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0) / others
        return 0.5 * (np.log((along**2 / self.variances).mean(1) + _TINY) + np.log(left / self.rest + _TINY))


_PARTS = tuple(DepthStatistics.__dataclass_fields__)


class FeatureStatistics:
    """Statistics of the films that a model learnt from, one part a depth.

    Attributes:
        depths: From the input to the head.
    """

    def __init__(self, depths: Sequence[DepthStatistics]) -> None:
        self.depths = tuple(depths)

    @property
    def width(self) -> int:
        """Length of a film's vector."""
        return sum(len(depth.scale) for depth in self.depths)

    def distances(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Distances of films from the nearest class, float64 (N,): a mean over the depths, about 0 is usual.

        Of vectors float32 (N, D), the features of all depths side by side.

        Raises:
            ValueError: The vectors have another length.
            IntegrityError: A feature or a distance is not finite.
        """
        features = np.asarray(vectors, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"expected vectors (N, {self.width}), found {features.shape}")
        if not np.isfinite(features).all():
            raise IntegrityError("the model's features are not finite: restore the model, or train it again")
        ends = np.cumsum([len(depth.scale) for depth in self.depths])[:-1]
        parts = zip(self.depths, np.split(features, ends, axis=1), strict=True)
        # What is not finite is an error; a warning beside it would say no more.
        with np.errstate(all="ignore"):
            distances = np.mean([depth.log_deviations(part) for depth, part in parts], axis=0).min(axis=1)
        if not np.isfinite(distances).all():
            raise IntegrityError(
                f"distances by {STATISTICS_FILE} are not finite: restore the model, or train it again"
            )
        return distances

    def to_bytes(self) -> bytes:
        """Returns the content of a safetensors file."""
        parts = {
            f"{number}.{name}": np.ascontiguousarray(getattr(depth, name))
            for number, depth in enumerate(self.depths)
            for name in _PARTS
        }
        return save(parts)

    @classmethod
    def from_bytes(cls, content: bytes) -> "FeatureStatistics":
        """Reads what `to_bytes` gave; IntegrityError where it is something else."""
        try:
            held = load(content)
            count = len(held) // len(_PARTS)
            depths = [
                DepthStatistics(*(held[f"{number}.{name}"] for name in _PARTS)) for number in range(count)
            ]
            usable = count > 0 and len(held) == count * len(_PARTS) and all(map(_is_usable, depths))
        except (KeyError, SafetensorError, ValueError) as error:
            kind = type(error).__name__
            raise IntegrityError(f"{STATISTICS_FILE} holds no feature statistics ({kind})") from None
        if not usable:
            raise IntegrityError(f"{STATISTICS_FILE} holds impossible numbers: restore it, or train again")
        return cls(depths)


def _is_usable(depth: DepthStatistics) -> bool:
    """Tells whether the parts fit one another and hold numbers that distances can be made of."""
    classes, wide, leading = len(depth.means), depth.scale.size, depth.variances.size
    shapes = {"means": (classes, wide), "scale": (wide,), "directions": (wide, leading)}
    shapes |= {"variances": (leading,), "rest": (1,)}
    parts = {name: getattr(depth, name) for name in _PARTS}
    fits = all(part.shape == shapes[name] and part.dtype.kind == "f" for name, part in parts.items())
    finite = fits and all(np.isfinite(part).all() for part in parts.values())
    above = finite and all((parts[name] > 0).all() for name in ("scale", "variances", "rest"))
    return bool(above and classes > 0 and 0 < leading < wide)


def fit_statistics(features: Sequence[ArrayLike], labels: ArrayLike) -> FeatureStatistics:
    """Fits the statistics of a model's training films, by the pooled features of each depth, float32 (N, D).

    A class without films among the labels, int (N,), has no mean.

    Raises:
        BadInput: Too few films: at least four more than there are classes.
        ValueError: Wrong shapes.
    """
    truth = np.asarray(labels)
    if any(np.ndim(part) != 2 or np.shape(part)[0] != len(truth) for part in features) or not features:
        raise ValueError(f"expected features (N, D) of {len(truth)} films at each depth")
    present, of_class = np.unique(truth, return_inverse=True)
    spare = len(truth) - len(present)
    if len(truth) < fewest_training_films(len(present)):
        raise BadInput(f"feature statistics need more training films than {len(truth)}")
    return FeatureStatistics([_fit_depth(np.asarray(part, np.float32), of_class, spare) for part in features])


def _fit_depth(features: NDArray[np.float32], of_class: NDArray, spare: int) -> DepthStatistics:
    counts = np.bincount(of_class)
    means = np.stack(
        [features[of_class == number].mean(0, dtype=np.float64) for number in range(len(counts))]
    )
    within = features - means[of_class]
    variances = (within**2).mean(0)
    # Channels that hardly vary are not blown up to the size of the others.
    scale = np.sqrt(variances + 0.1 * variances.mean() + _TINY)
    within /= scale
    # The films are fewer than the features: their products hold the same variances, in a smaller matrix.
    sizes, weights = np.linalg.eigh(within @ within.T)
    leading = min(LEADING, spare // 2, features.shape[1] // 2)
    largest = np.maximum(sizes[::-1][:leading], _TINY)
    directions = within.T @ weights[:, ::-1][:, :leading] / np.sqrt(largest)
    rest = max(float((sizes.sum() - largest.sum()) / spare / (features.shape[1] - leading)), _TINY)
    parts = (means, scale, directions, np.maximum(largest / spare, _TINY), np.array([rest]))
    return DepthStatistics(*(part.astype(np.float32) for part in parts))
