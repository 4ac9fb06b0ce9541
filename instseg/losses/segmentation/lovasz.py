"""The Lovasz extension of the Jaccard loss (Berman et al., 2018, arXiv:1705.08790).

Common arguments: `instseg.losses.segmentation.common`; ``batch``, ``include_background`` and
``skip_absent``: `instseg.losses.segmentation.overlap`. Pixel weights generalise the paper: the
sizes of intersection and union are then sums of weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from instseg.losses.segmentation.common import Mode, Pixels, prepare, require_mode, weighted_mean
from instseg.losses.segmentation.overlap import average_weights


def lovasz(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
) -> Tensor:
    """`lovasz_softmax` where classes exclude each other, `lovasz_hinge` where they may overlap."""
    loss = lovasz_softmax if mode == "multiclass" else lovasz_hinge
    return loss(
        logits,
        target,
        mode=mode,
        ignore_index=ignore_index,
        class_weights=class_weights,
        pixel_weights=pixel_weights,
        batch=batch,
    )


def lovasz_hinge(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    skip_absent: bool = False,
) -> Tensor:
    """Hinge errors max(0, 1 - (2 y - 1) logit) (section 3.1); mode ``multilabel`` alone.

    Unbounded; 0 where each logit is at least 1 on its side.
    """
    require_mode("lovasz_hinge", mode, "multilabel", "lovasz_softmax")
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    labels = pixels.one_hot()
    errors = F.relu(1 - (2 * labels - 1) * pixels.logits)
    return _extension(pixels, errors, labels, include_background=True, skip_absent=skip_absent)


def lovasz_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    include_background: bool = True,
    skip_absent: bool = True,
) -> Tensor:
    """Errors abs(y - p), p of a softmax (section 3.2, equations 11, 12); ``multiclass`` alone.

    In [0, 1]. The average is over the classes that are present, as the authors have it; a loss
    without any is 0.
    """
    require_mode("lovasz_softmax", mode, "multiclass", "lovasz_hinge")
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    labels = pixels.one_hot()
    errors = (labels - pixels.probabilities()).abs()
    return _extension(
        pixels, errors, labels, include_background=include_background, skip_absent=skip_absent
    )


def _extension(
    pixels: Pixels, errors: Tensor, labels: Tensor, *, include_background: bool, skip_absent: bool
) -> Tensor:
    positives = (labels * pixels.weights).sum(dim=2) if skip_absent else None
    weights = average_weights(pixels, include_background, positives)
    errors, order = errors.sort(dim=2, descending=True)
    labels = labels.gather(2, order)
    steps = jaccard_steps(labels, pixels.weights.expand_as(labels).gather(2, order))
    return weighted_mean((errors * steps).sum(dim=2), weights)


def jaccard_steps(labels: Tensor, weights: Tensor) -> Tensor:
    """By how much the Jaccard loss grows with each pixel in turn that is mispredicted.

    Algorithm 1 of the paper, without its differences of almost equal numbers: a missed object
    pixel takes its weight from the intersection and leaves the union; a false one adds it to the
    union.

    Args:
        labels: ``[..., N]`` of 0 and 1, in the order of falling errors.
        weights: ``[..., N]``, of the pixels; 0 for those to pass over.

    Returns:
        ``[..., N]``, at least 0.
    """
    inside, outside = labels * weights, (1 - labels) * weights
    total = inside.sum(dim=-1, keepdim=True)
    intersection = (total - inside.cumsum(dim=-1)).clamp_min(0)
    union = total + outside.cumsum(dim=-1)
    before = union - outside
    grown = (inside + outside * intersection / before.where(before > 0, 1)) / union.where(
        union > 0, 1
    )
    # Nothing is there and nothing was predicted until this pixel: from perfect to the worst.
    return grown.where(before > 0, (weights > 0).to(grown.dtype))
