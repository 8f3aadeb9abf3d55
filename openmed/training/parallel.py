"""One training in several processes, on one host or on many, started by torchrun."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from openmed.errors import ResourceError
from openmed.models.base import BaseModel


@dataclass(frozen=True)
class Workers:
    """The processes of one training. Each learns from its share of every batch.

    Attributes:
        rank: This process, from 0, which alone writes files.
        count: All processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's share of the positions 0..count-1, cut as micro-batches are: nearly equal."""
        least, more = divmod(count, self.count)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def sum(self, values: Tensor) -> Tensor:
        """Adds up a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Waits for all processes."""
        if self.count > 1:
            dist.barrier()

    def agree(self, text: str) -> None:
        """Makes sure that all processes say the same; ResourceError where they see different files."""
        number = int(hashlib.sha256(text.encode()).hexdigest()[:10], 16)
        numbers = [torch.zeros((), dtype=torch.int64) for _ in range(self.count)]
        if self.count > 1:
            dist.all_gather(numbers, torch.tensor(number))
            if len({int(one) for one in numbers}) > 1:
                raise ResourceError(
                    "the processes of this training see different checkpoints: "
                    "OPENMED_HOME must be on storage that all hosts share"
                )

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tells whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=device))) if self.count > 1 else flag

    def wrap(self, model: BaseModel) -> nn.Module:
        """Makes the gradients, and what batch norms see, those of the whole batch."""
        if self.count == 1:
            return model
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.forward = partial(_joint_batch_norm, module)
        return DistributedDataParallel(model, broadcast_buffers=False)


ALONE = Workers()


def started_by_torchrun() -> bool:
    """Tells whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: torch.device) -> Iterator[Workers]:
    """Joins the processes that torchrun started; alone, there is nothing to join."""
    if not started_by_torchrun():
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def gradients_kept_apart(model: nn.Module, apart: bool) -> AbstractContextManager:
    """Holds the exchange of gradients back while more parts of the same batch are to come."""
    return model.no_sync() if apart and isinstance(model, DistributedDataParallel) else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Widens half precision; what is wider stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _joint_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm with the statistics of all processes' films (torch's own does so on CUDA alone)."""
    if not norm.training:
        return type(norm).forward(norm, x)
    from torch.distributed.nn.functional import all_reduce

    across = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    n = all_reduce(torch.tensor(float(x.numel() / x.shape[1]), device=x.device))
    wide = at_least_float32(x)
    mean = all_reduce(wide.sum(across)) / n
    centred = wide - mean.view(shape)
    variance = all_reduce(centred.square().sum(across)) / n
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * n / (n - 1), norm.momentum)
    y = centred * (variance + norm.eps).rsqrt().view(shape) * norm.weight.view(shape) + norm.bias.view(shape)
    # timm's BatchNormAct2d goes on with an activation.
    return norm.act(norm.drop(y.to(x.dtype))) if hasattr(norm, "act") else y.to(x.dtype)
