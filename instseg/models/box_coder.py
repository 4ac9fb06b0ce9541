"""Boxes as offsets from reference boxes (Girshick et al., R-CNN, 2014, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# exp() of a size offset is capped here: a box grows at most to 1000/16 times its reference.
_MAX_LOG_SCALE = math.log(1000.0 / 16)


@dataclass(frozen=True)
class BoxCoder:
    """t_x = w_x (x - x_a) / w_a, t_w = w_w log(w / w_a), likewise for y and height.

    Args:
        weights: (w_x, w_y, w_w, w_h), which scale the offsets to about unit variance.
    """

    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Offsets ``[N, 4]`` of ``boxes`` from ``references``, both ``[N, 4]`` x1 y1 x2 y2."""
        ref_size = references[:, 2:] - references[:, :2]
        ref_center = references[:, :2] + 0.5 * ref_size
        size = boxes[:, 2:] - boxes[:, :2]
        center = boxes[:, :2] + 0.5 * size
        shift = (center - ref_center) / ref_size
        return torch.cat([shift, torch.log(size / ref_size)], dim=1) * boxes.new_tensor(
            self.weights
        )

    def decode(self, offsets: Tensor, references: Tensor) -> Tensor:
        """Boxes ``[..., 4]`` from offsets of the same shape; ``references`` broadcast to it."""
        ref_size = references[..., 2:] - references[..., :2]
        ref_center = references[..., :2] + 0.5 * ref_size
        offsets = offsets / offsets.new_tensor(self.weights)
        center = offsets[..., :2] * ref_size + ref_center
        half = 0.5 * torch.exp(offsets[..., 2:].clamp(max=_MAX_LOG_SCALE)) * ref_size
        return torch.cat([center - half, center + half], dim=-1)
