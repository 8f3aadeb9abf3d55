"""Vision transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021)."""

import torch
from torch import nn

from openmed.models.base import BaseModel
from openmed.models.networks import timm


class ViT(BaseModel):
    """Small vision transformer, 224 px, patches of 16 px, ImageNet statistics.

    The default weights are DINO's (Caron et al., 2021): self-supervised features led the
    published comparison on pneumonia films, and they use ImageNet's statistics.
    """

    timm_name = "vit_small_patch16_224.dino"
    network_type = timm.models.VisionTransformer
    fixed_input = True
    memory_format = torch.contiguous_format

    @classmethod
    def explanation_layer(cls, network: nn.Module, image_size_px: int) -> str:
        """All attention blocks: rollout reads each of them."""
        return "blocks"

    def blocks(self) -> list[nn.Module]:
        """The patch embedding, the transformer blocks and the final norm with the last of them."""
        *inner, last = self.network.blocks
        return [self.network.patch_embed, *inner, nn.ModuleList([last, self.network.norm])]

    def depths(self) -> list[nn.Module]:
        """The blocks at a quarter, half and the whole of the depth."""
        blocks = self.network.blocks
        return [blocks[max(0, len(blocks) * part // 4 - 1)] for part in (1, 2, 4)]

    def maps(self, output: torch.Tensor) -> torch.Tensor:
        """Patch tokens (N, tokens, D) as maps (N, D, h, w)."""
        patches = output[:, self.prefix_tokens :].transpose(1, 2)
        return patches.unflatten(2, self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.network.patch_embed.grid_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and registers, if any."""
        return self.network.num_prefix_tokens
