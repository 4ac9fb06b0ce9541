"""The mask loss of prototype masks (Bolya et al., YOLACT, 2019, sections 3.1 and 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype_mask_losses(
    prototypes: Tensor, coefficients: Tensor, objects: Tensor, targets: Tensor
) -> Tensor:
    """Binary cross-entropy of each positive's mask inside its object's box, over the box's area.

    A positive's mask is the sum of the prototypes weighted by its coefficients, through a sigmoid
    (equation 1). Prototypes and targets come resampled to one grid over each object's box, so that
    a mean over the grid is what the paper has: the loss cropped to the box, divided by its area.

    Args:
        prototypes: ``[U, K, M, M]``, over the boxes of U objects.
        coefficients: ``[P, K]``, after their tanh.
        objects: ``int64 [P]``, each positive's object.
        targets: ``float [U, M, M]`` in [0, 1].

    Returns:
        ``float32 [P]``.
    """
    # One product for each object, with the coefficients of all its positives: gathering its
    # prototypes for each positive would take K times the memory of the masks.
    slot = occurrence(objects)
    slots = int(slot.max()) + 1 if len(slot) else 0
    table = coefficients.new_zeros(len(prototypes), slots, coefficients.shape[1])
    table = table.index_put((objects, slot), coefficients)
    logits = (table @ prototypes.flatten(2))[objects, slot].float()
    wanted = targets.flatten(1)[objects].float()
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)


def occurrence(values: Tensor) -> Tensor:
    """``int64 [N]``: how many earlier entries of ``int64 [N]`` have the same value."""
    order = values.argsort(stable=True)
    ordered = values[order]
    rank = torch.arange(len(values), device=values.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).index_put((order,), rank)
