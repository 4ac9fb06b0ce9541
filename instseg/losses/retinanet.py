"""RetinaNet's losses: focal loss, and L1 or generalised IoU on boxes.

Each is divided by an image's number of positive anchors, at least 1 (Lin et al., Focal Loss, 2017,
section 4.1, "Focal Loss"), then averaged over the images. All take floating tensors of any dtype
and return a scalar float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instseg.ops import generalized_box_iou_elementwise, sigmoid_focal_loss

BACKGROUND, IGNORED = -1, -2


def focal_classification_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of all anchors that are not ignored, over the number of positives.

    Args:
        logits: ``[B, A, C]``.
        labels: ``int64 [B, A]``: the class, `BACKGROUND` or `IGNORED`.
        alpha: see `instseg.ops.sigmoid_focal_loss`.
        gamma: likewise.
    """
    positive = labels >= 0
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    image, anchor = positive.nonzero(as_tuple=True)
    wanted[image, anchor, labels[image, anchor]] = 1.0
    losses = sigmoid_focal_loss(logits.float(), wanted, alpha, gamma).sum(dim=2)
    losses = losses.masked_fill(labels == IGNORED, 0.0).sum(dim=1)
    return (losses / positive.sum(dim=1).clamp(min=1)).mean()


def offset_loss(offsets: Tensor, targets: Tensor, image: Tensor, num_images: int) -> Tensor:
    """L1 of box offsets, summed over the four; 0 where there are no positives.

    Args:
        offsets: of the P positives, ``[P, 4]``.
        targets: ``[P, 4]``.
        image: ``int64 [P]``, each positive's image.
        num_images: B.
    """
    return _average((offsets.float() - targets.float()).abs().sum(dim=1), image, num_images)


def giou_loss(boxes: Tensor, targets: Tensor, image: Tensor, num_images: int) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al., 2019); 0 where there are no positives.

    Args:
        boxes: predictions of the P positives, ``[P, 4]``.
        targets: ``[P, 4]``.
        image: ``int64 [P]``, each positive's image.
        num_images: B.
    """
    overlap = generalized_box_iou_elementwise(boxes.float(), targets.float())
    return _average(1 - overlap, image, num_images)


def _average(losses: Tensor, image: Tensor, num_images: int) -> Tensor:
    """Sum over each image's positives, over their number; then the mean over all images."""
    counts = torch.bincount(image, minlength=num_images)
    return (losses / counts[image]).sum() / num_images
