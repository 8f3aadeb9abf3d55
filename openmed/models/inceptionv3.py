"""InceptionV3 (Szegedy et al., Rethinking the Inception Architecture, 2016)."""

from torch import nn

from openmed.models.base import BaseModel
from openmed.models.networks import timm

_AFTER_BACKBONE = ("global_pool", "head_drop", "fc", "AuxLogits")


class InceptionV3(BaseModel):
    """Inception network, 299 px, mean and standard deviation 0.5; auxiliary head left out."""

    timm_name = "inception_v3.tv_in1k"
    network_type = timm.models.InceptionV3
    image_size_px = 299
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def blocks(self) -> list[nn.Module]:
        """Convolutions and mixed blocks in order."""
        return [module for name, module in self.network.named_children() if name not in _AFTER_BACKBONE]

    def depths(self) -> list[nn.Module]:
        """The first pooled convolutions, the first mixed block and the third."""
        net = self.network
        return [net.Pool1, net.Mixed_5b, net.Mixed_5d]
