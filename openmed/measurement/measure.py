"""What is measured on one film."""

from collections.abc import Container
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openmed.archives import FilmState, read_stored, state_of
from openmed.errors import BadInput
from openmed.files import sha256_bytes
from openmed.films.budgets import room_for
from openmed.films.images import blank_reason, decode_with_depth
from openmed.measurement.embedding import embed_film
from openmed.measurement.perceptual import perceptual_hash
from openmed.measurement.quality import REASONS, measure_quality

DETAILS = pa.schema(
    {
        "sharpness": pa.float64(),
        "perceptual_hash": pa.string(),
        **{f"quality_{name}": pa.float64() for name in REASONS},
        "embedding": pa.list_(pa.float32()),
    }
)
"""What is measured on a film and nobody asks of all films at once: most of a manifest's bytes."""
FACTS = pa.schema(
    {
        "sha256": pa.string(),
        **dict.fromkeys(("width", "height", "bits"), pa.int64()),
        **dict.fromkeys(("mean", "std"), pa.float64()),
        "reason": pa.string(),
    }
)
"""What is measured on a film and judged by; null where the film cannot be read."""
MEASURED = pa.schema([*FACTS, *DETAILS])


def measure_film(path: str, known: Container[str] = ()) -> tuple[FilmState | None, dict[str, Any]]:
    """Reads a film and measures it: its state before that, None when its file cannot be read, and a row.

    The row is one of `MEASURED`, whose reason is empty when the film could be decoded and is not blank. Films
    whose SHA-256 is in `known` are not decoded: their reason is None and they have no measurements.
    IntegrityError where the film should lie in an archive that is missing or damaged.
    """
    row = dict.fromkeys(MEASURED.names) | {"sha256": "", "perceptual_hash": "", "reason": ""}
    try:
        state, data = state_of(path), read_stored(path)
    except OSError as error:
        return None, row | {"reason": f"cannot be read: {error.strerror or error}"}
    row["sha256"] = sha256_bytes(data)
    if row["sha256"] in known:
        return state, row | {"reason": None}
    try:
        film, bits = decode_with_depth(data, "the film")
    except BadInput as error:
        return state, row | {"reason": str(error)}
    with room_for(film.size):
        return state, row | measurements(film, bits)


def measurements(film: NDArray[np.uint8], bits: int) -> dict[str, Any]:
    """Measures a decoded film, uint8 (H, W): the columns of `MEASURED` but sha256."""
    height, width = film.shape
    mean, std = (float(value.item()) for value in cv2.meanStdDev(film))
    row = {"width": width, "height": height, "bits": bits, "mean": mean, "std": std}
    row |= {"sharpness": float(cv2.Laplacian(film, cv2.CV_32F).var())}
    row |= {f"quality_{name}": score for name, score in measure_quality(film).items()}
    row |= {"perceptual_hash": perceptual_hash(film), "embedding": embed_film(film)}
    return row | {"reason": blank_reason(film)}
