"""The decoupled head of YOLOX (Ge et al., 2021, arXiv:2107.08430, section 2.1, figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from instseg.models.backbones.csp_darknet import ConvBlock, spatial_conv


class YOLOXOutput(NamedTuple):
    """What the head says of the A cells of all levels, finest level first, row by row."""

    boxes: Tensor
    """``[B, A, 4]``: not decoded."""
    objectness: Tensor
    """Logits ``[B, A]``."""
    classes: Tensor
    """Logits ``[B, A, C]``."""
    coefficients: Tensor
    """``[B, A, K]`` of the mask prototypes; K is 0 without masks."""


class YOLOXLevel(nn.Module):
    """The head of one level: a 1x1 stem, then a branch for classes and one for boxes.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        channels: of the branches.
        depthwise: depthwise separable 3x3 convolutions.
        num_coefficients: K; with any, a third branch predicts them.
        prior: probability that every class and the objectness start from (Lin et al., Focal Loss,
            2017, section 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        depthwise: bool,
        num_coefficients: int,
        prior: float,
    ) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(
                *(spatial_conv(channels, channels, depthwise=depthwise) for _ in range(2))
            )

        self.stem = ConvBlock(in_channels, channels, 1)
        self.class_branch = branch()
        self.classes = nn.Conv2d(channels, num_classes, 1)
        self.box_branch = branch()
        self.boxes = nn.Conv2d(channels, 4, 1)
        self.objectness = nn.Conv2d(channels, 1, 1)
        if num_coefficients:
            self.mask_branch: nn.Sequential | None = branch()
            self.coefficients = nn.Conv2d(channels, num_coefficients, 1)
        else:
            self.mask_branch = None
        for layer in (self.classes, self.objectness):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))

    def forward(self, feature: Tensor) -> YOLOXOutput:
        """``[B, in_channels, H, W]`` to the output of H * W cells."""
        x = self.stem(feature)
        classes = _cells(self.classes(self.class_branch(x)))
        hidden = self.box_branch(x)
        boxes, objectness = _cells(self.boxes(hidden)), _cells(self.objectness(hidden))[..., 0]
        if self.mask_branch is None:
            coefficients = boxes[..., :0]
        else:
            coefficients = _cells(self.coefficients(self.mask_branch(x)))
        return YOLOXOutput(boxes, objectness, classes, coefficients)


class YOLOXConvHead(nn.Module):
    """A `YOLOXLevel` for each feature map; no weights are shared.

    Args:
        in_channels: of each map, finest first.
        num_classes: C.
        channels: of the branches; the paper's 256 times the width of the variant.
        depthwise: depthwise separable 3x3 convolutions.
        num_coefficients: K of the mask prototypes; 0 for none.
        prior: probability that classes and objectness start from.

    Raises:
        ValueError: no classes, or ``prior`` is not within (0, 1).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        depthwise: bool = False,
        num_coefficients: int = 0,
        prior: float = 1e-2,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 < prior < 1:
            raise ValueError(f"prior must be a probability within (0, 1), got {prior}")
        self.levels = nn.ModuleList(
            YOLOXLevel(
                c,
                num_classes,
                channels=channels,
                depthwise=depthwise,
                num_coefficients=num_coefficients,
                prior=prior,
            )
            for c in in_channels
        )
        self.num_coefficients = num_coefficients

    def forward(self, features: Sequence[Tensor]) -> YOLOXOutput:
        """Maps ``[B, C_l, H_l, W_l]`` to the output of all their cells."""
        outputs = [level(f) for level, f in zip(self.levels, features, strict=True)]
        return YOLOXOutput(*(torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)))


def _cells(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, H * W, C]``: a view where the map is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
