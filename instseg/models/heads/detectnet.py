"""The two output layers of DetectNet (NVIDIA, 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from instseg.models.layers import init_normal


class CoverageHead(nn.Module):
    """Coverage of each class and one box at every cell.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        dropout: share of the features that is dropped in training.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.4) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.coverage = nn.Conv2d(in_channels, num_classes, 1)
        self.corners = nn.Conv2d(in_channels, 4, 1)
        init_normal(self.coverage, 0.01)
        init_normal(self.corners, 0.01)
        self.num_classes = num_classes

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, in_channels, H, W]`` to logits ``[B, H * W, C]`` and corners ``[B, H * W, 4]``.

        Row by row; the corners x1 y1 x2 y2 are relative to the cell's own, in cells.
        """
        feature = self.dropout(feature)
        coverage = self.coverage(feature).flatten(2).transpose(1, 2)
        return coverage, self.corners(feature).flatten(2).transpose(1, 2)
