"""Anchors: the reference boxes of a region proposal network (Ren et al., 2015, section 3.1.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instseg.structures.geometry import Size


class AnchorGenerator(nn.Module):
    """Boxes of several shapes at each position of each feature map.

    Args:
        sizes: for each level, the square roots of the anchors' areas in pixels.
        aspect_ratios: height / width, the same for every level.
        strides: image pixels per feature pixel of each level.
        torchvision: reproduce torchvision's anchors to the pixel, for its checkpoints: corners
            rounded to whole pixels, and strides worked out from the padded image's size by integer
            division (which differs from the true stride where a level's size was rounded up).
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        strides: Sequence[int],
        *,
        torchvision: bool = False,
    ) -> None:
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(f"anchor sizes for {len(sizes)} levels, but {len(strides)} levels")
        self.strides = list(strides)
        self.torchvision = torchvision
        self.num_anchors = len(sizes[0]) * len(aspect_ratios)
        for level, level_sizes in enumerate(sizes):
            cell = _cell_anchors(level_sizes, aspect_ratios)
            if torchvision:
                cell = cell.round()
            self.register_buffer(f"cell{level}", cell, persistent=False)

    def forward(self, feature_sizes: Sequence[Size], image_size: Size) -> list[Tensor]:
        """Anchors ``[H * W * A, 4]`` of each level, row by row, anchor shapes innermost.

        Args:
            feature_sizes: (height, width) of each level's map.
            image_size: (height, width) of the padded batch.
        """
        anchors = []
        for level, (height, width) in enumerate(feature_sizes):
            cell: Tensor = getattr(self, f"cell{level}")
            stride_y = stride_x = self.strides[level]
            if self.torchvision:
                stride_y, stride_x = image_size[0] // height, image_size[1] // width
            y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride_y
            x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride_x
            y, x = (grid.reshape(-1) for grid in torch.meshgrid(y, x, indexing="ij"))
            shifts = torch.stack((x, y, x, y), dim=1)
            anchors.append((shifts[:, None] + cell[None]).reshape(-1, 4))
        return anchors


def _cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin ``[len(aspect_ratios) * len(sizes), 4]``, ratios outermost."""
    shapes = [(s * math.sqrt(r), s / math.sqrt(r)) for r in aspect_ratios for s in sizes]
    heights, widths = torch.tensor(shapes).unbind(1)
    return torch.stack((-widths, -heights, widths, heights), dim=1) / 2
