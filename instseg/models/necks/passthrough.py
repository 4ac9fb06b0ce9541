"""The passthrough layer of YOLOv2 (Redmon & Farhadi, 2017, section 2, "Fine-Grained Features")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.backbones.darknet import darknet_conv


class Passthrough(nn.Module):
    """Two convolutions on the coarse map; the fine map, folded into channels, joins them.

    The released network thins the fine map out to 64 channels first, so that 26 x 26 x 64 becomes
    13 x 13 x 256. Folding is `pixel_unshuffle`, as the paper describes it ("stacking adjacent
    features into different channels"); Darknet's ``reorg`` layer orders the same values otherwise.

    Args:
        in_channels: channels of the fine and the coarse map; the fine one has twice the sides.
        channels: of the two convolutions.
        passthrough_channels: to which the fine map is thinned out.

    Attributes:
        channels: of the output.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 1024, passthrough_channels: int = 64
    ) -> None:
        super().__init__()
        fine, coarse = in_channels
        self.coarse = nn.Sequential(
            darknet_conv(coarse, channels, 3), darknet_conv(channels, channels, 3)
        )
        self.fine = darknet_conv(fine, passthrough_channels, 1)
        self.channels = 4 * passthrough_channels + channels

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C1, 2H, 2W]`` and ``[B, C2, H, W]`` to one of ``[B, channels, H, W]``."""
        fine, coarse = features
        folded = F.pixel_unshuffle(self.fine(fine), 2)
        return [torch.cat([folded, self.coarse(coarse)], dim=1)]
