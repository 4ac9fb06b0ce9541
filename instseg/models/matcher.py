"""Assigning reference boxes to objects, and drawing a sample of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from instseg.ops import box_ioa, box_iou
from instseg.structures import Instances

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

# Objects times boxes that are compared at once: a few hundred megabytes.
_PAIRS_AT_ONCE = 2**24


def iou_by_parts(objects: Tensor, boxes: Tensor) -> Iterator[Tensor]:
    """The rows of ``box_iou(objects, boxes)``, ``[G, A]``, as many at a time as memory is for."""
    for part in objects.split(max(1, _PAIRS_AT_ONCE // max(1, len(boxes)))):
        yield box_iou(part, boxes)


@dataclass(frozen=True)
class Matcher:
    """Match boxes to objects by IoU (Ren et al., Faster R-CNN, 2015, section 3.1.2).

    Args:
        positive_iou: at least this makes a positive, in [0, 1].
        negative_iou: less than this makes a negative; between the two a box is ignored.
        allow_low_quality: the boxes with the highest IoU for an object become positives too,
            however low that IoU is (rule (i) of the paper), as long as they overlap it.
        crowd_ioa: a negative with at least this share of its area in a crowd region is ignored.
    """

    positive_iou: float
    negative_iou: float
    allow_low_quality: bool = False
    crowd_ioa: float = 0.5

    def __call__(self, boxes: Tensor, targets: Instances) -> tuple[Tensor, Tensor]:
        """Match boxes ``[A, 4]`` to the objects of one image.

        Returns:
            ``kind`` ``int8 [A]`` of POSITIVE, NEGATIVE, IGNORED, and ``matched`` ``int64 [A]``, the
            index into ``targets`` of the best object (0 where there is none).
        """
        kind = torch.full((len(boxes),), NEGATIVE, dtype=torch.int8, device=boxes.device)
        matched = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        crowd = targets.crowd.to(boxes.device)
        gt_boxes = targets.boxes.to(boxes)
        objects = (~crowd).nonzero()[:, 0]
        if len(objects):
            best, index, low_quality = self._best_of(gt_boxes[objects], boxes)
            matched = objects[index]
            kind[best >= self.negative_iou] = IGNORED
            kind[(best >= self.positive_iou) | low_quality] = POSITIVE
        if crowd.any():
            in_crowd = (box_ioa(boxes, gt_boxes[crowd]) >= self.crowd_ioa).any(dim=1)
            kind[in_crowd & (kind == NEGATIVE)] = IGNORED
        return kind, matched

    def _best_of(self, objects: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each box ``[A]`` the highest IoU, the first object that has it, and rule (i)."""
        best = boxes.new_full((len(boxes),), -1.0)
        index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        low_quality = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        start = 0
        for iou in iou_by_parts(objects, boxes):
            highest, row = iou.max(dim=0)
            better = highest > best
            best = torch.where(better, highest, best)
            index = torch.where(better, row + start, index)
            if self.allow_low_quality:
                top = iou.max(dim=1, keepdim=True).values
                # An object that no box overlaps has no best box: all tie at 0.
                low_quality |= ((iou == top) & (iou > 0)).any(dim=0)
            start += len(iou)
        return best, index, low_quality


@dataclass(frozen=True)
class Sampler:
    """Draw a fixed number of boxes with a bounded share of positives.

    Args:
        size: boxes an image.
        positive_fraction: at most this share of them is positive; negatives fill up the rest.
    """

    size: int
    positive_fraction: float

    def __call__(self, kind: Tensor) -> tuple[Tensor, Tensor]:
        """From ``kind`` ``[A]`` (see `Matcher`) to the indices of (positives, negatives)."""
        positive = (kind == POSITIVE).nonzero()[:, 0]
        negative = (kind == NEGATIVE).nonzero()[:, 0]
        num_positive = min(len(positive), int(self.size * self.positive_fraction))
        num_negative = min(len(negative), self.size - num_positive)
        return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(indices: Tensor, number: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]
