"""The region loss of YOLOv2 (Redmon & Farhadi, 2017, section 2; Darknet's region layer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class RegionTargets:
    """What the predictions of a batch should be; P of all N of them are each to find an object."""

    positive: Tensor
    """``int64 [P]``: indices of the predictions with an object."""
    boxes: Tensor
    """``float32 [P, 4]``: sigma(t_x), sigma(t_y) in [0, 1], t_w, t_h of the object."""
    box_weights: Tensor
    """``float32 [P]``: 2 - (area of the object / area of the image), so that small boxes count."""
    iou: Tensor
    """``float32 [P]`` in [0, 1]: of the predicted box with the object's."""
    labels: Tensor
    """``int64 [P]``."""
    negative: Tensor
    """``bool [N]``: predictions of nothing, whose confidence should be 0."""


def region_losses(
    predictions: Tensor,
    targets: RegionTargets,
    *,
    num_images: int,
    object_scale: float = 5.0,
    no_object_scale: float = 1.0,
    box_scale: float = 1.0,
    class_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, confidence and class losses: sums over the batch, divided by the number of images.

    The paper writes no loss; these are the functions whose gradients Darknet's region layer
    computes: half the squared error of sigma(t_x), sigma(t_y), t_w and t_h, weighted by
    ``box_weights``; half the squared error of sigma(t_o), against the IoU for positives (section
    2: "Pr(object) * IOU(b, object) = sigma(t_o)") and 0 for negatives; and the cross-entropy of a
    softmax over the classes.

    Args:
        predictions: raw ``[N, 5 + C]``: t_x t_y t_w t_h t_o, then the logits of the classes.
        targets: what they should be.
        num_images: of the batch.
        object_scale: weight of the confidence of positives.
        no_object_scale: weight of the confidence of negatives.
        box_scale: weight of the boxes.
        class_scale: weight of the classes.

    Returns:
        Three scalars float32; those of boxes and classes are 0 where nothing is positive.
    """
    predictions = predictions.float()
    found = predictions[targets.positive]
    boxes = torch.cat([found[:, :2].sigmoid(), found[:, 2:4]], dim=1)
    box = (targets.box_weights[:, None] * (boxes - targets.boxes).square()).sum()
    empty = predictions[:, 4].sigmoid().square().where(targets.negative, 0).sum()
    confidence = (found[:, 4].sigmoid() - targets.iou).square().sum()
    classes = F.cross_entropy(found[:, 5:], targets.labels, reduction="sum")
    return (
        box_scale * 0.5 * box / num_images,
        0.5 * (object_scale * confidence + no_object_scale * empty) / num_images,
        class_scale * classes / num_images,
    )
