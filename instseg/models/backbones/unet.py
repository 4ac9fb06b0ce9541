"""The contracting path of U-Net (Ronneberger et al., 2015), and the blocks of both its paths."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from instseg.models.backbones.base import Backbone, check_same_shapes
from instseg.models.layers import Norm


class ContractingPath(Backbone):
    """Two 3x3 convolutions a level, and 2x2 max pooling with twice the channels to the next level.

    Args:
        in_channels: channels of the images.
        width: channels of the finest map; 64 in the paper.
        depth: number of poolings; 4 in the paper.
        padded: convolutions keep the size of a map; in the paper each takes a pixel of every side.
        norm: normalisation after each convolution; None as in the paper.
        dropout: probability by which channels' values are dropped "at the end of the contracting
            path" (section 3.1): from the last map and the one before, as in the authors' network.

    Attributes:
        padded: as given.

    Raises:
        ValueError: ``width`` or ``depth`` below 1, or ``dropout`` outside [0, 1).
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: int = 64,
        depth: int = 4,
        padded: bool = True,
        norm: Norm | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.in_channels = in_channels
        self.padded = padded
        self.channels = [width << level for level in range(depth + 1)]
        self.strides = [1 << level for level in range(depth + 1)]
        self.pool = nn.MaxPool2d(2)
        self.levels = nn.ModuleList(
            double_conv(c, d, padded=padded, norm=norm)
            for c, d in zip([in_channels, *self.channels], self.channels, strict=False)
        )
        if dropout > 0:
            for level in list(self.levels)[-2:]:
                assert isinstance(level, nn.Sequential)
                level.append(nn.Dropout(dropout))

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, in_channels, H, W]`` to ``depth + 1`` maps of strides 1, 2, 4 and so on."""
        maps = [self.levels[0](x)]
        for level in list(self.levels)[1:]:
            maps.append(level(self.pool(maps[-1])))
        return maps

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in instseg's names: U-Net is trained from scratch."""
        check_same_shapes(self.state_dict(), state_dict, "this U-Net's contracting path")
        self.load_state_dict(state_dict, strict=False)


def double_conv(
    in_channels: int, out_channels: int, *, padded: bool, norm: Norm | None
) -> nn.Sequential:
    """Two 3x3 convolutions, each with normalisation where wanted and ReLU."""
    block = nn.Sequential()
    for channels in (in_channels, out_channels):
        conv = nn.Conv2d(channels, out_channels, 3, padding=int(padded), bias=norm is None)
        block.append(init_he(conv))
        if norm is not None:
            block.append(norm(out_channels))
        block.append(nn.ReLU(inplace=True))
    return block


def init_he(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    """Weights from N(0, 2 / N), N the incoming nodes of one output value (section 3); bias 0.

    A transposed convolution whose stride is its kernel's size has one node a channel.
    """
    taps = 1 if isinstance(layer, nn.ConvTranspose2d) else math.prod(layer.kernel_size)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * taps)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
