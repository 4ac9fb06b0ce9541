"""The losses of YOLOX (Ge et al., 2021, arXiv:2107.08430, sections 2.1 and 3).

All take logits and boxes in any floating dtype and return a scalar float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.ops import box_iou_elementwise


def yolox_losses(
    objectness: Tensor,
    counted: Tensor,
    positive: Tensor,
    boxes: Tensor,
    target_boxes: Tensor,
    classes: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, objectness and class losses of the cells of a batch.

    Args:
        objectness: logits ``[A]`` of all cells of the batch.
        counted: ``bool [A]``, False for cells that the objectness loss passes over.
        positive: ``int64 [P]``, the cells that were given an object.
        boxes: the boxes ``[P, 4]`` x1 y1 x2 y2 that those predict.
        target_boxes: the boxes ``[P, 4]`` of their objects.
        classes: logits ``[P, C]`` of those cells.
        labels: ``int64 [P]``, the classes of their objects.

    Returns:
        The sums, each divided by P (by 1 where there are no positives), of ``1 - IoU^2`` of the
        boxes; of the binary cross-entropy of the objectness with "is a positive"; and of the binary
        cross-entropy of the classes with the IoU of the predicted box at the true class, 0
        elsewhere. The first and the last are 0 without positives.
    """
    count = max(len(positive), 1)
    iou = box_iou_elementwise(boxes.float(), target_boxes.float())
    box_loss = (1 - iou.square()).sum()

    is_positive = torch.zeros(len(objectness), device=objectness.device)
    is_positive[positive] = 1
    objectness_loss = F.binary_cross_entropy_with_logits(
        objectness[counted].float(), is_positive[counted], reduction="sum"
    )
    # The IoU is a target here: no gradient flows through it.
    wanted = F.one_hot(labels, classes.shape[1]) * iou.detach()[:, None]
    class_loss = F.binary_cross_entropy_with_logits(classes.float(), wanted, reduction="sum")
    return box_loss / count, objectness_loss / count, class_loss / count


def yolox_l1_loss(offsets: Tensor, target_offsets: Tensor) -> Tensor:
    """L1 distance of box offsets ``[P, 4]``, summed and divided by P; 0 where P is 0.

    Added for the last epochs, when mosaic and mixup are off (section 3).
    """
    total = F.l1_loss(offsets.float(), target_offsets.float(), reduction="sum")
    return total / max(len(offsets), 1)
