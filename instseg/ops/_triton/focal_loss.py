"""Focal loss in one pass over memory each way (Lin et al., RetinaNet, 2017, equation 5)."""
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """See `instseg.ops.sigmoid_focal_loss`; not reduced, in the shape and dtype of ``logits``."""
    loss = torch.empty_like(logits)
    count = loss.numel()
    if count:
        with torch.cuda.device_of(loss):  # type: ignore[no-untyped-call]
            _forward[(triton.cdiv(count, _BLOCK),)](
                loss,
                _laid_out_as(loss, logits),
                _laid_out_as(loss, targets),
                count,
                ALPHA=alpha,
                GAMMA=gamma,
                WIDE=_wide(loss),
                BLOCK=_BLOCK,
                enable_fp_fusion=True,
            )
    return loss


def sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Gradient of ``logits``, from that of the loss, which may be one number expanded."""
    result = torch.empty_like(logits)
    count = result.numel()
    one = not any(grad.stride())
    if count:
        with torch.cuda.device_of(result):  # type: ignore[no-untyped-call]
            _backward[(triton.cdiv(count, _BLOCK),)](
                result,
                grad if one else _laid_out_as(result, grad),
                _laid_out_as(result, logits),
                _laid_out_as(result, targets),
                count,
                ONE=one,
                ALPHA=alpha,
                GAMMA=gamma,
                WIDE=_wide(result),
                BLOCK=_BLOCK,
                enable_fp_fusion=True,
            )
    return result


def _laid_out_as(model: Tensor, value: Tensor) -> Tensor:
    """The values in the order in memory of ``model``, which has no gaps."""
    if value.stride() == model.stride():
        return value
    return torch.empty_like(model, dtype=value.dtype).copy_(value)


def _wide(value: Tensor) -> tl.dtype:
    return tl.float64 if value.dtype == torch.float64 else tl.float32


@triton.jit
def _parts(x, target, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """p, 1 - p, 1 - p_t, cross entropy, alpha_t and (1 - p_t)^gamma, none by cancellation."""
    small = tl.exp(-tl.abs(x))
    more = 1 / (1 + small)
    less = small / (1 + small)
    p = tl.where(x >= 0, more, less)
    rest = tl.where(x >= 0, less, more)
    miss = p * (1 - target) + rest * target
    # log(1 + small), whose rounded argument is made good by the quotient.
    u = 1 + small
    log1p = tl.where(u == 1, small, tl.log(u) * small / tl.where(u == 1, 1.0, u - 1))
    entropy = tl.maximum(x, 0.0) - x * target + log1p
    if ALPHA >= 0:
        alpha = ALPHA * target + (1 - ALPHA) * (1 - target)
    else:
        alpha = tl.zeros_like(x) + 1
    if GAMMA == 0:
        power = tl.zeros_like(x) + 1
    elif GAMMA == 1:
        power = miss
    elif GAMMA == 2:
        power = miss * miss
    else:
        power = tl.exp(GAMMA * tl.log(miss))
    return p, rest, miss, entropy, alpha, power


@triton.jit
def _forward(
    loss,
    logits,
    targets,
    count,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    x = tl.load(logits + place, mask=mask, other=0.0).to(WIDE)
    target = tl.load(targets + place, mask=mask, other=0.0).to(WIDE)
    _, _, _, entropy, alpha, power = _parts(x, target, ALPHA, GAMMA)
    tl.store(loss + place, (alpha * power * entropy).to(loss.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    result,
    grad,
    logits,
    targets,
    count,
    ONE: tl.constexpr,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    x = tl.load(logits + place, mask=mask, other=0.0).to(WIDE)
    target = tl.load(targets + place, mask=mask, other=0.0).to(WIDE)
    p, rest, miss, entropy, alpha, power = _parts(x, target, ALPHA, GAMMA)
    slope = power * (p * (1 - target) - rest * target)
    if GAMMA != 0:
        # d(1 - p_t)^gamma; its factor p (1 - p) is 0 wherever 1 - p_t is.
        turn = p * rest * (1 - 2 * target) * entropy / tl.where(miss > 0, miss, 1.0)
        slope += GAMMA * power * turn
    if ONE:
        above = tl.load(grad).to(WIDE)
    else:
        above = tl.load(grad + place, mask=mask, other=0.0).to(WIDE)
    tl.store(result + place, (above * alpha * slope).to(result.dtype.element_ty), mask=mask)
