"""The convolutions of a region proposal network (Ren et al., 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from instseg.models.layers import conv_block, init_normal


class RPNHead(nn.Module):
    """3x3 convolutions, then objectness and box offsets of A anchors at each position.

    Args:
        channels: of every feature map.
        num_anchors: A.
        depth: number of 3x3 convolutions.
    """

    def __init__(self, channels: int, num_anchors: int, *, depth: int = 1) -> None:
        super().__init__()
        blocks = [conv_block(channels, channels, 3) for _ in range(depth)]
        self.conv = nn.Sequential(*blocks)
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.offsets = nn.Conv2d(channels, num_anchors * 4, 1)
        for layer in (*(block[0] for block in blocks), self.objectness, self.offsets):
            init_normal(layer, 0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level: logits ``[B, H * W * A]`` and offsets ``[B, H * W * A, 4]``.

        The order is that of the anchors: row by row, anchor shapes innermost.
        """
        objectness, offsets = [], []
        for feature in features:
            hidden = self.conv(feature)
            batch = len(hidden)
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).reshape(batch, -1))
            offsets.append(self.offsets(hidden).permute(0, 2, 3, 1).reshape(batch, -1, 4))
        return objectness, offsets
