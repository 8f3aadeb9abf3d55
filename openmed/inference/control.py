"""A control set: films with the answers that a model gave on them, to ask it again later.

Where the films of a test set are not at hand, as when a model must be taken back at night, this shows that
the stored model still answers as it did when it was judged. A model folder carries a small one of phantoms,
nobody's films, on which whatever loads the folder is asked once, and says what makes answers of the logits.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save_file

from openmed.errors import IntegrityError
from openmed.files import atomic_path
from openmed.fitted.calibration import Calibration
from openmed.fitted.spec import ModelSpec
from openmed.inference.predictor import Predictor

CONTROL_FILE = "control.safetensors"
CONTROL_TOLERANCE = 1e-3
"""Most that a probability may differ: processors and versions of the runtimes round differently."""

DISTANCE_TOLERANCE = 1e-2
"""Most that a distance from the known films may differ; usual ones spread over about 0.3."""

LOGIT_TOLERANCE = 5e-3
"""Most that a logit may differ, beside a thousandth of it; PyTorch and ONNX Runtime are some 1e-5 apart."""


def write_control(path: Path, predictor: Predictor, films: NDArray[np.uint8]) -> None:
    """Writes films, uint8 (N, S, S), with a model's probabilities and, where it has statistics, distances."""
    probabilities, distances = predictor.assess(films)
    content: dict[str, NDArray] = {"films": np.ascontiguousarray(films), "probabilities": probabilities}
    if distances is not None:
        content["distances"] = distances
    with atomic_path(path) as temporary:
        save_file(content, temporary)


def control_films(path: Path) -> NDArray[np.uint8]:
    """Returns the films of a control set, uint8 (N, S, S); raises IntegrityError when it is none."""
    try:
        return load_file(path)["films"]
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise IntegrityError(f"{path.name} is no control set ({type(error).__name__})") from error


def check_control(path: Path, predictor: Predictor) -> float:
    """Asks a model again and returns the largest difference of a probability.

    Raises:
        IntegrityError: The file is no control set of such a model, a probability differs by more than 1e-3,
            or a distance by more than 1e-2.
    """
    try:
        content = load_file(path)
        films, expected = content["films"], content["probabilities"]
        probabilities, distances = predictor.assess(films)
        worst = float(np.abs(probabilities - expected).max()) if len(films) else float("nan")
        apart = largest_difference(distances, content.get("distances"))
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        kind = type(error).__name__
        raise IntegrityError(f"{path.name} is no control set of this model ({kind})") from error
    if not worst <= CONTROL_TOLERANCE:
        raise IntegrityError(
            "the model answers otherwise than when it was judged: probabilities of its control set differ by "
            f"up to {worst:.1e} ({CONTROL_TOLERANCE:.0e} is allowed)"
        )
    if not apart <= DISTANCE_TOLERANCE:
        raise IntegrityError(
            "the model sees its control set otherwise than when it was judged: distances from the films "
            f"that it learnt from differ by up to {apart:.1e} ({DISTANCE_TOLERANCE:.0e} is allowed)"
        )
    return worst


def check_answers(content: bytes, predictor: Predictor, what: str) -> None:
    """Asks a model the phantoms of a file that `answered_phantoms` gave; `what` is what it computes with.

    Raises:
        IntegrityError: It answers otherwise than the weights did, its description gives other classes or
            another calibration than then, or the file is none of such a model.
    """
    try:
        held = load(content)
        logits, distances = predictor.outputs(held["films"])
        same = held["logits"].shape == logits.shape and np.allclose(
            logits, held["logits"], rtol=1e-3, atol=LOGIT_TOLERANCE
        )
        apart = largest_difference(distances, held.get("distances"))
        # Folders of before do not note it.
        means = np.array_equal(meaning_of(predictor.spec), held.get("meaning", meaning_of(predictor.spec)))
    except (KeyError, SafetensorError, ValueError) as error:
        raise IntegrityError(
            f"{CONTROL_FILE} is no control set of this model ({type(error).__name__}): restore the model"
        ) from error
    if not (same and len(logits) and apart <= DISTANCE_TOLERANCE):
        raise IntegrityError(
            f"{what} answers the films in {CONTROL_FILE} otherwise than the model did when it was finished: "
            "restore the model, or run the evaluate stage again"
        )
    if not means:
        raise IntegrityError(
            f"the classes or the calibration of the model are not those noted in {CONTROL_FILE}: restore the "
            "model, or run the evaluate stage again"
        )


def meaning_of(spec: ModelSpec) -> NDArray[np.uint8]:
    """What makes answers of a model's logits, as JSON in UTF-8: alike before and after it was stored."""
    calibration = spec.calibration and asdict(Calibration.from_json(asdict(spec.calibration)))
    content = {"class_names": spec.class_names, "positive": spec.positive, "calibration": calibration}
    return np.frombuffer(json.dumps(content, sort_keys=True).encode(), np.uint8)


def largest_difference(distances: NDArray | None, expected: NDArray | None) -> float:
    """The largest difference of a distance; without a number where only one side has them."""
    if distances is None or expected is None:
        return 0.0 if distances is expected else float("nan")
    return float(np.abs(distances - expected).max())
