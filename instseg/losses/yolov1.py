"""The loss of YOLOv1 (Redmon et al., 2016, section 2.2, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass
class CellTargets:
    """What the N cells of a batch should say, each with K boxes; P of them hold an object."""

    cell: Tensor
    """``int64 [P]``: indices of the cells with an object."""
    responsible: Tensor
    """``int64 [P]``: which of the K boxes is to find it."""
    boxes: Tensor
    """``float32 [P, 4]``: x and y in the cell, square roots of w and h in the image, in [0, 1]."""
    iou: Tensor
    """``float32 [P]`` in [0, 1]: of the responsible box with the object's."""
    labels: Tensor
    """``int64 [P]``."""
    ignored: Tensor
    """``bool [N]``: cells whose boxes may have any confidence."""


def yolov1_losses(
    boxes: Tensor,
    confidence: Tensor,
    classes: Tensor,
    targets: CellTargets,
    *,
    num_images: int,
    coord_weight: float = 5.0,
    no_object_weight: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The lines of equation 3: sums over the batch, divided by the number of images.

    Args:
        boxes: predicted ``[N, K, 4]``: x, y, square root of w, of h.
        confidence: ``[N, K]``.
        classes: ``[N, C]``, probabilities that a linear layer predicts.
        targets: what they should be.
        num_images: of the batch.
        coord_weight: lambda_coord.
        no_object_weight: lambda_noobj.

    Returns:
        Scalars float32: boxes (lines 1 and 2), confidences (3 and 4), classes (5). The first and
        the last are 0 where no cell holds an object.
    """
    chosen = targets.cell, targets.responsible
    confidence = confidence.float()
    box = (boxes[chosen].float() - targets.boxes).square().sum()
    right = (confidence[chosen] - targets.iou).square().sum()
    empty = (~targets.ignored)[:, None].repeat(1, confidence.shape[1])
    empty[chosen] = False
    wrong = confidence.square().where(empty, 0).sum()
    one_hot = F.one_hot(targets.labels, classes.shape[1])
    classification = (classes[targets.cell].float() - one_hot).square().sum()
    return (
        coord_weight * box / num_images,
        (right + no_object_weight * wrong) / num_images,
        classification / num_images,
    )
