"""One film as each simulated site would have given it."""

import cv2
import numpy as np

from openmed.explain.overlay import encode_jpeg
from openmed.perturbations.simulated_sites import SITES
from pipeline.report.render import picture


def site_pictures(film: np.ndarray) -> dict[str, str]:
    """Draws a film, uint8 (S, S) as the model sees it: name of the site -> address that holds the picture."""
    return {
        name: picture(encode_jpeg(cv2.cvtColor(site(film[None])[0], cv2.COLOR_GRAY2RGB)), "jpeg")
        for name, site in SITES.items()
    }
