"""RoIAlign over a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instseg.ops import box_area, boxes_to_rois, roi_align


class MultiscaleRoIAlign(nn.Module):
    """Pool each box from the level that fits its size (Lin et al., FPN, 2017, eq. 1).

    Args:
        strides: strides of the levels pooled from, consecutive powers of two.
        output_size: side of the pooled map.
        sampling_ratio: see `instseg.ops.roi_align`.
        aligned: likewise.
        canonical_size: a box of this side in pixels goes to the level of stride 16.
    """

    def __init__(
        self,
        strides: Sequence[int],
        output_size: int,
        *,
        sampling_ratio: int = 2,
        aligned: bool = True,
        canonical_size: float = 224.0,
    ) -> None:
        super().__init__()
        levels = [s.bit_length() - 1 for s in strides]
        if not levels or list(strides) != [1 << (levels[0] + i) for i in range(len(levels))]:
            raise ValueError(f"strides must be consecutive powers of two, got {list(strides)}")
        self.first_level = levels[0]
        self.strides = list(strides)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size

    def forward(self, features: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool per-image boxes ``[K_b, 4]``; levels beyond `strides` are not used.

        Returns:
            ``[sum K_b, C, output_size, output_size]`` in the order of the boxes.
        """
        rois = boxes_to_rois(boxes)
        level = self.assign_levels(rois[:, 1:])
        size = self.output_size
        pooled, order = [], []
        for i, stride in enumerate(self.strides):
            chosen = (level == i).nonzero()[:, 0]
            order.append(chosen)
            pooled.append(
                roi_align(
                    features[i], rois[chosen], size, 1 / stride, self.sampling_ratio, self.aligned
                )
            )
        by_level = torch.cat(pooled)
        return torch.empty_like(by_level).index_copy(0, torch.cat(order), by_level)

    def assign_levels(self, boxes: Tensor) -> Tensor:
        """``int64 [K]``: index into `strides` for each box ``[K, 4]``."""
        scale = box_area(boxes).sqrt() / self.canonical_size
        # Stride 16 is level 4 of the paper; the epsilon keeps exact powers of two on their level.
        level = torch.floor(4 + torch.log2(scale) + 1e-6)
        last = self.first_level + len(self.strides) - 1
        return level.clamp(self.first_level, last).long() - self.first_level
