"""What the losses of semantic maps share: how a batch is checked and laid out, and means of it.

Every loss is a function ``f(logits, target, *, mode, ignore_index=255, class_weights=None,
pixel_weights=None, ...)``:

- ``logits``: floating ``[B, C, H, W]``; of float16 and bfloat16 the loss is computed in float32.
- ``target``: integers. ``mode="multiclass"``: ``[B, H, W]`` of 0..C-1, classes that exclude each
  other (softmax over C >= 2 channels). ``mode="multilabel"``: ``[B, C, H, W]`` of 0 and 1, classes
  that may overlap (a sigmoid for each channel); a binary map is C = 1.
- ``ignore_index``: value of ``target`` that counts nowhere.
- ``class_weights``: floating ``[C]``, at least 0.
- ``pixel_weights``: floating ``[B, H, W]``, at least 0; a pixel of weight 2 counts as two pixels.

All return a scalar float32 (float64 of float64 logits), exactly 0 without gradient where nothing
counts, and raise ValueError for arguments that contradict the above or the loss's own definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Mode = Literal["multiclass", "multilabel"]

EPSILON = 1e-7
"""About the resolution of float32 at 1: less than this is nothing."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """A batch with its N = H * W pixels in one row."""

    logits: Tensor
    """float32 or float64 ``[B, C, N]``."""
    labels: Tensor
    """``int64 [B, N]``, 0 where ignored, if classes exclude each other; else ``bool [B, C, N]``."""
    weights: Tensor
    """As ``logits``, ``[B, 1, N]`` or ``[B, C, N]``: weight of each pixel, 0 where ignored."""
    class_weights: Tensor
    """As ``logits``, ``[C]``."""
    exclusive: bool
    """Whether the classes exclude each other."""

    def probabilities(self) -> Tensor:
        """``[B, C, N]``: softmax or sigmoid of the logits."""
        return self.logits.softmax(dim=1) if self.exclusive else self.logits.sigmoid()

    def one_hot(self) -> Tensor:
        """``[B, C, N]``: 1 where a pixel is of a class, 0 where not; anything where ignored."""
        if not self.exclusive:
            return self.labels.to(self.logits.dtype)
        return torch.zeros_like(self.logits).scatter_(1, self.labels[:, None], 1)

    def element_weights(self) -> Tensor:
        """``[B, C, N]``: weight of each pixel for each class, with the weight of the class."""
        return self.weights * self.class_weights[:, None]

    def as_one_image(self) -> Pixels:
        """The batch as a single image of B * N pixels."""
        labels = self.labels.reshape(1, -1) if self.exclusive else _joined(self.labels)
        return Pixels(
            _joined(self.logits), labels, _joined(self.weights), self.class_weights, self.exclusive
        )


def prepare(
    logits: Tensor,
    target: Tensor,
    mode: Mode,
    ignore_index: int,
    class_weights: Tensor | None,
    pixel_weights: Tensor | None,
    *,
    batch: bool = False,
) -> Pixels:
    """The batch that a loss is computed of; ``batch`` joins its images into one.

    Raises:
        ValueError: an argument contradicts the description of this module. On CUDA, values (not
            shapes) are checked by a device-side assertion instead, so that nothing waits for them.
    """
    _check_shapes(logits, target, mode)
    exclusive = mode == "multiclass"
    maps = [len(logits), *logits.shape[2:]]
    logits = (logits if logits.dtype == torch.float64 else logits.float()).flatten(2)
    target = target.flatten(-2)
    valid = target != ignore_index
    _check_classes(target, valid, logits.shape[1] if exclusive else 2, ignore_index)
    if exclusive:
        labels, valid = target.long().where(valid, 0), valid[:, None]
    else:
        labels = (target == 1) & valid
    weights = valid.to(logits.dtype)
    if pixel_weights is not None:
        _check_weights("pixel_weights", pixel_weights, "[B, H, W]", maps)
        weights = weights * pixel_weights.to(logits).flatten(1)[:, None]
    if class_weights is None:
        class_weights = logits.new_ones(logits.shape[1])
    else:
        _check_weights("class_weights", class_weights, "[C]", [logits.shape[1]])
    pixels = Pixels(logits, labels, weights, class_weights.to(logits), exclusive)
    return pixels.as_one_image() if batch and len(logits) > 1 else pixels


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Scalar mean of ``values`` by ``weights`` of the same shape; 0 where all weights are 0."""
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1)


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` for values at least 0, with a finite gradient at 0.

    For exponents under 1 the power is continued below `EPSILON` by the straight line to the origin.
    """
    if exponent >= 1:
        return base**exponent
    line = base * EPSILON ** (exponent - 1)
    return (base.clamp_min(EPSILON) ** exponent).where(base > EPSILON, line)


def require_mode(loss: str, mode: Mode, wanted: Mode, instead: str) -> None:
    """Refuse a loss that is defined for the other mode.

    Raises:
        ValueError: ``mode`` is not ``wanted``.
    """
    if mode != wanted and mode in get_args(Mode):
        raise ValueError(f"{loss} is defined for mode {wanted!r} only, got {mode!r}: use {instead}")


def require_at_least(name: str, value: float, least: float, *, open_end: bool = False) -> None:
    """Refuse a number under ``least``, or equal to it where ``open_end``.

    Raises:
        ValueError: that is so, or the value is no number.
    """
    if not (value > least or (value == least and not open_end)):
        raise ValueError(
            f"{name} must be {'above' if open_end else 'at least'} {least}, got {value}"
        )


def _joined(values: Tensor) -> Tensor:
    return values.transpose(0, 1).flatten(1)[None]


def _check_shapes(logits: Tensor, target: Tensor, mode: Mode) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating [B, C, H, W], got {logits.dtype} {list(logits.shape)}"
        )
    batch, classes, height, width = logits.shape
    if mode == "multiclass" and classes < 2:
        raise ValueError(
            "logits must have at least 2 channels where classes exclude each other, got 1: "
            "use mode 'multilabel' for a binary map"
        )
    wanted = [batch, height, width] if mode == "multiclass" else list(logits.shape)
    if list(target.shape) != wanted or target.is_floating_point() or target.is_complex():
        raise ValueError(
            f"target must be integers {wanted} for logits {list(logits.shape)} in mode {mode!r}, "
            f"got {target.dtype} {list(target.shape)}: crop or resize it to the logits"
        )


def _check_classes(target: Tensor, valid: Tensor, count: int, ignore_index: int) -> None:
    wrong = valid & ((target < 0) | (target >= count))
    choice = f"valid are 0 to {count - 1} and ignore_index {ignore_index}"
    if target.is_cuda:
        torch._assert_async(~wrong.any(), f"target holds unknown classes: {choice}")
    elif wrong.any():
        raise ValueError(
            f"target holds {target[wrong].unique().tolist()}, {choice}: remap its values, or give "
            "the network more outputs"
        )


def _check_weights(name: str, weights: Tensor, dims: str, shape: list[int]) -> None:
    if list(weights.shape) != shape or not weights.is_floating_point():
        raise ValueError(
            f"{name} must be floating {dims} = {shape}, got {weights.dtype} {list(weights.shape)}"
        )
    fine = ((weights >= 0) & weights.isfinite()).all()
    if weights.is_cuda:
        torch._assert_async(fine, f"{name} must be finite and at least 0")
    elif not fine:
        raise ValueError(
            f"{name} must be finite and at least 0, got {weights.min():g} to {weights.max():g}"
        )
