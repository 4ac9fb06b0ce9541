"""SimOTA: which cells answer for which object (Ge et al., YOLOX, 2021, section 2.1, "SimOTA").

A simplification of optimal transport assignment (Ge et al., OTA, 2021): every object takes the
cheapest cells, and a number of them that its own overlaps decide. Details that the paper leaves
open are those of its authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.models.matcher import IGNORED, NEGATIVE, POSITIVE
from instseg.ops import box_ioa, box_iou
from instseg.structures import Instances

# At most about this many entries in an object-by-cell matrix: 16 MiB of float32.
_CHUNK = 2**22
# Binary cross-entropy with a probability of exactly 0 or 1 stays finite, as PyTorch's own.
_LOG_ZERO = -100.0


@dataclass(frozen=True)
class Cells:
    """The A cells of a feature pyramid, finest level first, row by row."""

    centers: Tensor
    """``float32 [A, 2]``: x, y in pixels."""
    strides: Tensor
    """``float32 [A]``: their sides in pixels."""

    @property
    def boxes(self) -> Tensor:
        """``float32 [A, 4]``: x1 y1 x2 y2 of the cells."""
        half = self.strides[:, None] / 2
        return torch.cat([self.centers - half, self.centers + half], dim=1)


@dataclass(frozen=True)
class SimOTA:
    """Assign cells to the objects of one image by what they predict.

    A candidate is a cell whose centre lies within an object's box, or within ``center_radius``
    cells of its centre in x and y. The cost of cell and object is the binary cross-entropy of
    ``sqrt(objectness * class)`` with the object's class, plus ``iou_weight`` times -log IoU, plus
    ``outside_cost`` unless the cell is both in the box and near the centre. An object takes its k
    cheapest candidates, k the whole part of the sum of its ``candidates`` best IoUs, at least 1. A
    cell that several objects take goes to the object for which it is cheapest.

    Args:
        center_radius: in cells of each level.
        candidates: how many of the best IoUs are summed.
        iou_weight: weight of the IoU's part of the cost.
        outside_cost: above any sum of the other parts.
        crowd_ioa: a cell with at least this share of its area in a crowd region is ignored
            unless it is positive. Crowds themselves never have positives.
    """

    center_radius: float = 2.5
    candidates: int = 10
    iou_weight: float = 3.0
    outside_cost: float = 1e5
    crowd_ioa: float = 0.5

    @torch.no_grad()
    def __call__(
        self, cells: Cells, boxes: Tensor, objectness: Tensor, classes: Tensor, targets: Instances
    ) -> tuple[Tensor, Tensor]:
        """Match the cells to the objects of one image.

        Args:
            cells: A of them.
            boxes: ``[A, 4]`` x1 y1 x2 y2, decoded predictions.
            objectness: logits ``[A]``.
            classes: logits ``[A, C]``.
            targets: the objects.

        Returns:
            ``kind`` ``int8 [A]`` of POSITIVE, NEGATIVE, IGNORED, and ``matched`` ``int64 [A]``, the
            index into ``targets`` of a positive's object (0 for other cells).
        """
        kind = torch.full((len(boxes),), NEGATIVE, dtype=torch.int8, device=boxes.device)
        matched = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        crowd = targets.crowd.to(boxes.device)
        gt_boxes = targets.boxes.to(boxes)
        if crowd.any():
            inside = box_ioa(cells.boxes, gt_boxes[crowd].float()) >= self.crowd_ioa
            kind[inside.any(dim=1)] = IGNORED
        objects = (~crowd).nonzero()[:, 0]
        near = self._candidates(cells, gt_boxes[objects])
        if len(near):
            taken, owner = self._assign(
                Cells(cells.centers[near], cells.strides[near]),
                boxes[near],
                _class_costs(objectness[near], classes[near]),
                gt_boxes[objects],
                targets.labels.to(boxes.device)[objects],
            )
            kind[near[taken]] = POSITIVE
            matched[near[taken]] = objects[owner]
        return kind, matched

    def _candidates(self, cells: Cells, gt_boxes: Tensor) -> Tensor:
        """Indices ``int64 [N]`` of the cells that are candidates for any object."""
        found = torch.zeros(len(cells.strides), dtype=torch.bool, device=gt_boxes.device)
        for rows in _chunks(len(gt_boxes), len(found)):
            in_box, in_center = self._regions(cells, gt_boxes[rows])
            found |= (in_box | in_center).any(dim=0)
        return found.nonzero()[:, 0]

    def _regions(self, cells: Cells, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """``bool [G, N]`` twice: the cell's centre is in the box; is near the box's centre."""
        x, y = cells.centers.to(gt_boxes).unbind(1)
        x1, y1, x2, y2 = gt_boxes[:, None].unbind(-1)
        radius = self.center_radius * cells.strides.to(gt_boxes)
        in_box = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        near_x = (x - (x1 + x2) / 2).abs_() < radius
        near_y = (y - (y1 + y2) / 2).abs_() < radius
        return in_box, near_x & near_y

    def _assign(
        self,
        cells: Cells,
        boxes: Tensor,
        class_costs: tuple[Tensor, Tensor],
        gt_boxes: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Of N candidates: the indices ``int64 [P]`` of those taken, and their objects."""
        n = len(boxes)
        negative, difference = class_costs
        claims = torch.zeros(n, dtype=torch.int64, device=boxes.device)
        claimant = torch.zeros_like(claims)
        lowest = boxes.new_full((n,), torch.inf)
        cheapest = torch.zeros_like(claims)
        top = min(self.candidates, n)
        for rows in _chunks(len(gt_boxes), n):
            iou = box_iou(gt_boxes[rows], boxes)
            k = iou.topk(top, dim=1).values.sum(dim=1).long().clamp(min=1)
            in_box, in_center = self._regions(cells, gt_boxes[rows])
            cost = iou.add_(1e-8).log_().mul_(-self.iou_weight).add_(negative)
            cost += difference[labels[rows]]
            cost += (~(in_box & in_center)).to(cost).mul_(self.outside_cost)

            best, index = cost.topk(top, dim=1, largest=False)
            chosen = torch.arange(top, device=k.device) < k[:, None]
            first = rows.start + chosen.nonzero()[:, 0]
            claimant[index[chosen]] = first
            claims += torch.bincount(index[chosen], minlength=n)
            # Among all objects, as the authors' code has it, not only among those that claim it.
            best, index = cost.min(dim=0)
            cheapest = torch.where(best < lowest, index + rows.start, cheapest)
            lowest = lowest.minimum(best)
        taken = claims.nonzero()[:, 0]
        return taken, torch.where(claims > 1, cheapest, claimant)[taken]


def _class_costs(objectness: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a cell with any class, in parts: ``[N]`` of all classes, were none the true
    one, and ``[C, N]`` what the true class changes in it."""
    log_p = (F.logsigmoid(objectness)[:, None] + F.logsigmoid(classes)) / 2
    log_q = torch.log1p(-log_p.exp()).clamp_(min=_LOG_ZERO)
    return -log_q.sum(dim=1), (log_q - log_p.clamp_(min=_LOG_ZERO)).T


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Cut ``rows`` so that a matrix of each part with ``columns`` stays small."""
    step = max(_CHUNK // max(columns, 1), 1)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
