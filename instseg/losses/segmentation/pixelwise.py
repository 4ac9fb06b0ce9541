"""Losses of single pixels: cross-entropy and what weighs its terms.

Each is a mean over the pixels that count (over pixels and channels where classes may overlap),
weighted by ``class_weights[class] * pixel_weights[pixel]``; the sum of these weights divides, as
in `torch.nn.functional.cross_entropy`. Common arguments: `instseg.losses.segmentation.common`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from instseg.losses.segmentation.common import (
    Mode,
    Pixels,
    prepare,
    require_at_least,
    require_mode,
    weighted_mean,
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """-ln p of the true class: equation 1 of U-Net (Ronneberger et al., 2015), as a mean.

    Mode ``multiclass`` alone; `bce` is its counterpart.
    """
    require_mode("cross_entropy", mode, "multiclass", "bce")
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    return weighted_mean(*pixel_entropies(pixels))


def bce(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    positive_weight: float = 1.0,
) -> Tensor:
    """Binary cross-entropy, -w y ln p - (1 - y) ln(1 - p); mode ``multilabel`` alone.

    w is ``positive_weight``, at least 0, of the pixels that are in an object (Jadon, "A survey of
    loss functions for semantic segmentation", 2020, weighted binary cross-entropy); it does not
    enter the divisor.
    """
    require_mode("bce", mode, "multilabel", "cross_entropy")
    require_at_least("positive_weight", positive_weight, 0)
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    losses, weights = pixel_entropies(pixels)
    return weighted_mean(losses * (1 + (positive_weight - 1) * pixels.one_hot()), weights)


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """-(1 - p_t)^gamma ln p_t, p_t the probability of the truth (Lin et al., 2017, equations 4, 5).

    In mode ``multiclass`` p_t is the softmax of the true class, in ``multilabel`` p or 1 - p. The
    mean, not RetinaNet's sum over the number of objects. ``gamma`` is at least 0, where the loss is
    the cross-entropy.

    ``alpha`` in [0, 1] is of mode ``multilabel`` alone: weight of object pixels, and 1 - alpha of
    the others (0.25 in the paper); it does not enter the divisor. For classes that exclude each
    other the paper's alpha_t are the ``class_weights``.
    """
    require_at_least("gamma", gamma, 0)
    if alpha is not None and (mode == "multiclass" or not 0 <= alpha <= 1):
        raise ValueError(
            f"alpha must be in [0, 1] and of mode 'multilabel', got {alpha} in mode {mode!r}: "
            "weigh classes that exclude each other by class_weights"
        )
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    entropies, weights = pixel_entropies(pixels)
    # As a logarithm, for its power has a finite gradient at p_t = 1 whatever gamma is.
    losses = (gamma * _log_doubt(pixels)).exp() * entropies
    if alpha is not None:
        losses = losses * (1 - alpha + (2 * alpha - 1) * pixels.one_hot())
    return weighted_mean(losses, weights)


def top_k(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    fraction: float = 0.1,
) -> Tensor:
    """Cross-entropy of the hardest pixels of the batch (TopK loss), of all channels together.

    The hardest pixels are those of the highest weighted entropy, a ``fraction`` in (0, 1] of those
    not ignored (rounded up).

    Source: Wu et al., "Bridging category-level and instance-level semantic image segmentation",
    2016, arXiv:1605.06885 (online bootstrapping); Ma et al., "Segmentation loss odyssey", 2020,
    arXiv:2005.13449.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    entropies, weights = (v.flatten() for v in pixel_entropies(pixels))
    valid = target.flatten() != ignore_index
    # As many as if none were ignored, so that the device need not tell how many are.
    most = math.ceil(fraction * len(entropies))
    rank = (entropies.detach() * weights).where(valid, -1)
    hardest = rank.topk(most).indices
    count = (fraction * valid.sum(dtype=torch.float64)).ceil()
    wanted = torch.arange(most, device=valid.device) < count
    return weighted_mean(entropies[hardest], weights[hardest] * wanted)


def pixel_entropies(pixels: Pixels) -> tuple[Tensor, Tensor]:
    """-ln of the probability of the truth, and its weight with the class's: both ``[B, 1|C, N]``.

    One for each pixel where classes exclude each other, one for each pixel and channel otherwise.
    """
    if pixels.exclusive:
        entropies = F.cross_entropy(pixels.logits, pixels.labels, reduction="none")[:, None]
        return entropies, pixels.weights * pixels.class_weights[pixels.labels][:, None]
    labels = pixels.one_hot()
    entropies = F.binary_cross_entropy_with_logits(pixels.logits, labels, reduction="none")
    return entropies, pixels.element_weights()


def _log_doubt(pixels: Pixels) -> Tensor:
    """ln(1 - p_t), ``[B, 1|C, N]``, precise at both ends."""
    if not pixels.exclusive:
        return F.logsigmoid(pixels.logits.where(~pixels.labels, -pixels.logits))
    others = pixels.logits.log_softmax(dim=1).scatter(1, pixels.labels[:, None], -math.inf)
    return others.logsumexp(dim=1, keepdim=True)
