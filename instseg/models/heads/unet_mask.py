"""A U-Net as mask head (Ronneberger et al., 2015) on RoIAlign features, with a fine skip."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block
from instseg.ops import MultiscaleRoIAlign, roi_align

_BOTTOM = 7
"""Side of the lowest map, that of the box head's."""


class TwoScaleRoIAlign(nn.Module):
    """Pools each RoI twice: from its own level of the pyramid, and finely from the finest one.

    Both maps are made narrow before RoIs are cut out of them. Being linear, as RoIAlign is, the 1x1
    convolution gives what it would give after pooling, at its cost for the pixels of the image
    instead of those of all RoIs. The transposed convolution makes a map of half the finest level's
    stride: channels can tell where inside of a pixel an edge runs.

    Args:
        in_channels: of the pyramid's maps.
        strides: of the levels pooled from; levels beyond them in the features are not used.
        context: channels and side of the map from the RoI's own level.
        detail: those of the map from the finest level.
        aligned: see `roi_align`.

    Raises:
        ValueError: strides that are not consecutive powers of two.
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        *,
        context: tuple[int, int],
        detail: tuple[int, int],
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.aligned = aligned
        self.context = conv_block(in_channels, context[0], 1, activation=False)
        self.detail = _double_size(in_channels, detail[0])
        self.context_pooler = MultiscaleRoIAlign(strides, context[1], aligned=aligned)
        self.detail_size = detail[1]
        self.detail_scale = 2 / strides[0]

    def forward(self, features: Sequence[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Context ``[R, Cc, S, S]`` and detail ``[R, Cd, M, M]`` of per-image boxes ``[R_b, 4]``.

        Args:
            features: ``[B, in_channels, H_l, W_l]``, fine to coarse.
            boxes: in image coordinates.
        """
        levels = [self.context(f) for f in features[: len(self.context_pooler.strides)]]
        fine = self.detail(features[0])
        return self.context_pooler(levels, boxes), roi_align(
            fine, boxes, self.detail_size, self.detail_scale, 2, self.aligned
        )


class UNetMaskBody(nn.Module):
    """Contracting path from side S to 7, expanding path from 7 to the mask's side M.

    Sides are 7 * 2^k: S = 7 * 2^depth (28, 56), M = ``resolution`` >= S (56, 112). Every level has
    two 3x3 convolutions with ReLU, and half as many channels as the one below. As in U-Net, steps
    down are max pooling, steps up transposed convolutions, each followed by the concatenation of
    the contracting path's map where that has one of this side. The last level is given the detail
    map too.

    Millions of multiplications for an RoI, the predictor's included, and how many times those of
    `FCNMaskBody` and `MaskPredictor` (514) that is:

    ===== ============== ==============
    depth resolution 56  resolution 112
    ===== ============== ==============
    2     424 (0.82)     488 (0.95)
    3     496 (0.97)     561 (1.09)
    ===== ============== ==============

    They grow with the square of ``channels``.

    Args:
        channels: at the bottom, where the map is 7 x 7.
        depth: poolings of the contracting path.
        resolution: M, side of the masks.
        norm: normalisation after each 3x3 convolution; None as in the paper.

    Attributes:
        in_channels: of the context map.
        pooled_size: S, side of the context map.
        detail_channels: of the detail map, whose side is ``resolution``.
        channels: of the output.

    Raises:
        ValueError: a depth below 1, a resolution that is no 7 * 2^k or below S, or channels that
            cannot be halved that often.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        depth: int = 2,
        resolution: int = 56,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        steps = _steps(channels, depth, resolution)
        widths = [channels >> k for k in range(steps + 1)]
        self.resolution = resolution
        self.pooled_size = _BOTTOM << depth
        self.in_channels = widths[depth]
        self.detail_channels = self.channels = widths[-1]

        def double_conv(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(conv_block(a, b, 3, norm=norm), conv_block(b, b, 3, norm=norm))

        down = [widths[depth], *widths[depth::-1]]
        self.contract = nn.ModuleList(double_conv(a, b) for a, b in pairwise(down))
        self.upsample = nn.ModuleList(_double_size(a, b) for a, b in pairwise(widths))
        self.expand = nn.ModuleList(
            double_conv(width * (1 + (k <= depth) + (k == steps)), width)
            for k, width in enumerate(widths[1:], start=1)
        )

    def forward(self, pooled: tuple[Tensor, Tensor]) -> Tensor:
        """Context ``[R, in_channels, S, S]`` and detail ``[R, detail_channels, M, M]``.

        Returns:
            ``[R, channels, M, M]``.
        """
        context, detail = pooled
        path = [self.contract[0](context)]
        for block in self.contract[1:]:
            path.append(block(F.max_pool2d(path[-1], 2)))
        x, *skips = reversed(path)
        joined = [[skip] for skip in skips] + [[]] * (len(self.expand) - len(skips))
        joined[-1] = [*joined[-1], detail]
        for upsample, block, others in zip(self.upsample, self.expand, joined, strict=True):
            x = block(torch.cat([upsample(x), *others], dim=1))
        return x


class ClassMaskPredictor(nn.Module):
    """1x1 convolution to one mask for each class, or to one for all of them.

    Args:
        in_channels: width of the body's output.
        num_classes: C, without the background.
        class_agnostic: one mask, whatever the class.
    """

    def __init__(self, in_channels: int, num_classes: int, *, class_agnostic: bool = False) -> None:
        super().__init__()
        self.class_agnostic = class_agnostic
        self.logits = nn.Conv2d(in_channels, 1 if class_agnostic else num_classes, 1)
        nn.init.kaiming_uniform_(self.logits.weight, a=1)
        assert self.logits.bias is not None
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Logits ``[R, M, M]`` of each RoI's own class.

        Args:
            x: ``[R, in_channels, M, M]``.
            labels: ``int64 [R]``, class indices from 0.
        """
        if self.class_agnostic:
            agnostic: Tensor = self.logits(x)
            return agnostic[:, 0]
        assert self.logits.bias is not None
        # Only the wanted class's channel: one matrix product for each RoI, not C maps.
        weight = self.logits.weight[labels, :, 0, 0]
        maps = torch.einsum("rc,rchw->rhw", weight.to(x.dtype), x)
        return maps + self.logits.bias[labels][:, None, None]


def _steps(channels: int, depth: int, resolution: int) -> int:
    """How often the bottom's side is doubled to make ``resolution``."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1 pooling, got {depth}: choose 2 or 3")
    steps = max(resolution // _BOTTOM, 1).bit_length() - 1
    if resolution != _BOTTOM << steps or steps < depth:
        sides = [_BOTTOM << k for k in range(depth, depth + 3)]
        raise ValueError(
            f"resolution must be 7 * 2^k and at least the pooled side {sides[0]} of depth {depth}, "
            f"got {resolution}: choose {', '.join(map(str, sides[:-1]))} or {sides[-1]}"
        )
    if channels < 1 or channels % (1 << steps):
        raise ValueError(
            f"channels must be a multiple of {1 << steps}, being halved at each of the {steps} "
            f"steps from side 7 to {resolution}, got {channels}"
        )
    return steps


def _double_size(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """2x2 transposed convolution that keeps the variance: an output pixel has one tap a channel."""
    layer = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    nn.init.normal_(layer.weight, std=in_channels**-0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
