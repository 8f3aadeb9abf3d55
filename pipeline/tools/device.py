"""Where the numbers are crunched, and what makes them repeatable."""

import os

import torch
from threadpoolctl import threadpool_limits

from openmed.errors import BadInput
from pipeline.settings.params import Params


def use_device(params: Params) -> None:
    """Fixes what a bit-identical run depends on: threads and, on CUDA, deterministic kernels."""
    import scipy.linalg  # noqa: F401  its BLAS must be there to be limited

    torch.set_num_threads(params.run.threads)
    # NumPy's and SciPy's BLAS would take their number from the environment, and sum in another order.
    threadpool_limits(params.run.threads)
    # Our networks have none but deterministic kernels on a CPU, and the call loads torch's compiler.
    if pick_device(params.run.device).type == "cuda":
        use_repeatable_kernels()


def use_repeatable_kernels() -> None:
    """Lets CUDA take the same kernels, in the same order, every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    # With warn_only attention keeps to gradients that may differ from run to run; PyTorch says so itself.
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory finds reads of what was never written; ours has none, and it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False


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
