"""ResNet50 (He et al., Deep Residual Learning for Image Recognition, 2016)."""

from torch import nn

from openmed.models.base import BaseModel
from openmed.models.networks import timm


class ResNet50(BaseModel):
    """Residual network of 50 layers, 224 px, ImageNet statistics."""

    timm_name = "resnet50.a1_in1k"
    network_type = timm.models.ResNet

    def blocks(self) -> list[nn.Module]:
        """The stem and the four residual stages."""
        net = self.network
        stem = nn.ModuleList([net.conv1, net.bn1])
        return [stem, net.layer1, net.layer2, net.layer3, net.layer4]

    def depths(self) -> list[nn.Module]:
        """The pooled stem and the first two stages: deeper ones told films from elsewhere less well."""
        net = self.network
        return [net.maxpool, net.layer1, net.layer2]
