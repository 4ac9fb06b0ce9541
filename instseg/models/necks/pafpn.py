"""Path aggregation on CSP stages, the neck of YOLOX (Liu et al., PANet, 2018; Ge et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones.csp_darknet import ConvBlock, CSPStage, spatial_conv


class PAFPN(nn.Module):
    """Down from the coarsest map to the finest, and up again; a CSP stage at every joint.

    Args:
        in_channels: channels of the backbone's three maps, finest first; the maps keep them.
        strides: their strides.
        depth: multiplies the three bottlenecks of each stage.
        depthwise: depthwise separable 3x3 convolutions.

    Attributes:
        channels: channels of each output map.
        strides: their strides.

    Raises:
        ValueError: not three maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        depth: float = 1.0,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        if len(in_channels) != 3 or len(strides) != 3:
            raise ValueError(
                f"PAFPN takes three maps, got channels {list(in_channels)}, strides {list(strides)}"
            )
        c3, c4, c5 = in_channels

        def stage(channels: int, out_channels: int) -> CSPStage:
            few = max(round(3 * depth), 1)
            return CSPStage(channels, out_channels, few, shortcut=False, depthwise=depthwise)

        self.lateral5 = ConvBlock(c5, c4, 1)
        self.top_down4 = stage(2 * c4, c4)
        self.lateral4 = ConvBlock(c4, c3, 1)
        self.top_down3 = stage(2 * c3, c3)
        self.down3 = spatial_conv(c3, c3, stride=2, depthwise=depthwise)
        self.bottom_up4 = stage(2 * c3, c4)
        self.down4 = spatial_conv(c4, c4, stride=2, depthwise=depthwise)
        self.bottom_up5 = stage(2 * c4, c5)
        self.channels = list(in_channels)
        self.strides = list(strides)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Three maps, finest first, to three of the same shapes."""
        c3, c4, c5 = features
        side5 = self.lateral5(c5)
        side4 = self.lateral4(self.top_down4(_beside(side5, c4)))
        p3 = self.top_down3(_beside(side4, c3))
        p4 = self.bottom_up4(torch.cat([self.down3(p3), side4], dim=1))
        p5 = self.bottom_up5(torch.cat([self.down4(p4), side5], dim=1))
        return [p3, p4, p5]


def _beside(coarse: Tensor, fine: Tensor) -> Tensor:
    """The coarse map at the fine one's size, and the fine one, as channels of one map."""
    larger = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    return torch.cat([larger, fine], dim=1)
