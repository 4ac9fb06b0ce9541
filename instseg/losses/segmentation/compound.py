"""Losses made of others, and weighted sums of losses by name.

Common arguments: `instseg.losses.segmentation.common` and `instseg.losses.segmentation.overlap`.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instseg.losses.segmentation.common import (
    Mode,
    power,
    prepare,
    require_at_least,
    weighted_mean,
)
from instseg.losses.segmentation.distance import boundary, hausdorff
from instseg.losses.segmentation.lovasz import lovasz
from instseg.losses.segmentation.overlap import overlap
from instseg.losses.segmentation.pixelwise import bce, cross_entropy, focal, pixel_entropies, top_k
from instseg.losses.segmentation.region import (
    dice,
    focal_tversky,
    generalized_dice,
    jaccard,
    log_cosh_dice,
    sensitivity_specificity,
    squared_dice,
    tversky,
)


def bce_log_dice(
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
    """BCE - ln(Dice): the loss of TernausNet with Dice in the place of Jaccard; ``smooth > 0``.

    The cross-entropy of a softmax is in the place of BCE where classes exclude each other; Dice is
    the average that `dice` is one minus of.

    Source: Iglovikov & Shvets, "TernausNet", 2018, equation 4.
    """
    require_at_least("smooth", smooth, 0, open_end=True)
    args = (logits, target, mode, ignore_index, class_weights, pixel_weights)
    counts = overlap(
        prepare(*args, batch=batch), include_background=include_background, skip_absent=skip_absent
    )
    index = weighted_mean(counts.dice(smooth), counts.weights)
    index = index.where(counts.weights.sum() > 0, 1)  # nothing counts: the logarithm of 1
    return weighted_mean(*pixel_entropies(prepare(*args))) - index.log()


def exp_log(
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
    gamma: float = 0.3,
    dice_weight: float = 0.8,
    entropy_weight: float = 0.2,
) -> Tensor:
    """Exponential logarithmic loss: w_D mean (-ln Dice)^gamma + w_X mean w_l (-ln p_l)^gamma.

    The first mean is over classes and images, not weighted; the second over pixels, weighted by
    ``class_weights`` (w_l in the paper: the roots of the classes' inverse frequencies) and divided
    by the sum of these weights. ``smooth > 0``, ``gamma > 0``.

    Source: Wong et al., "3D segmentation with exponential logarithmic loss for highly unbalanced
    object sizes", 2018, equations 1 to 3 with their values.
    """
    require_at_least("smooth", smooth, 0, open_end=True)
    require_at_least("gamma", gamma, 0, open_end=True)
    require_at_least("dice_weight", dice_weight, 0)
    require_at_least("entropy_weight", entropy_weight, 0)
    pixels = prepare(logits, target, mode, ignore_index, None, pixel_weights, batch=batch)
    counts = overlap(pixels, include_background=include_background, skip_absent=skip_absent)
    region = weighted_mean(power(-counts.dice(smooth).log(), gamma), counts.weights)
    pixels = prepare(logits, target, mode, ignore_index, class_weights, pixel_weights)
    entropies, weights = pixel_entropies(pixels)
    entropy = weighted_mean(power(entropies, gamma), weights)
    return dice_weight * region + entropy_weight * entropy


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "bce": bce,
    "focal": focal,
    "topk": top_k,
    "dice": dice,
    "squared_dice": squared_dice,
    "log_cosh_dice": log_cosh_dice,
    "generalized_dice": generalized_dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "sensitivity_specificity": sensitivity_specificity,
    "lovasz": lovasz,
    "boundary": boundary,
    "hausdorff": hausdorff,
    "bce_log_dice": bce_log_dice,
    "exp_log": exp_log,
}
"""The losses by the names that a configuration gives them."""

COMMON = ("logits", "target", "mode", "ignore_index", "class_weights", "pixel_weights")
"""Arguments that all losses take."""


class SegmentationLoss(nn.Module):
    """A weighted sum of losses, e.g. ``{"bce": 1, "dice": 1}``.

    Args:
        weights: of each loss, by its name in `LOSSES`; at least 0.
        mode: see `instseg.losses.segmentation.common`.
        ignore_index: value of the target that counts nowhere.
        class_weights: of the C classes, at least 0; None: all alike.
        options: arguments of single losses by their names, such as ``{"tversky": {"beta": 0.8}}``.

    Raises:
        ValueError: a name or an argument is unknown, is not for this mode, or has no valid value.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        mode: Mode,
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        options = options or {}
        _check_names(weights, options)
        self.weights = dict(weights)
        self.mode = mode
        self.ignore_index = ignore_index
        self.options = {name: dict(options.get(name, {})) for name in weights}
        # Values are looked at, which a meta device has none of.
        with torch.device("cpu"):
            values = None if class_weights is None else torch.tensor([*map(float, class_weights)])
            self.register_buffer("class_weights", values, persistent=False)
            # A pixel's loss, so that a wrong mode or value shows now and not in the first step.
            maps = torch.zeros(1, 2 if values is None else len(values), 1, 1)
            self(maps, maps.byte() if mode == "multilabel" else maps[:, 0].byte())
        self.to(torch.get_default_device())

    def forward(
        self, logits: Tensor, target: Tensor, pixel_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The scalars ``loss_<name>``, each times its weight.

        Args:
            logits: ``[B, C, H, W]``.
            target: ``[B, H, W]`` or ``[B, C, H, W]`` by the mode.
            pixel_weights: ``[B, H, W]``.
        """
        return {
            f"loss_{name}": weight
            * LOSSES[name](
                logits,
                target,
                mode=self.mode,
                ignore_index=self.ignore_index,
                class_weights=self.class_weights,
                pixel_weights=pixel_weights,
                **self.options[name],
            )
            for name, weight in self.weights.items()
        }

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.weights}, mode={self.mode!r}"


def _check_names(weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]]) -> None:
    if not weights:
        raise ValueError(f"weights must name at least one loss of: {', '.join(LOSSES)}")
    for name, weight in weights.items():
        _check_name("loss", name, LOSSES)
        if not (0 <= weight < math.inf):
            raise ValueError(f"weight of loss {name!r} must be finite and at least 0, got {weight}")
    for name, values in options.items():
        _check_name("loss in options", name, weights)
        arguments = [a for a in inspect.signature(LOSSES[name]).parameters if a not in COMMON]
        for argument in values:
            _check_name(f"argument of loss {name!r}", argument, arguments)


def _check_name(what: str, name: str, known: Mapping[str, Any] | Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}: {hint}valid are {', '.join(known) or 'none'}")
