"""The losses of DetectNet (NVIDIA, 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass
class CoverageTargets:
    """What the N cells of a batch should say; P of them are covered by an object."""

    cell: Tensor
    """``int64 [P]``: indices of the covered cells."""
    labels: Tensor
    """``int64 [P]``: class of the object."""
    corners: Tensor
    """``float32 [P, 4]``: x1 y1 x2 y2 of the object relative to the cell, in cells."""
    sides: Tensor
    """``float32 [P, 2]``: width and height of the object, at least a pixel, in cells."""
    weights: Tensor
    """``float32 [P]``: one over the area of the object's coverage region in cells, at most 1."""
    ignored: Tensor
    """``bool [N]``: cells whose coverage may be anything."""


def detectnet_losses(
    coverage: Tensor,
    corners: Tensor,
    targets: CoverageTargets,
    *,
    num_images: int,
    box_weight: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the coverage, and half the absolute error of the corners.

    Both are sums over the batch, divided by the number of images, as Caffe's losses are. An error
    of a corner counts relative to the object's width (x) or height (y), and each object's cells
    share one weight (``obj_norm`` of the published network), so that large objects do not count
    for more.

    Args:
        coverage: logits ``[N, C]``; the coverage itself is their sigmoid.
        corners: predicted ``[N, 4]``: x1 y1 x2 y2 relative to the cell, in cells.
        targets: what they should be.
        num_images: of the batch.
        box_weight: weight of the second loss; 2 in the published network.

    Returns:
        Scalars float32; the second is 0 where no cell is covered.
    """
    wanted = coverage.new_zeros(coverage.shape, dtype=targets.corners.dtype)
    wanted[targets.cell] = F.one_hot(targets.labels, coverage.shape[1]).to(wanted)
    errors = (coverage.float().sigmoid() - wanted).square()
    errors = errors.where(~targets.ignored[:, None], 0)
    distance = (corners[targets.cell].float() - targets.corners).abs() / targets.sides.repeat(1, 2)
    box = (targets.weights[:, None] * distance).sum()
    return 0.5 * errors.sum() / num_images, box_weight * 0.5 * box / num_images
