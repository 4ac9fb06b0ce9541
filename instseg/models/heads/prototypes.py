"""The network that makes prototype masks (Bolya et al., YOLACT, 2019, figure 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import conv_block


class ProtoNet(nn.Module):
    """Three 3x3 convolutions, twice the size, another one, and K prototypes.

    The prototypes are not bounded above, and pass a ReLU (section 3.1, "Prototype Generation").

    Args:
        in_channels: of the feature map.
        num_prototypes: K.
        channels: width of the 3x3 convolutions.
    """

    def __init__(self, in_channels: int, num_prototypes: int = 32, *, channels: int = 256) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            conv_block(in_channels, channels, 3),
            conv_block(channels, channels, 3),
            conv_block(channels, channels, 3),
        )
        self.fine = conv_block(channels, channels, 3)
        self.prototypes = conv_block(channels, num_prototypes, 1, activation=False)

    def forward(self, feature: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, K, 2H, 2W]``, at least 0."""
        hidden = self.convs(feature)
        hidden = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.prototypes(self.fine(hidden)))
