"""What detectors on one grid of cells share: objects of a batch, who owns a cell, what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instseg.models.detection.one_stage import Candidates, DenseHead, keep_best
from instseg.ops import box_ioa, clip_boxes, large_boxes
from instseg.structures import Instances
from instseg.structures.geometry import Size

# exp() of a size offset is capped here, as in `BoxCoder`.
MAX_LOG_SCALE = math.log(1000.0 / 16)
# Objects with a shorter side in pixels, once clipped to the image, are left out.
_MIN_SIDE = 1e-2


@dataclass
class Objects:
    """The M objects of a batch that can be found: no crowds, nothing outside the image."""

    image: Tensor
    """``int64 [M]``: index of the image, rising."""
    boxes: Tensor
    """``float32 [M, 4]``, clipped to the image."""
    labels: Tensor
    """``int64 [M]``."""

    def __getitem__(self, index: Tensor) -> Objects:
        return Objects(self.image[index], self.boxes[index], self.labels[index])

    @property
    def centers(self) -> Tensor:
        """``[M, 2]``: x, y."""
        return 0.5 * (self.boxes[:, :2] + self.boxes[:, 2:])

    @property
    def sides(self) -> Tensor:
        """``[M, 2]``: width, height."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


class GridHead(DenseHead):
    """A dense head that reads the last map alone.

    Args:
        predictor: its layers.
        max_candidates: so many of the best of each image go into suppression.
        score_threshold, nms_threshold, max_detections: see `DenseHead`.
    """

    def __init__(
        self,
        predictor: nn.Module,
        *,
        score_threshold: float,
        nms_threshold: float,
        max_candidates: int,
        max_detections: int,
    ) -> None:
        super().__init__(
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        self.predictor = predictor
        self.max_candidates = max_candidates

    @property
    def network(self) -> nn.Module:
        """See `DenseHead.network`."""
        return self.predictor

    def select(self, boxes: Tensor, scores: Tensor, sizes: Sequence[Size]) -> list[Instances]:
        """`select_detections` by the limits of this head."""
        return select_detections(
            boxes,
            scores,
            sizes,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_candidates=self.max_candidates,
            max_detections=self.max_detections,
        )


def gather_objects(targets: Sequence[Instances], device: torch.device) -> Objects:
    """The objects of all images, in their order."""
    images, boxes, labels = [], [], []
    for image, target in enumerate(targets):
        own = clip_boxes(target.boxes.to(device).float(), target.image_size)
        keep = large_boxes(own, _MIN_SIDE) & ~target.crowd.to(device)
        boxes.append(own[keep])
        labels.append(target.labels.to(device)[keep])
        images.append(torch.full_like(labels[-1], image))
    return Objects(torch.cat(images), torch.cat(boxes), torch.cat(labels))


def in_crowd(boxes: Tensor, targets: Sequence[Instances], *, share: float = 0.5) -> Tensor:
    """``bool [B, N]``: at least ``share`` of a box ``[B, N, 4]`` is in one crowd region."""
    inside = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for image, target in enumerate(targets):
        crowd = target.crowd.to(boxes.device)
        if crowd.any():
            regions = target.boxes.to(boxes)[crowd]
            inside[image] = (box_ioa(boxes[image], regions) >= share).any(dim=1)
    return inside


def anchor_shapes(anchors: Sequence[Sequence[float]], expected: int) -> Tensor:
    """Anchors (width, height) as ``float32 [A, 2]``.

    Raises:
        ValueError: they are not ``expected`` pairs of positive numbers.
    """
    if len(anchors) != expected:
        raise ValueError(
            f"there are {len(anchors)} anchors, but the predictor is made for {expected}: "
            "give both the same number"
        )
    if any(len(a) != 2 or min(a) <= 0 for a in anchors):
        raise ValueError(f"anchors must be positive (width, height), got {list(anchors)}")
    return torch.tensor([list(map(float, a)) for a in anchors])


def grid_size(features: Sequence[Tensor]) -> Size:
    """Rows and columns of the last map."""
    return features[-1].shape[-2], features[-1].shape[-1]


def cell_corners(grid: Size, device: torch.device) -> Tensor:
    """Column and row ``float32 [H * W, 2]`` of each cell of a grid (H, W), row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij"
    )
    return torch.stack([columns.flatten(), rows.flatten()], dim=1).float()


def cells_of(objects: Objects, grid: Size, step: Tensor) -> tuple[Tensor, Tensor]:
    """The cell that holds each object's centre.

    Args:
        objects: M objects.
        grid: rows and columns.
        step: ``[2]``, width and height of a cell in pixels.

    Returns:
        ``int64 [M]``, index among the cells of the batch (image, row, column), and ``[M, 2]``, x
        and y of the centre in its cell, 0 to 1. A centre on or beyond the last cell's edge is
        in the last cell, at 1.
    """
    position = objects.centers / step
    last = position.new_tensor([grid[1] - 1, grid[0] - 1])
    corner = position.floor().clamp(min=0).minimum(last)
    column, row = corner.long().unbind(1)
    cell = (objects.image * grid[0] + row) * grid[1] + column
    return cell, (position - corner).clamp(0, 1)


def last_of_each(slots: Tensor, count: int) -> Tensor:
    """Of the objects ``int64 [M]`` that want one of ``count`` slots each, the last for each slot.

    Returns:
        Indices ``int64 [P]`` of the objects that get theirs, in the order of the slots.
    """
    owner = slots.new_full((count,), -1)
    order = torch.arange(len(slots), device=slots.device)
    owner = owner.scatter_reduce(0, slots, order, "amax")
    return owner[owner >= 0]


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    sizes: Sequence[Size],
    *,
    score_threshold: float,
    nms_threshold: float,
    max_candidates: int,
    max_detections: int,
) -> list[Instances]:
    """The best boxes of every class, without duplicates.

    Args:
        boxes: ``float32 [B, N, 4]``.
        scores: ``float32 [B, N, C]`` in [0, 1]; a box can be found as several classes.
        sizes: (height, width) of each image.
        score_threshold: scores up to this are dropped.
        nms_threshold: IoU above which the worse of two boxes of one class goes.
        max_candidates: so many of the best of each image go into suppression.
        max_detections: at most this many an image.
    """
    classes = scores.shape[2]
    flat = scores.flatten(1)
    best, index = flat.topk(min(max_candidates, flat.shape[1]), dim=1)
    image, rank = (best > score_threshold).nonzero().unbind(1)
    chosen = index[image, rank]
    source = chosen.div(classes, rounding_mode="floor")
    candidates = Candidates(
        image, boxes[image, source], best[image, rank], chosen % classes, source
    )
    detections, _ = keep_best(
        candidates, sizes, nms_threshold=nms_threshold, max_detections=max_detections
    )
    return detections
