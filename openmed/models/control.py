"""A control set: films with the answers that a model gave on them, to ask it again later.

Where the films of a test set are not at hand, as when a model must be taken back at night, this shows that
the stored model still answers as it did when it was judged.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from openmed.errors import IntegrityError
from openmed.files import atomic_path
from openmed.models.session import Predictor

CONTROL_FILE = "control.safetensors"
TOLERANCE = 1e-3
"""Most that a probability may differ: processors and versions of the runtimes round differently."""


def write_control(path: Path, predictor: Predictor, films: NDArray[np.uint8]) -> None:
    """Writes films, uint8 (N, S, S), with the probabilities, float32 (N, classes), of a model."""
    content = {"films": np.ascontiguousarray(films), "probabilities": predictor.predict(films)}
    with atomic_path(path) as temporary:
        save_file(content, temporary)


def control_films(path: Path) -> NDArray[np.uint8]:
    """Returns the films of a control set, uint8 (N, S, S); raises IntegrityError when it is none."""
    try:
        return load_file(path)["films"]
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise IntegrityError(f"{path.name} is no control set ({type(error).__name__})") from error


def check_control(path: Path, predictor: Predictor) -> float:
    """Asks a model again.

    Returns:
        The largest difference of a probability.

    Raises:
        IntegrityError: The file is no control set of such a model, or an answer differs by more than 1e-3.
    """
    try:
        content = load_file(path)
        films, expected = content["films"], content["probabilities"]
        worst = float(np.abs(predictor.predict(films) - expected).max()) if len(films) else float("nan")
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        kind = type(error).__name__
        raise IntegrityError(f"{path.name} is no control set of this model ({kind})") from error
    if not worst <= TOLERANCE:
        raise IntegrityError(
            "the model answers otherwise than when it was judged: probabilities of its control set differ by "
            f"up to {worst:.1e} ({TOLERANCE:.0e} is allowed)"
        )
    return worst
