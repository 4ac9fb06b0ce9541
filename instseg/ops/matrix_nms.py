"""Matrix non-maximum suppression of masks: every score is lowered at once, without a loop."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from instseg.ops import check

Kernel = Literal["gaussian", "linear"]

# Mask pixels converted to float at a time: 4 bytes each.
_PIXELS = 1 << 24


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    kernel: Kernel = "gaussian",
    sigma: float = 0.5,
) -> Tensor:
    """Lower each score by the mask's overlap with better masks of its class.

    Source: Wang et al., SOLOv2, 2020, section 3.3 (matrix NMS). With the masks of a class by
    falling score, the score of mask j is multiplied by the least, over all better masks i, of
    ``f(iou_ij) / f(max_k iou_ki)``, k going over the masks better than i: a mask that is itself
    suppressed counts for less. ``f(x)`` is ``exp(-x^2 / sigma)`` or ``1 - x``. Among equal scores
    the mask that comes first is the better one. There is no gradient.

    Args:
        masks: ``bool`` or floating ``[N, H, W]`` of zeros and ones; or their pairwise IoU, floating
            ``[N, N]`` in [0, 1], where it is known already (from RLE, for instance).
        labels: ``int64 [N]``.
        scores: ``[N]`` of a floating dtype, not negative.
        kernel: f, "gaussian" or "linear".
        sigma: width of the Gaussian, above 0. The code that the paper's authors published writes
            ``exp(-sigma * x^2)`` with 2.0, which is 0.5 here.

    Returns:
        The lowered scores ``[N]``, in the order given and the dtype of ``scores``; computed in
        float32, or float64 for float64 scores. Nothing is dropped: that is for a threshold.

    Raises:
        ValueError: a wrong shape, an unknown kernel, sigma out of range, or scores that are not
            finite (on a GPU looked for only under ``INSTSEG_DEBUG=1``).
        TypeError: a wrong dtype.
    """
    _check_masks(masks)
    if scores.ndim != 1 or scores.shape != masks.shape[:1]:
        raise ValueError(f"scores must be [{masks.shape[0]}], got {list(scores.shape)}")
    if labels.shape != scores.shape:
        raise ValueError(f"labels must be [{masks.shape[0]}], got {list(labels.shape)}")
    check.same_device("scores", scores, "masks", masks)
    check.same_device("labels", labels, "masks", masks)
    check.floating("scores", scores)
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    check.positive("sigma", sigma)
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}")
    lowered: Tensor = torch.ops.instseg.matrix_nms(
        masks.detach(), labels, scores.detach(), kernel, sigma
    )
    return lowered


def _check_masks(masks: Tensor) -> None:
    if masks.ndim == 2:
        check.floating("masks, where they are pairwise IoU,", masks)
        if masks.shape[0] != masks.shape[1]:
            raise ValueError(
                f"masks must be [N, H, W], or [N, N] of pairwise IoU, got {list(masks.shape)}"
            )
        return
    if masks.ndim != 3:
        raise ValueError(
            f"masks must be [N, H, W], or [N, N] of pairwise IoU, got {list(masks.shape)}"
        )
    if masks.dtype != torch.bool:
        check.floating("masks", masks)


@torch.library.custom_op("instseg::matrix_nms", mutates_args=())
def _matrix_nms(masks: Tensor, labels: Tensor, scores: Tensor, kernel: str, sigma: float) -> Tensor:
    check.finite("scores", scores)
    lowered = torch.empty_like(scores)
    if len(scores) == 0:
        return lowered
    order = scores.sort(descending=True, stable=True).indices
    iou = masks if masks.ndim == 2 else _mask_iou(masks)
    iou = iou.to(torch.promote_types(scores.dtype, torch.float32))[order[:, None], order]
    rivals = (labels[order][:, None] == labels[order]).triu(1)  # [better mask i, worse mask j]
    iou = iou.masked_fill_(~rivals, 0)
    decay = _gaussian(iou, sigma) if kernel == "gaussian" else _linear(iou)
    # A mask without a better one in its class keeps its score.
    decay = decay.masked_fill_(~rivals, 1).amin(dim=0)
    lowered[order] = (scores[order] * decay).to(scores.dtype)
    return lowered


@_matrix_nms.register_fake
def _matrix_nms_fake(masks, labels, scores, kernel, sigma):  # type: ignore[no-untyped-def]
    return torch.empty_like(scores)


def _gaussian(iou: Tensor, sigma: float) -> Tensor:
    """``f(iou_ij) / f(max_k iou_ki)`` as one power, in which nothing can be divided by 0."""
    squares = iou.square()
    return (squares.amax(dim=0)[:, None] - squares).div_(sigma).exp_()


def _linear(iou: Tensor) -> Tensor:
    """The same quotient for ``f(x) = 1 - x``."""
    most = iou.amax(dim=0)[:, None]
    # A mask that is wholly suppressed suppresses no other.
    return (1 - iou).div_(1 - most).masked_fill_(most >= 1, torch.inf)


def _mask_iou(masks: Tensor) -> Tensor:
    """``float32 [N, N]`` of masks ``[N, H, W]``; float64 for float64 masks."""
    wide = torch.float64 if masks.dtype == torch.float64 else torch.float32
    flat = masks.flatten(1)
    inter = torch.zeros((len(flat), len(flat)), dtype=wide, device=flat.device)
    step = max(_PIXELS // len(flat), 1)
    with torch.autocast(flat.device.type, enabled=False):
        for start in range(0, flat.shape[1], step):
            pixels = flat[:, start : start + step].to(wide)
            inter.addmm_(pixels, pixels.T)
    area = inter.diagonal()
    union = area[:, None] + area - inter
    return inter / union.masked_fill_(union <= 0, 1)
