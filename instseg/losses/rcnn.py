"""The five losses of Mask R-CNN (He et al., 2017, section 3; Ren et al., 2015, eq. 1).

All take logits in any floating dtype and return a scalar float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rpn_losses(
    objectness: Tensor,
    offsets: Tensor,
    positive: Tensor,
    negative: Tensor,
    target_offsets: Tensor,
    *,
    beta: float = 1 / 9,
) -> tuple[Tensor, Tensor]:
    """Objectness and box losses of the region proposal network.

    Args:
        objectness: logits ``[A]`` of all anchors of the batch.
        offsets: predicted box offsets ``[A, 4]``.
        positive: ``int64 [P]``, the sampled positives.
        negative: ``int64 [Q]``, the sampled negatives.
        target_offsets: ``[P, 4]``, for the positives.
        beta: where smooth L1 turns from square to linear.

    Returns:
        Binary cross-entropy averaged over the P + Q samples, and smooth L1 summed over the
        positives and divided by P + Q. Both are 0 where nothing was sampled.
    """
    sampled = torch.cat([positive, negative])
    labels = torch.zeros(len(sampled), device=objectness.device)
    labels[: len(positive)] = 1
    count = max(len(sampled), 1)
    classification = F.binary_cross_entropy_with_logits(
        objectness[sampled].float(), labels, reduction="sum"
    )
    regression = F.smooth_l1_loss(
        offsets[positive].float(), target_offsets, beta=beta, reduction="sum"
    )
    return classification / count, regression / count


def box_losses(
    logits: Tensor,
    offsets: Tensor,
    labels: Tensor,
    target_offsets: Tensor,
    *,
    beta: float = 1 / 9,
) -> tuple[Tensor, Tensor]:
    """Classification and box losses of the box head.

    Args:
        logits: ``[R, C + 1]``; column 0 is the background.
        offsets: ``[R, C + 1, 4]``, a box for each class (that of the background is not used).
        labels: ``int64 [R]``, 0 for background, class index + 1 otherwise.
        target_offsets: ``[P, 4]``, for the P RoIs with label > 0, in order.
        beta: where smooth L1 turns from square to linear.

    Returns:
        Cross-entropy averaged over the R RoIs, and smooth L1 of the true class's box summed over
        the positives and divided by R. Both are 0 where R is 0.
    """
    count = max(len(labels), 1)
    classification = F.cross_entropy(logits.float(), labels, reduction="sum") / count
    positive = (labels > 0).nonzero()[:, 0]
    chosen = offsets[positive, labels[positive]].float()
    regression = F.smooth_l1_loss(chosen, target_offsets, beta=beta, reduction="sum")
    return classification, regression / count


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Average binary cross-entropy of the true class's mask; 0 where there are no RoIs.

    Args:
        logits: ``[P, M, M]``, already taken from the channel of the true class.
        targets: ``float [P, M, M]`` in [0, 1].
    """
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return total / max(targets.numel(), 1)
