"""What learns in a phase of the transfer learning, and how fast."""

import math

from torch import nn

from openmed.models.base import BaseModel


def frozen(model: BaseModel, blocks: int | None) -> list[nn.Module]:
    """The backbone's blocks that do not learn when its last `blocks` do (None: all do)."""
    every = model.blocks()
    return [] if blocks is None else every[: max(len(every) - blocks, 0)]


def unfreeze(model: BaseModel, blocks: int | None) -> list[nn.Parameter]:
    """Lets the head and the last `blocks` blocks learn; returns what learns."""
    if blocks is None:
        model.network.requires_grad_(True)
    else:
        model.network.requires_grad_(False)
        every = model.blocks()
        for block in every[max(len(every) - blocks, 0) :]:
            block.requires_grad_(True)
        model.classifier().requires_grad_(True)
    return [parameter for parameter in model.network.parameters() if parameter.requires_grad]


def decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict]:
    """Norms and biases are not decayed."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_share(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
