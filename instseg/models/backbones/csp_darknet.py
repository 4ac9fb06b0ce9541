"""CSPDarknet as YOLOX uses it (Ge et al., 2021, arXiv:2107.08430), and the blocks it is made of.

Darknet stages with cross-stage partial connections (Wang et al., CSPNet, 2020). Modules are
registered in the order in which they run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from instseg.models.backbones.base import Backbone, check_same_shapes


class ConvBlock(nn.Sequential):
    """Convolution without bias, batch norm, SiLU; padded by half a kernel unless told otherwise.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side of the kernel.
        stride: of the convolution.
        groups: of the convolution.
        padding: pixels at each side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2 if padding is None else padding,
            groups=groups,
            bias=False,
        )
        norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        super().__init__(OrderedDict(conv=conv, norm=norm, act=nn.SiLU(inplace=True)))


def spatial_conv(
    in_channels: int, out_channels: int, *, stride: int = 1, depthwise: bool = False
) -> nn.Module:
    """A 3x3 `ConvBlock`; with ``depthwise``, one per channel and a 1x1 block after it."""
    if not depthwise:
        return ConvBlock(in_channels, out_channels, 3, stride=stride)
    return nn.Sequential(
        ConvBlock(in_channels, in_channels, 3, stride=stride, groups=in_channels),
        ConvBlock(in_channels, out_channels, 1),
    )


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution that keep the channels.

    Args:
        channels: of input and output.
        shortcut: add the input to the output.
        depthwise: see `spatial_conv`.
    """

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, channels, 1)
        self.spatial = spatial_conv(channels, channels, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        y: Tensor = self.spatial(self.reduce(x))
        return x + y if self.shortcut else y


class CSPStage(nn.Module):
    """Half of the channels through bottlenecks, half past them, then both together.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        depth: number of bottlenecks.
        shortcut: whether these are residual.
        depthwise: see `spatial_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        shortcut: bool = True,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.main = ConvBlock(in_channels, hidden, 1)
        self.bypass = ConvBlock(in_channels, hidden, 1)
        self.blocks = nn.Sequential(
            *(Bottleneck(hidden, shortcut=shortcut, depthwise=depthwise) for _ in range(depth))
        )
        self.merge = ConvBlock(2 * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, out_channels, H, W]``."""
        merged: Tensor = self.merge(torch.cat([self.blocks(self.main(x)), self.bypass(x)], dim=1))
        return merged


class SPPBottleneck(nn.Module):
    """Spatial pyramid pooling: the map beside its maxima over 5x5, 9x9 and 13x13 windows.

    Source: He et al., 2015, in the form of YOLOv3-SPP. Pooling 5x5 twice is pooling 9x9 once, three
    times 13x13, so one small pool is run three times.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.reduce = ConvBlock(in_channels, hidden, 1)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.merge = ConvBlock(4 * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` to ``[B, out_channels, H, W]``."""
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        merged: Tensor = self.merge(torch.cat(maps, dim=1))
        return merged


class CSPDarknet(Backbone):
    """Maps of strides 8, 16 and 32.

    Args:
        depth: multiplies the bottlenecks of the stages, 3, 9, 9 and 3.
        width: multiplies the channels, 64 after the stem and 1024 at the end.
        depthwise: depthwise separable 3x3 convolutions, as YOLOX-Nano has them.

    The "focus" stem, a 3x3 convolution over the 2x2 pixels of each block put side by side as 12
    channels, is written as what it computes: a 6x6 convolution of stride 2.

    Raises:
        ValueError: ``width`` or ``depth`` is not positive, or the width gives no even number of
            channels.
    """

    def __init__(self, depth: float = 1.0, width: float = 1.0, *, depthwise: bool = False) -> None:
        super().__init__()
        if depth <= 0 or width <= 0:
            raise ValueError(f"depth and width must be positive, got {depth} and {width}")
        base = int(64 * width)
        if base < 2 or base % 2:
            raise ValueError(f"width must make 64 * width an even number, got {width}")
        few = max(round(3 * depth), 1)

        def down(in_channels: int) -> nn.Module:
            return spatial_conv(in_channels, 2 * in_channels, stride=2, depthwise=depthwise)

        def stage(channels: int, blocks: int) -> CSPStage:
            return CSPStage(channels, channels, blocks, depthwise=depthwise)

        self.stem = ConvBlock(3, base, 6, stride=2, padding=2)
        self.stage2 = nn.Sequential(down(base), stage(2 * base, few))
        self.stage3 = nn.Sequential(down(2 * base), stage(4 * base, 3 * few))
        self.stage4 = nn.Sequential(down(4 * base), stage(8 * base, 3 * few))
        self.stage5 = nn.Sequential(
            down(8 * base),
            SPPBottleneck(16 * base, 16 * base),
            CSPStage(16 * base, 16 * base, few, shortcut=False, depthwise=depthwise),
        )
        self.channels = [4 * base, 8 * base, 16 * base]
        self.strides = [8, 16, 32]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to maps of strides 8, 16, 32."""
        x = self.stage2(self.stem(x))
        c3 = self.stage3(x)
        c4 = self.stage4(c3)
        return [c3, c4, self.stage5(c4)]

    def load_classifier(self, state_dict: Mapping[str, Tensor]) -> None:
        """As `Backbone.load_classifier`, in instseg's names: YOLOX is trained from scratch."""
        check_same_shapes(self.state_dict(), state_dict, "this CSPDarknet")
        self.load_state_dict(state_dict, strict=False)
