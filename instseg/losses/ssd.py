"""SSD's multibox loss (Liu et al., 2016, section 2.2, equations 1 to 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def multibox_losses(
    logits: Tensor,
    offsets: Tensor,
    labels: Tensor,
    target_offsets: Tensor,
    *,
    negative_ratio: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Classification and box losses of the default boxes, both divided by the positives' number.

    Args:
        logits: ``[B, A, C + 1]`` in any floating dtype; column 0 is the background.
        offsets: ``[B, A, 4]``.
        labels: ``int64 [B, A]``: class index + 1 for positives, 0 for negatives, -1 for ignored.
        target_offsets: ``[P, 4]`` for the P positives, image by image.
        negative_ratio: negatives that count for each positive of an image.

    Returns:
        Scalar float32: cross-entropy over the positives and the hard negatives, and smooth L1 over
        the positives. Both are 0 where there are no positives.
    """
    positive = labels > 0
    cross_entropy = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none"
    ).view_as(labels)
    hard = hard_negatives(cross_entropy.detach(), positive, labels == 0, ratio=negative_ratio)
    regression = F.smooth_l1_loss(offsets[positive].float(), target_offsets, reduction="sum")
    count = max(len(target_offsets), 1)
    return cross_entropy[positive | hard].sum() / count, regression / count


def hard_negatives(
    losses: Tensor, positive: Tensor, negative: Tensor, *, ratio: float = 3.0
) -> Tensor:
    """The negatives of highest loss of each image, ``ratio`` for each of its positives.

    An image without positives has none, as in the authors' code and in torchvision.

    Args:
        losses: ``float [B, A]``.
        positive: ``bool [B, A]``.
        negative: ``bool [B, A]``.
        ratio: at least 0.

    Returns:
        ``bool [B, A]``, a part of ``negative``.
    """
    ranked = losses.masked_fill(~negative, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = ranked.argsort(dim=1)
    return negative & (rank < ratio * positive.sum(dim=1, keepdim=True))
