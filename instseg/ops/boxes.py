"""Areas, overlaps and clipping of boxes ``[N, 4]`` (x1, y1, x2, y2), continuous coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from instseg.structures.geometry import Size


def box_area(boxes: Tensor) -> Tensor:
    """Area ``[N]`` in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    left_top = torch.max(boxes1[:, None, :2], boxes2[None, :, :2])
    right_bottom = torch.min(boxes1[:, None, 2:], boxes2[None, :, 2:])
    sides = (right_bottom - left_top).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union ``[N, M]`` in [0, 1]; 0 where both boxes have no area."""
    inter = _intersection(boxes1, boxes2)
    union = box_area(boxes1)[:, None] + box_area(boxes2)[None, :] - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def box_ioa(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share ``[N, M]`` of each box's own area that lies in each region (COCO's crowd overlap)."""
    inter = _intersection(boxes, regions)
    return inter / box_area(boxes)[:, None].clamp(min=torch.finfo(inter.dtype).tiny)


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip boxes ``[..., 4]`` to an image of ``size`` (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def large_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """``bool [N]``: both sides are at least ``min_size`` pixels."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides >= min_size).all(dim=1)
