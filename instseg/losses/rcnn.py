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


def mask_loss(logits: Tensor, targets: Tensor, *, bce: float = 1.0, dice: float = 0.0) -> Tensor:
    """Weighted sum of two losses of the true class's mask; 0 where there are no RoIs.

    The average binary cross-entropy is Mask R-CNN's. Soft Dice, 1 - 2 sum(p t) / (sum(p^2) +
    sum(t^2)) of each RoI, averaged over the RoIs, is V-Net's (Milletari et al., 2016, section 3):
    its squares let it reach 0 where targets are fractions. A pixel is added to both sums against
    the division by 0.

    Args:
        logits: ``[P, M, M]``, already taken from the channel of the true class.
        targets: ``float [P, M, M]`` in [0, 1].
        bce: weight of the cross-entropy.
        dice: weight of soft Dice.
    """
    logits = logits.float()
    total = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    loss = bce * (total / max(targets.numel(), 1))
    if dice:
        probs, targets = logits.sigmoid().flatten(1), targets.flatten(1)
        both = probs.square().sum(dim=1) + targets.square().sum(dim=1)
        overlap = (2 * (probs * targets).sum(dim=1) + 1) / (both + 1)
        loss = loss + dice * (1 - overlap).sum() / max(len(targets), 1)
    return loss
