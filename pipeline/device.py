"""Where the numbers are crunched, and what makes them repeatable."""

import os

import torch

from openmed.errors import BadInput
from pipeline.params import Params


def use_device(params: Params) -> None:
    """Fixes what a bit-identical run depends on: threads and, on CUDA, deterministic kernels."""
    torch.set_num_threads(params.run.threads)
    # Our networks have none but deterministic kernels on a CPU, and the call loads torch's compiler.
    if pick_device(params.run.device).type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)


def pick_device(wanted: str) -> torch.device:
    """CUDA when it is wanted or there, the CPU otherwise; of several processes each has a GPU of its own.

    Raises:
        BadInput: CUDA is wanted and not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("`run.device` is cuda, but this machine has no usable GPU: set it to auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
