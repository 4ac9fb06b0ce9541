"""Non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from instseg.ops import backend, check


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression: walk down the scores, drop what overlaps a kept box too much.

    Among equal scores the box that comes first goes first.

    Args:
        boxes: ``[N, 4]`` x1 y1 x2 y2 of a floating dtype; overlaps are computed in float32, or
            float64 for float64 boxes.
        scores: ``[N]``.
        iou_threshold: a box is dropped when its IoU with a better one is above this, in [0, 1].

    Returns:
        ``int64 [K]``: the kept indices, by falling score. On a GPU, taking them is the only point
        at which the CPU waits; `nms_mask` has no such point.

    Raises:
        ValueError: a wrong shape, a threshold outside [0, 1], or boxes or scores that are not
            finite (on a GPU looked for only under ``INSTSEG_DEBUG=1``).
        TypeError: boxes or scores are not floating.
    """
    order, keep = nms_mask(boxes, scores, None, iou_threshold)
    return order[keep]


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
        ValueError: as in `nms`, or ``groups`` has another shape.
        TypeError: boxes or scores are not floating, or groups are not whole numbers.
    """
    order, keep = nms_mask(boxes, scores, groups, iou_threshold)
    return order[keep]


def nms_mask(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """`batched_nms` (`nms` without groups) with results whose shapes do not depend on values.

    Args:
        boxes: ``[N, 4]`` x1 y1 x2 y2.
        scores: ``[N]``.
        groups: ``int64 [N]`` or None.
        iou_threshold: as in `nms`.

    Returns:
        ``int64 [N]``, all indices by falling score, and ``bool [N]``, which of them are kept.

    Raises:
        ValueError: as in `batched_nms`.
        TypeError: likewise.
    """
    check.boxes("boxes", boxes)
    check.one_per_box("scores", scores, boxes)
    check.floating("scores", scores)
    if groups is not None:
        check.one_per_box("groups", groups, boxes)
        if groups.dtype != torch.int64:
            raise TypeError(f"groups must be int64, got {groups.dtype}")
    check.fraction("iou_threshold", iou_threshold)
    order, keep = torch.ops.instseg.nms(boxes.detach(), scores.detach(), groups, iou_threshold)
    return order, keep


@torch.library.custom_op("instseg::nms", mutates_args=())
def _nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    check.finite("boxes", boxes)
    check.finite("scores", scores)
    order, keep = backend.kernel("nms", boxes.device)(boxes, scores, groups, iou_threshold)
    return order, keep


@_nms.register_fake
def _nms_fake(boxes, scores, groups, iou_threshold):  # type: ignore[no-untyped-def]
    count = scores.shape
    return scores.new_empty(count, dtype=torch.int64), scores.new_empty(count, dtype=torch.bool)
