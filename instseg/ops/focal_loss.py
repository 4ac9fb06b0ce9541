"""Focal loss (Lin et al., Focal Loss for Dense Object Detection, 2017), forward and backward."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from instseg.ops import backend, check

Reduction = Literal["none", "mean", "sum"]


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
) -> Tensor:
    """``-alpha_t * (1 - p_t)^gamma * log(p_t)`` of independent yes-or-no predictions.

    Source: Lin et al., 2017, equation 5, with p = sigmoid(input). For a target t between 0 and 1,
    -log(p_t) is the cross entropy, p_t = p t + (1 - p)(1 - t) and alpha_t = alpha t + (1 - alpha)
    (1 - t), as in torchvision. Computed in float32 (float64 for float64 inputs) from logits, so
    that no logit is too large, under autocast too. Values are not looked at: NaN gives NaN.

    Args:
        inputs: logits of any shape, float16, bfloat16, float32 or float64.
        targets: the same shape, floating, in [0, 1]: 1 is an object. They get no gradient.
        alpha: weight of targets of 1, in [0, 1], that of 0 being 1 - alpha; -1 weights nothing.
        gamma: how much less well-classified examples count, at least 0; 0 is the cross entropy.
        reduction: "none", "mean" (NaN of no elements) or "sum".

    Returns:
        The loss in the dtype of ``inputs``, of their shape, or a scalar for "mean" and "sum".
        Under autocast such a scalar is float32, as of any sum.

    Raises:
        ValueError: shapes or devices that differ, an argument out of its range.
        TypeError: inputs or targets are not floating.
    """
    check.floating("inputs", inputs)
    check.floating("targets", targets)
    if targets.shape != inputs.shape:
        raise ValueError(f"targets must be {list(inputs.shape)}, got {list(targets.shape)}")
    check.same_device("targets", targets, "inputs", inputs)
    if alpha != -1 and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1] or -1, got {alpha}")
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be at least 0 and finite, got {gamma}")
    if reduction not in get_args(Reduction):
        raise ValueError(
            f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}"
        )
    loss: Tensor = torch.ops.instseg.sigmoid_focal_loss(inputs, targets.detach(), alpha, gamma)
    if reduction == "none":
        return loss
    # Backward, either hands the kernel one number expanded to the shape: no further array.
    return loss.sum() if reduction == "sum" else loss.mean()


# --- the op as the dispatcher, autograd and torch.compile see it ---------------------------------


@torch.library.custom_op("instseg::sigmoid_focal_loss", mutates_args=())
def _sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    run = backend.kernel("sigmoid_focal_loss", logits.device)
    loss: Tensor = run(logits, targets, alpha, gamma)
    return loss


@torch.library.custom_op("instseg::sigmoid_focal_loss_backward", mutates_args=())
def _sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    run = backend.kernel("sigmoid_focal_loss_backward", logits.device)
    slope: Tensor = run(grad, logits, targets, alpha, gamma)
    return slope


@_sigmoid_focal_loss.register_fake
def _sigmoid_focal_loss_fake(logits, targets, alpha, gamma):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits)


@_sigmoid_focal_loss_backward.register_fake
def _sigmoid_focal_loss_backward_fake(grad, logits, targets, alpha, gamma):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    logits, targets, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    logits, targets = ctx.saved_tensors
    slope = torch.ops.instseg.sigmoid_focal_loss_backward(
        grad, logits, targets, ctx.alpha, ctx.gamma
    )
    return slope, None, None, None


_sigmoid_focal_loss.register_autograd(_backward, setup_context=_setup_context)
