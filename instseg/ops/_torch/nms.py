"""Greedy suppression block by block, each with a matrix of its overlaps with all that follow."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1024


def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The order of falling scores ``int64 [N]``, and which boxes of it stay, ``bool [N]``."""
    order = scores.sort(descending=True, stable=True).indices
    boxes = boxes[order]
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    group = None if groups is None else groups[order]
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(boxes), _BLOCK):
        block = slice(start, start + _BLOCK)
        over = _overlaps(boxes, group, block, slice(start, None), iou_threshold)
        inside = over[:, : len(boxes[block])].triu(1)
        kept = _settle(inside, keep[block])
        keep[block] = kept
        rest = keep[start + _BLOCK :]
        rest &= ~over[:, _BLOCK:][kept].any(dim=0)
    return order, keep


def _settle(over: Tensor, candidates: Tensor) -> Tensor:
    """Which of some boxes stay, ``over[i, j]`` meaning that i, if it stays, drops j > i.

    Each round is right for one more box of any chain of suppressions; most chains are short.
    """
    keep = candidates
    while True:
        after = candidates & ~(over & keep[:, None]).any(dim=0)
        if torch.equal(after, keep):
            return keep
        keep = after


def _overlaps(
    boxes: Tensor, groups: Tensor | None, rows: slice, columns: slice, threshold: float
) -> Tensor:
    """``bool``: the IoU of two boxes is above the threshold, and they are of one group."""
    a, b = boxes[rows], boxes[columns]
    sides = torch.min(a[:, None, 2:], b[None, :, 2:]) - torch.max(a[:, None, :2], b[None, :, :2])
    sides = sides.clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    area_a, area_b = ((v[:, 2] - v[:, 0]) * (v[:, 3] - v[:, 1]) for v in (a, b))
    over = inter / (area_a[:, None] + area_b[None, :] - inter) > threshold
    return over if groups is None else over & (groups[rows][:, None] == groups[columns][None, :])
