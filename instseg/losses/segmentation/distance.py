"""Losses weighted by distances to the boundary.

Common arguments: `instseg.losses.segmentation.common`; ``include_background``: whether channel 0
of mode ``multiclass`` counts. Both are means over pixels and classes, weighted as those of
`instseg.losses.segmentation.pixelwise`. The distances are exact, computed on the CPU (of CUDA
tensors too, which waits for the device), and pass no gradient; pixels whose label is ignored are
outside every object.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instseg.losses.segmentation.common import (
    Mode,
    Pixels,
    prepare,
    require_at_least,
    weighted_mean,
)
from instseg.losses.segmentation.overlap import average_weights
from instseg.ops.distance_transform import distance_transform


def boundary(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    include_background: bool = True,
) -> Tensor:
    """Mean of p times the signed distance to the boundary of the truth, in pixels.

    Lowest, below 0, for the perfect prediction; 0 for classes that cover nothing or everything.
    Its authors add it, with a small weight, to a loss of regions.

    Source: Kervadec et al., "Boundary loss for highly unbalanced segmentation", 2019, equation 5.
    """
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    distances = signed_distance(_truth(pixels, logits.shape)).flatten(2)
    weights = _element_weights(pixels, include_background)
    return weighted_mean(pixels.probabilities() * distances.to(weights), weights)


def hausdorff(
    logits: Tensor,
    target: Tensor,
    *,
    mode: Mode,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    include_background: bool = True,
    alpha: float = 2.0,
) -> Tensor:
    """Mean of (p - y)^2 (d_y^alpha + d_p^alpha), at least 0, in pixels to the power of alpha.

    d_y and d_p are the distances to the boundaries of the truth and of the prediction, which is
    where p > 1/2 (`boundary_distance`). Where both cover nothing or everything the loss is 0.

    Source: Karimi & Salcudean, "Reducing the Hausdorff distance in medical image segmentation with
    convolutional neural networks", 2019, equation 8 (distance transforms), alpha = 2 as there.
    """
    require_at_least("alpha", alpha, 0)
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    p = pixels.probabilities()
    of_truth = boundary_distance(_truth(pixels, logits.shape))
    of_prediction = boundary_distance((p.detach() > 0.5).unflatten(2, logits.shape[2:]))
    distances = (of_truth**alpha + of_prediction**alpha).flatten(2)
    weights = _element_weights(pixels, include_background)
    return weighted_mean((p - pixels.one_hot()) ** 2 * distances.to(weights), weights)


def boundary_distance(masks: Tensor) -> Tensor:
    """Distance of each pixel to the nearest one on the other side of a mask's boundary.

    Args:
        masks: ``bool [..., H, W]``.

    Returns:
        ``float32`` of the same shape, at least 1; 0 everywhere for a mask without a boundary (one
        that is empty or full).
    """
    found = [_boundary_distance(mask) for mask in _arrays(masks)]
    return torch.from_numpy(np.stack(found)).view(masks.shape).to(masks.device)


def signed_distance(masks: Tensor) -> Tensor:
    """Distance of each pixel to the outermost pixels of a mask, negative inside the mask.

    It is 0 at these pixels themselves, 1 at their neighbours outside, -1 inside.

    Args:
        masks: ``bool [..., H, W]``.

    Returns:
        ``float32`` of the same shape; 0 everywhere for an empty and for a full mask.
    """
    distances = boundary_distance(masks)
    return distances.where(~masks, (1 - distances).clamp_max(0))


def _arrays(masks: Tensor) -> NDArray[np.uint8]:
    return masks.reshape(-1, *masks.shape[-2:]).to("cpu", torch.uint8).numpy()


def _boundary_distance(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    # Each is 0 on the other's side.
    return distance_transform(mask) + distance_transform(1 - mask)


def _truth(pixels: Pixels, shape: torch.Size) -> Tensor:
    """``bool [B, C, H, W]``: where each class is."""
    return ((pixels.one_hot() > 0) & (pixels.weights > 0)).view(shape)


def _element_weights(pixels: Pixels, include_background: bool) -> Tensor:
    """``[B, C, N]``: weights of each pixel for each class."""
    return pixels.weights * average_weights(pixels, include_background)[..., None]
