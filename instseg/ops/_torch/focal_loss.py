"""The focal loss of single logits, and its derivative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """See `instseg.ops.sigmoid_focal_loss`; nothing is reduced. ``alpha`` < 0 weights nothing."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    t = targets.to(x.dtype)
    loss = _cross_entropy(x, t)
    # 1 - p_t; between p and 1 - p `lerp` is exact at both ends.
    loss *= torch.lerp(x.sigmoid(), (-x).sigmoid(), t).pow_(gamma)
    return _like(logits, _weighted(loss, t, alpha))


def sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Gradient of the logits; ``grad`` is that of the loss, expanded from one number perhaps.

    With x the logit, t the target, p = sigmoid(x), q = 1 - p, cross entropy c and m = 1 - p_t, the
    derivative of ``c * m^gamma`` is ``m^gamma * (p - t) + c * gamma * m^(gamma - 1) * p * q *
    (1 - 2t)``.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    t = targets.to(x.dtype)
    p, q = x.sigmoid(), (-x).sigmoid()
    miss = torch.lerp(p, q, t)
    # p - t without cancellation, times m^gamma.
    slope = torch.lerp(p, -q, t).mul_(miss.pow(gamma))
    cross = _cross_entropy(x, t)
    # m is 0 only where p * q is: there, the power must not be infinite.
    power = miss.clamp_(min=torch.finfo(miss.dtype).tiny).pow_(gamma - 1)
    slope += cross.mul_(power).mul_(p).mul_(q).mul_((t * (-2 * gamma)).add_(gamma))
    return _like(logits, _weighted(slope, t, alpha).mul_(grad))


def _cross_entropy(x: Tensor, t: Tensor) -> Tensor:
    """With logits; unlike `binary_cross_entropy_with_logits`, exact for x far on t's side too."""
    return x.clamp(min=0).addcmul_(x, t, value=-1).sub_(F.logsigmoid(x.abs()))


def _weighted(values: Tensor, t: Tensor, alpha: float) -> Tensor:
    return values if alpha < 0 else values.mul_((t * (2 * alpha - 1)).add_(1 - alpha))


def _like(logits: Tensor, values: Tensor) -> Tensor:
    """The values in the dtype and memory layout of the logits."""
    result = torch.empty_like(logits)
    if values.dtype == result.dtype and values.stride() == result.stride():
        return values
    return result.copy_(values)
