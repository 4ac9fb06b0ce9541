"""Soft non-maximum suppression: overlaps lower scores instead of dropping boxes."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from instseg.ops import check
from instseg.ops.boxes import box_iou

Method = Literal["gaussian", "linear"]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    method: Method = "gaussian",
    iou_threshold: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Take the best box, lower the scores of those that overlap it, and so on with the rest.

    Source: Bodla et al., Soft-NMS, 2017, section 3. Every box M that is taken multiplies the score
    of each box b left by ``exp(-iou(M, b)^2 / sigma)`` (Gaussian), or by ``1 - iou(M, b)`` where
    ``iou(M, b) >= iou_threshold`` (linear). Among equal scores the box that comes first is taken
    first. There is no gradient.

    Args:
        boxes: ``[N, 4]`` x1 y1 x2 y2 of a floating dtype; overlaps and decay are computed in
            float32, or float64 if boxes or scores are float64.
        scores: ``[N]`` of a floating dtype, not negative.
        sigma: width of the Gaussian, above 0; the linear method does not look at it.
        score_threshold: boxes whose lowered score is not above this are dropped, in [0, 1].
        method: "gaussian" or "linear".
        iou_threshold: least overlap that the linear method punishes, in [0, 1]; the Gaussian method
            does not look at it.

    Returns:
        ``int64 [K]``, the kept indices by falling lowered score, and these scores ``[K]`` in the
        dtype of ``scores``. On a GPU, taking them is the only point at which the CPU waits: the
        loop over the boxes runs without looking at results.

    Raises:
        ValueError: a wrong shape, an argument out of its range, or boxes or scores that are not
            finite (on a GPU looked for only under ``INSTSEG_DEBUG=1``).
        TypeError: boxes or scores are not floating.
    """
    check.boxes("boxes", boxes)
    check.one_per_box("scores", scores, boxes)
    check.floating("scores", scores)
    check.positive("sigma", sigma)
    check.fraction("score_threshold", score_threshold)
    check.fraction("iou_threshold", iou_threshold)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    order, lowered = torch.ops.instseg.soft_nms(
        boxes.detach(), scores.detach(), sigma, method, iou_threshold
    )
    keep = lowered > score_threshold
    return order[keep], lowered[keep]


@torch.library.custom_op("instseg::soft_nms", mutates_args=())
def _soft_nms(
    boxes: Tensor, scores: Tensor, sigma: float, method: str, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """All N indices in the order in which the boxes are taken, and their scores then."""
    check.finite("boxes", boxes)
    check.finite("scores", scores)
    wide = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, left = boxes.to(wide), scores.to(wide, copy=True)
    taken = torch.zeros_like(scores, dtype=torch.bool)
    order = torch.empty_like(scores, dtype=torch.int64)
    lowered = torch.empty_like(left)
    for step in range(len(boxes)):
        # Indices stay tensors of shape [1]: a number would make the CPU wait for the GPU.
        best = left.masked_fill(taken, -torch.inf).argmax(dim=0, keepdim=True)
        order[step : step + 1] = best
        lowered[step : step + 1] = left.index_select(0, best)
        taken.index_fill_(0, best, True)
        iou = box_iou(boxes.index_select(0, best), boxes)[0]
        if method == "gaussian":
            left *= torch.exp(iou.square_().div_(-sigma))
        else:
            left *= 1 - iou * (iou >= iou_threshold)
    return order, lowered.to(scores.dtype)


@_soft_nms.register_fake
def _soft_nms_fake(boxes, scores, sigma, method, iou_threshold):  # type: ignore[no-untyped-def]
    return torch.empty_like(scores, dtype=torch.int64), torch.empty_like(scores)
