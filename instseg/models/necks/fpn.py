"""Feature Pyramid Network (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block


class FPN(nn.Module):
    """Top-down pathway with lateral connections (section 3), plus one pooled level for the RPN.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        in_strides: their strides.
        channels: channels of every output map.
        norm: normalisation after each convolution; None as in the paper.

    Attributes:
        strides: strides of the output maps, the pooled level last.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        channels: int = 256,
        *,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            conv_block(c, channels, 1, norm=norm, activation=False) for c in in_channels
        )
        self.output = nn.ModuleList(
            conv_block(channels, channels, 3, norm=norm, activation=False) for _ in in_channels
        )
        self.channels = channels
        self.strides = [*in_strides, in_strides[-1] * 2]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of falling resolution to the same number plus one, all of `channels`."""
        top = self.lateral[-1](features[-1])
        merged = [top]
        for lateral, feature in zip(self.lateral[-2::-1], features[-2::-1], strict=True):
            side = lateral(feature)
            top = side + F.interpolate(top, size=side.shape[-2:], mode="nearest")
            merged.insert(0, top)
        outputs = [conv(m) for conv, m in zip(self.output, merged, strict=True)]
        # A pooled level by plain subsampling (section 4.1, footnote 2).
        return [*outputs, F.max_pool2d(outputs[-1], kernel_size=1, stride=2)]
