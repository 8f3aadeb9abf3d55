"""A small description of what a film looks like, for comparing sets of films; needs no network."""

import cv2
import numpy as np
from numpy.typing import NDArray

EMBEDDING_SIDE = 8
_SAMPLED_PX = 128


def embed_film(film: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Shrinks a film to 8 x 8 cells and takes its exposure out.

    The cells tell where the film is bright: position, collimation, view, build, large opacities. Overall
    brightness and contrast are taken out, because the manifest measures them on their own. Rabanser et al.
    (Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift, NeurIPS 2019) test for
    shift on such a reduction of the pixels.

    Returns:
        float32 (64,), row by row, with mean 0 and standard deviation 1; all 0 for a blank film.
    """
    # Averaging each pixel of a large film costs 90 times as much and changes a cell by a few grey levels.
    step = max(1, min(film.shape) // _SAMPLED_PX)
    size = (EMBEDDING_SIDE, EMBEDDING_SIDE)
    cells = cv2.resize(film[::step, ::step].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    centred = cells.ravel() - cells.mean()
    spread = float(centred.std())
    # Below a thousandth of a grey level there is nothing but rounding.
    return centred / spread if spread > 1e-3 else np.zeros_like(centred)
