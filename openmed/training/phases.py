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
    model.network.requires_grad_(blocks is None)
    for part in (*model.blocks()[len(frozen(model, blocks)) :], model.classifier()):
        part.requires_grad_(True)
    return [parameter for parameter in model.network.parameters() if parameter.requires_grad]


def parameter_groups(model: BaseModel, weight_decay: float, layer_decay: float) -> list[dict]:
    """Groups what learns by weight decay and by its share of the learning rate.

    Norms and biases are not decayed. What lies before the blocks (class token, position embedding)
    learns as slowly as the first of them. A group has params, weight_decay and lr_share (0..1).
    """
    blocks = model.blocks()
    depth = {id(p): index for index, block in enumerate(blocks) for p in block.parameters()}
    depth |= {id(p): len(blocks) for p in model.classifier().parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            share = layer_decay ** (len(blocks) - depth.get(id(parameter), 0))
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_share": share}
        for (share, decay), params in groups.items()
    ]


def learning_rate_share(step: int, total: int, warmup_share: float) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
