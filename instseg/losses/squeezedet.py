"""The loss of SqueezeDet (Wu et al., 2017, section 3.3, equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass
class AnchorTargets:
    """What the N anchors of a batch should say; P of them are each to find an object."""

    positive: Tensor
    """``int64 [P]``: indices of the anchors with an object."""
    offsets: Tensor
    """``float32 [P, 4]`` of the object from its anchor."""
    iou: Tensor
    """``float32 [P]`` in [0, 1]: of the predicted box with the object's."""
    labels: Tensor
    """``int64 [P]``."""
    negative: Tensor
    """``bool [N]``: anchors of nothing, whose confidence should be 0."""


def squeezedet_losses(
    predictions: Tensor,
    targets: AnchorTargets,
    *,
    box_weight: float = 5.0,
    positive_weight: float = 75.0,
    negative_weight: float = 100.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of equation 3; each mean is over the whole batch.

    Args:
        predictions: raw ``[N, 5 + C]``: 4 box offsets, the logit of the confidence, then the
            logits of the classes.
        targets: what they should be.
        box_weight: lambda_bbox.
        positive_weight: lambda_conf+.
        negative_weight: lambda_conf-.

    Returns:
        Scalars float32: squared error of the offsets summed over the 4 and averaged over the P
        objects; squared error of the confidence against the IoU averaged over these, plus that
        against 0 averaged over the negatives; cross-entropy of a softmax over the classes, likewise
        over the objects. The first and the last are 0 where nothing is positive.
    """
    predictions = predictions.float()
    found = predictions[targets.positive]
    count = max(len(found), 1)
    box = (found[:, :4] - targets.offsets).square().sum() / count
    right = (found[:, 4].sigmoid() - targets.iou).square().sum() / count
    wrong = predictions[:, 4].sigmoid().square().where(targets.negative, 0).sum()
    wrong = wrong / targets.negative.sum().clamp(min=1)
    classification = F.cross_entropy(found[:, 5:], targets.labels, reduction="sum") / count
    return box_weight * box, positive_weight * right + negative_weight * wrong, classification
