"""Non-maximum suppression."""

from __future__ import annotations

import torchvision.ops
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression: walk down the scores, drop what overlaps a kept box too much.

    Args:
        boxes: ``[N, 4]`` x1 y1 x2 y2.
        scores: ``[N]``.
        iou_threshold: a box is dropped when its IoU with a better one is above this, in [0, 1].

    Returns:
        ``int64 [K]``: the kept indices, by falling score.

    Raises:
        ValueError: shapes differ from those above.
    """
    _check(boxes, scores)
    keep: Tensor = torchvision.ops.nms(boxes, scores, iou_threshold)
    return keep


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`nms` within each group (class, pyramid level): boxes of other groups never suppress.

    Args:
        boxes: ``[N, 4]`` x1 y1 x2 y2.
        scores: ``[N]``.
        groups: ``int64 [N]``.
        iou_threshold: as in `nms`.

    Returns:
        ``int64 [K]``: the kept indices, by falling score.

    Raises:
        ValueError: shapes differ from those above.
    """
    _check(boxes, scores)
    if groups.shape != scores.shape:
        raise ValueError(f"groups must be {list(scores.shape)}, got {list(groups.shape)}")
    keep: Tensor = torchvision.ops.batched_nms(boxes, scores, groups, iou_threshold)
    return keep


def _check(boxes: Tensor, scores: Tensor) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [N, 4], got {list(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores must be [{boxes.shape[0]}], got {list(scores.shape)}")
