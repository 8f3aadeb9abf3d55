"""What turns films into probabilities."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openmed.fitted.spec import ModelSpec
from openmed.models.base import Outputs


class Predictor(Protocol):
    """What turns films into probabilities, whatever runs it: a `BaseModel` or an `ExportedModel`."""

    spec: ModelSpec

    def predict(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> NDArray[np.float32]:
        """Class probabilities, float32 (N, classes), of films, uint8 (N, S, S)."""

    def outputs(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> Outputs:
        """Logits, float32 (N, classes), and the films' distances from those that it learnt from, or None."""

    def assess(self, films: NDArray[np.uint8], *, batch_films: int = 32) -> Outputs:
        """Those probabilities, and the films' distances from those that it learnt from, (N,) or None."""
