"""Where the numbers are crunched, and what makes them repeatable."""

import torch

from openmed.errors import BadInput
from pipeline.params import Params


def use_device(params: Params) -> None:
    """Fixes what a bit-identical run depends on: threads and deterministic kernels."""
    torch.set_num_threads(params.run.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def pick_device(wanted: str) -> torch.device:
    """CUDA when it is wanted or there, the CPU otherwise.

    Raises:
        BadInput: CUDA is wanted and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("`run.device` is cuda, but this machine has no usable GPU: set it to auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
