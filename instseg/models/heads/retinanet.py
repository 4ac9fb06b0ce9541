"""The convolutions of RetinaNet's head (Lin et al., Focal Loss, 2017, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from instseg.models.layers import Norm, conv_block, init_normal


class RetinaNetConvs(nn.Module):
    """Two towers of 3x3 convolutions: classes, and box offsets, of A anchors at each position.

    The weights are shared by all levels, not by the two towers.

    Args:
        channels: of every feature map, and of the towers.
        num_anchors: A.
        num_classes: C; each has its own sigmoid, there is no background.
        depth: convolutions of a tower before its output.
        norm: normalisation in the towers, e.g. ``partial(nn.GroupNorm, 32)``; None as in the paper.
        num_prototypes: with K > 0, the box tower also gives K mask coefficients for each anchor, by
            an output in parallel with the offsets (Bolya et al., YOLACT, 2019, section 3.1).
        prior: each class's probability at the start of training (section 3.3).
    """

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        num_classes: int,
        *,
        depth: int = 4,
        norm: Norm | None = None,
        num_prototypes: int = 0,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes
        self.classification = _tower(channels, depth, norm)
        self.regression = _tower(channels, depth, norm)
        self.logits = _output(channels, num_anchors * num_classes)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -math.log((1 - prior) / prior))
        self.offsets = _output(channels, num_anchors * 4)
        if num_prototypes:
            self.coefficients = _output(channels, num_anchors * num_prototypes)

    def forward(
        self, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each level: logits, offsets and, with prototypes, raw mask coefficients.

        Returns:
            Three lists of ``[B, H * W * A, C]``, ``[B, H * W * A, 4]`` and ``[B, H * W * A, K]``,
            the last one empty without prototypes. The order is that of the anchors: row by row,
            anchor shapes innermost.
        """
        logits, offsets, coefficients = [], [], []
        for feature in features:
            logits.append(_per_anchor(self.logits(self.classification(feature)), self.num_classes))
            hidden = self.regression(feature)
            offsets.append(_per_anchor(self.offsets(hidden), 4))
            if self.num_prototypes:
                coefficients.append(_per_anchor(self.coefficients(hidden), self.num_prototypes))
        return logits, offsets, coefficients


def _tower(channels: int, depth: int, norm: Norm | None) -> nn.Sequential:
    blocks = [conv_block(channels, channels, 3, norm=norm) for _ in range(depth)]
    for block in blocks:
        init_normal(block[0], 0.01)
    return nn.Sequential(*blocks)


def _output(channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1)
    init_normal(conv, 0.01)
    return conv


def _per_anchor(maps: Tensor, width: int) -> Tensor:
    """``[B, A * width, H, W]`` to ``[B, H * W * A, width]``."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)
