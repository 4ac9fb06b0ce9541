"""Losses of regions: one minus a soft overlap of prediction and truth.

Arguments that all of them take: `instseg.losses.segmentation.common` and
`instseg.losses.segmentation.overlap`. All are in [0, 1] and 0 for a perfect prediction.

Surveys: Jadon, "A survey of loss functions for semantic segmentation", 2020, arXiv:2006.14822;
Ma et al., "Segmentation loss odyssey", 2020, arXiv:2005.13449.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instseg.losses.segmentation.common import Mode, power, prepare, require_at_least, weighted_mean
from instseg.losses.segmentation.overlap import overlap, ratio


def dice(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
    skip_absent: bool = False,
) -> Tensor:
    """Soft Dice: 1 - (2 sum p y + smooth) / (sum p + sum y + smooth).

    Source: Drozdzal et al., "The importance of skip connections in biomedical image segmentation",
    2016, equation 2. `squared_dice` is the form of V-Net.
    """
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background, skip_absent=skip_absent)
    return weighted_mean(1 - counts.dice(smooth), counts.weights)


def squared_dice(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
    skip_absent: bool = False,
) -> Tensor:
    """Soft Dice with squares: 1 - (2 sum p y + smooth) / (sum p^2 + sum y^2 + smooth).

    Source: Milletari et al., "V-Net", 2016, section 3.
    """
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(
        pixels, include_background=include_background, skip_absent=skip_absent, squared=True
    )
    return weighted_mean(1 - counts.dice(smooth), counts.weights)


def log_cosh_dice(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
    skip_absent: bool = False,
) -> Tensor:
    """Mean over classes and images of ln cosh of `dice`; at most ln cosh 1 = 0.434.

    Source: Jadon, 2020, log-cosh Dice loss (stated there of one class).
    """
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background, skip_absent=skip_absent)
    return weighted_mean((1 - counts.dice(smooth)).cosh().log(), counts.weights)


def generalized_dice(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
) -> Tensor:
    """1 - (2 sum_c w_c sum p y + smooth) / (sum_c w_c sum (p + y) + smooth), w_c = 1 / (sum y)^2.

    The weights are scaled so that the largest is 1, which changes nothing but the meaning of
    ``smooth``: pixels of the smallest class. Absent classes have that weight too. ``class_weights``
    multiply them.

    Source: Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly
    unbalanced segmentations", 2017, equation of GDL in section 2.1.
    """
    require_at_least("smooth", smooth, 0)
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background)
    present = (counts.positives > 0) & (counts.weights > 0)
    smallest = counts.positives.where(present, torch.inf).amin(dim=1, keepdim=True)
    weights = counts.weights * ((smallest / counts.positives) ** 2).where(present, 1)
    both = 2 * (weights * counts.tp).sum(dim=1) + smooth
    index = ratio(both, both + (weights * (counts.fp + counts.fn)).sum(dim=1))
    return weighted_mean(1 - index, (counts.weights > 0).any(dim=1).to(index.dtype))


def jaccard(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
    skip_absent: bool = False,
) -> Tensor:
    """Soft Jaccard: 1 - (sum p y + smooth) / (sum p + sum y - sum p y + smooth).

    Source: Rahman & Wang, "Optimizing intersection-over-union in deep neural networks for image
    segmentation", 2016, equations 3 to 5.
    """
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background, skip_absent=skip_absent)
    return weighted_mean(1 - counts.index(1, 1, smooth), counts.weights)


def tversky(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
    skip_absent: bool = False,
    alpha: float = 0.3,
    beta: float = 0.7,
) -> Tensor:
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth), the counts being soft.

    With alpha = beta = 1 this is `jaccard`, with 1/2 `dice` of twice the ``smooth``.

    Source: Salehi et al., "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks", 2017, equation 4, and the best alpha and beta of its table 1.
    """
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background, skip_absent=skip_absent)
    return weighted_mean(1 - counts.index(alpha, beta, smooth), counts.weights)


def focal_tversky(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    smooth: float = 1.0,
    include_background: bool = True,
    skip_absent: bool = False,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
) -> Tensor:
    """Mean over classes and images of `tversky` to the power of 1 / gamma, gamma > 0.

    Source: Abraham & Khan, "A novel focal Tversky loss function with improved attention U-Net for
    lesion segmentation", 2018, equation 4 (a sum over the classes there; its alpha weighs the
    false negatives, here as in `tversky` beta does).
    """
    require_at_least("gamma", gamma, 0, open_end=True)
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background, skip_absent=skip_absent)
    return weighted_mean(power(1 - counts.index(alpha, beta, smooth), 1 / gamma), counts.weights)


def sensitivity_specificity(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    batch: bool = False,
    include_background: bool = True,
    skip_absent: bool = False,
    sensitivity_weight: float = 0.05,
) -> Tensor:
    """r sum (y - p)^2 y / sum y + (1 - r) sum (y - p)^2 (1 - y) / sum (1 - y).

    r is ``sensitivity_weight``, in [0, 1]; a term without a pixel is 0.

    Source: Brosch et al., "Deep convolutional encoder networks for multiple sclerosis lesion
    segmentation", 2015, equation 3, with its r = 0.05.
    """
    if not 0 <= sensitivity_weight <= 1:
        raise ValueError(f"sensitivity_weight must be in [0, 1], got {sensitivity_weight}")
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights, batch=batch)
    counts = overlap(
        pixels, include_background=include_background, skip_absent=skip_absent, squared=True
    )
    inside = counts.fn / counts.positives.where(counts.positives > 0, 1)
    outside = counts.fp / counts.negatives.where(counts.negatives > 0, 1)
    losses = sensitivity_weight * inside + (1 - sensitivity_weight) * outside
    return weighted_mean(losses, counts.weights)
