"""SSD's extra feature layers, which go on shrinking the backbone's maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from instseg.models.batch_norm import BatchNorm2d
from instseg.models.layers import init_normal

# Of each layer from conv8 on: channels of its 1x1 and of its second convolution, and the latter's
# kernel size, stride and padding (Liu et al., 2016, figure 2; for 512, section 3.1, with the 4x4
# kernel of the authors' release, which takes the 2x2 map to 1x1).
_LAYERS = {
    300: [
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 1, 0),
        (128, 256, 3, 1, 0),
    ],
    512: [
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 4, 1, 1),
    ],
}
# The side of fc7 below which a later map would be smaller than the kernel on it, for both.
_SMALLEST_FC7 = 17


class L2Norm(nn.Module):
    """Scale each position to length 1, then each channel by a learnt factor (ParseNet, 2016).

    Args:
        channels: of the map.
        scale: what the factors start from, 20 in SSD (Liu et al., 2016, section 3.1).
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape and dtype, computed in float32."""
        unit = F.normalize(x.float(), dim=1)
        return (self.scale[:, None, None] * unit).to(x.dtype)


class SSDExtraLayers(nn.Module):
    """conv4_3 normalised, fc7, and four (SSD300) or five (SSD512) maps computed from fc7.

    Args:
        in_channels: of conv4_3 and fc7.
        size: 300 or 512, the image's side that the layers are laid out for.

    Attributes:
        channels: of each output map.

    Raises:
        ValueError: another ``size``.
    """

    def __init__(self, in_channels: Sequence[int], size: Literal[300, 512] = 300) -> None:
        super().__init__()
        if size not in _LAYERS:
            raise ValueError(f"size must be one of {sorted(_LAYERS)}, got {size}")
        self.norm = L2Norm(in_channels[0])
        self.layers = nn.ModuleList()
        self.channels = list(in_channels)
        self.size = size
        for middle, out, kernel, stride, padding in _LAYERS[size]:
            reduce = nn.Conv2d(self.channels[-1], middle, 1)
            conv = nn.Conv2d(middle, out, kernel, stride=stride, padding=padding)
            for layer in (reduce, conv):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
            self.layers.append(
                nn.Sequential(reduce, nn.ReLU(inplace=True), conv, nn.ReLU(inplace=True))
            )
            self.channels.append(out)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """conv4_3 and fc7 to six or seven maps, finest first.

        Raises:
            ValueError: fc7 is too small for the last layers.
        """
        conv4, x = features
        if min(x.shape[-2:]) < _SMALLEST_FC7:
            raise ValueError(
                f"a map of {tuple(x.shape[-2:])} is too small for the layers of SSD{self.size}: "
                f"pad images to at least {self.size} pixels (Preprocess's min_size)"
            )
        outputs = [self.norm(conv4), x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs


class SSDLiteExtraLayers(nn.Module):
    """The backbone's maps, and more computed from the last by depthwise separable convolutions.

    Each is a 1x1, a depthwise 3x3 with stride 2 and a 1x1 convolution, all with batch norm and
    ReLU6, as torchvision builds SSDlite (Sandler et al., MobileNetV2, 2018, section 6.2).

    Args:
        in_channels: of the backbone's maps.
        channels: of each map to add.

    Attributes:
        channels: of each output map.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: Sequence[int] = (512, 256, 256, 128)
    ) -> None:
        super().__init__()
        block = partial(
            Conv2dNormActivation,
            norm_layer=partial(BatchNorm2d, eps=1e-3, momentum=0.03),
            activation_layer=nn.ReLU6,
        )
        self.channels = [*in_channels, *channels]
        self.layers = nn.ModuleList(
            nn.Sequential(
                block(before, after // 2, kernel_size=1),
                block(after // 2, after // 2, kernel_size=3, stride=2, groups=after // 2),
                block(after // 2, after, kernel_size=1),
            )
            for before, after in pairwise([in_channels[-1], *channels])
        )
        for layer in self.layers.modules():
            if isinstance(layer, nn.Conv2d):
                init_normal(layer, 0.03)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps to those and the added ones, finest first."""
        outputs = list(features)
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs
