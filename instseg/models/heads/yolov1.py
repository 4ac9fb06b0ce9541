"""The fully connected layers of YOLOv1 (Redmon et al., 2016, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from instseg.models.layers import init_normal


class YOLOv1Predictor(nn.Module):
    """From a map of any size to K boxes and C classes of each of S x S cells.

    The paper's 448 x 448 images give a map of S x S; larger ones are averaged down to it
    (adaptive pooling), so that one set of weights serves every size.

    Args:
        in_channels: of the feature map.
        num_classes: C.
        grid: S.
        num_boxes: K, the paper's B.
        hidden: width of the first fully connected layer.
        dropout: share of it that is dropped in training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        grid: int = 7,
        num_boxes: int = 2,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.num_boxes = num_boxes
        self.num_classes = num_classes
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.hidden = nn.Sequential(
            nn.Linear(in_channels * grid * grid, hidden),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Dropout(dropout),
        )
        self.output = nn.Linear(hidden, grid * grid * (num_boxes * 5 + num_classes))
        init_normal(self.output, 0.01)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From ``[B, in_channels, H, W]``; cells row by row, every number linear.

        Returns:
            Boxes ``[B, S * S, K, 4]`` (x, y, square root of w, of h), confidences
            ``[B, S * S, K]`` and classes ``[B, S * S, C]``.
        """
        flat = torch.flatten(self.pool(feature), 1)
        out = self.output(self.hidden(flat)).unflatten(1, (self.grid * self.grid, -1))
        boxes, confidence, classes = out.split(
            [4 * self.num_boxes, self.num_boxes, self.num_classes], dim=2
        )
        return boxes.unflatten(2, (self.num_boxes, 4)), confidence, classes
